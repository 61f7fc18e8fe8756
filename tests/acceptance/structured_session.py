"""A session of the OpenAI SDK with a server: answers that are typed, and functions that are called. Run as a script.

Base URL and key come from the environment, as the SDK takes them. Prints what came of the calls as one JSON object, for
`test_structured`. Argument: the model.
"""

import json
import sys
from typing import Any, Literal

import openai
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel, Field

MODEL = sys.argv[1]


class Reading(BaseModel):
    """How warm it was."""

    kind: Literal["air", "water"]
    degrees: int = Field(ge=-30, le=50)


class Report(BaseModel):
    city: str = Field(max_length=20)
    readings: list[Reading] = Field(min_length=1, max_length=2)


class Weather(BaseModel):
    """Tells the weather in a city."""

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


class Now(BaseModel):
    """Tells the time."""


client = openai.OpenAI(max_retries=0)
ASKED: Any = [{"role": "user", "content": "How is the weather in Ulm?"}]
TOOLS: Any = [openai.pydantic_function_tool(Weather), openai.pydantic_function_tool(Now)]
USUAL: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 200, "seed": 5}


def parse_report() -> dict[str, Any]:
    completion = client.chat.completions.parse(**USUAL, response_format=Report)
    report = completion.choices[0].message.parsed
    assert isinstance(report, Report)
    return report.model_dump()


def call_tool() -> dict[str, Any]:
    """What is called, and the answer to what that gives."""
    completion = client.chat.completions.parse(**USUAL, tools=TOOLS, tool_choice="required")
    [choice] = completion.choices
    [call] = choice.message.tool_calls or []
    parsed = call.function.parsed_arguments
    assert isinstance(parsed, Weather | Now)
    answer: Any = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    history = [*ASKED, choice.message.model_dump(exclude_none=True), answer]
    after = client.chat.completions.create(**{**USUAL, "messages": history, "max_tokens": 8}, tools=TOOLS)
    return {
        "name": call.function.name,
        "arguments": call.function.arguments,
        "content": choice.message.content,
        "finish_reason": choice.finish_reason,
        "after": after.choices[0].finish_reason,
    }


def call_named() -> list[str]:
    named: Any = {"type": "function", "function": {"name": "Now"}}
    completion = client.chat.completions.create(**USUAL, tools=TOOLS, tool_choice=named)
    return [call.function.name for call in completion.choices[0].message.tool_calls or ()]


def stream_call() -> dict[str, Any]:
    """The same call in pieces, as the SDK puts them together, and how many pieces there were."""
    state = ChatCompletionStreamState(input_tools=TOOLS)
    num_pieces = 0
    for chunk in client.chat.completions.create(**USUAL, tools=TOOLS, tool_choice="required", stream=True):
        num_pieces += sum(bool(choice.delta.tool_calls) for choice in chunk.choices)
        state.handle_chunk(chunk)
    [choice] = state.get_final_completion().choices
    [call] = choice.message.tool_calls or []
    return {
        "name": call.function.name,
        "arguments": call.function.arguments,
        "is_parsed": call.function.parsed_arguments is not None,
        "finish_reason": choice.finish_reason,
        "num_pieces": num_pieces,
    }


def refused() -> str | None:
    wrong: Any = [{"type": "function", "function": {"name": "two words"}}]
    try:
        client.chat.completions.create(**USUAL, tools=wrong)
    except openai.BadRequestError as exc:
        return exc.param
    return None


found = {
    "version": openai.__version__,
    "report": parse_report(),
    "call": call_tool(),
    "named": call_named(),
    "streamed": stream_call(),
    "refused": refused(),
}
sys.stdout.write(json.dumps(found))
