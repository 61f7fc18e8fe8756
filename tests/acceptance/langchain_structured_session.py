"""A session of langchain-openai with a server: typed answers, and functions that are called. Run as a script.

Base URL and key come from the environment, as langchain takes them. Prints what came of the calls as one JSON object,
for `test_structured`. Argument: the model.
"""

import json
import sys
from typing import Any, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

MODEL = sys.argv[1]
ASKED = "How is the weather in Ulm?"
model = ChatOpenAI(model=MODEL, max_tokens=200, seed=5, max_retries=0)


class Weather(BaseModel):
    """The weather in a city."""

    city: str = Field(max_length=20)
    sky: Literal["clear", "clouds", "rain"]


@tool  # type: ignore[untyped-decorator]
def forecast(city: str, days: int) -> str:
    """Tells the weather of the next days in a city."""
    return f"{city}: {days} days of rain"


def structured(method: Any) -> dict[str, Any]:
    found = model.with_structured_output(Weather, method=method).invoke(ASKED)
    assert isinstance(found, Weather)
    return found.model_dump()


def call() -> dict[str, Any]:
    """A call of a function, the streamed one, and the answer to what it gives."""
    bound = model.bind_tools([forecast], tool_choice="any")
    first = bound.invoke(ASKED)
    whole = None
    for chunk in bound.stream(ASKED):
        whole = chunk if whole is None else whole + chunk
    [made] = first.tool_calls
    history = [HumanMessage(ASKED), first, ToolMessage("rain", tool_call_id=made["id"])]
    after = model.bind_tools([forecast]).bind(max_tokens=8).invoke(history)
    return {
        "name": made["name"],
        "args": made["args"],
        "streamed": [(one["name"], one["args"]) for one in getattr(whole, "tool_calls", ())],
        "finish_reason": first.response_metadata["finish_reason"],
        "after": after.response_metadata["finish_reason"],
    }


found = {"json_schema": structured("json_schema"), "function_calling": structured("function_calling"), "call": call()}
sys.stdout.write(json.dumps(found))
