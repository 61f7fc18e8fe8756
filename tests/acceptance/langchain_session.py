"""A session of langchain-openai with a server. Run as a script.

Base URL and key come from the environment, as langchain takes them. Prints what came of the calls as one JSON object,
for `test_clients`. Argument: the model.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

MODEL = sys.argv[1]
GREEDY: dict[str, Any] = {"model": MODEL, "max_tokens": 6, "temperature": 0, "max_retries": 0}
HISTORY = [
    HumanMessage("How warm is it in Ulm?"),
    AIMessage("", tool_calls=[{"id": "call_1", "name": "weather", "args": {"city": "Ulm"}}]),
    ToolMessage("21 degrees", tool_call_id="call_1"),
]


def chat() -> dict[str, object]:
    model = ChatOpenAI(**GREEDY)
    whole = model.invoke("Say hello.")
    chunks = list(model.stream("Say hello.", stream_usage=True))
    return {
        "text": whole.content,
        "usage": counts(whole.usage_metadata),
        "streamed": "".join(str(chunk.content) for chunk in chunks),
        "streamed_usage": [counts(chunk.usage_metadata) for chunk in chunks if chunk.usage_metadata],
        "batch": [one.response_metadata["finish_reason"] for one in model.batch(["Say hello.", HISTORY])],
    }


def complete() -> dict[str, object]:
    model = OpenAI(**GREEDY)
    generated = model.generate(["The capital of France is", "One, two, three,"])
    assert generated.llm_output
    return {
        "text": model.invoke("The capital of France is"),
        "streamed": "".join(model.stream("The capital of France is")),
        "batch": model.batch(["The capital of France is", "One, two, three,"]),
        "generated": [one[0].text for one in generated.generations],
        "usage": generated.llm_output["token_usage"],
    }


def counts(usage: Any) -> dict[str, int]:
    return {
        "prompt": usage["input_tokens"],
        "completion": usage["output_tokens"],
        "cached": usage["input_token_details"]["cache_read"],
    }


def meet_errors() -> dict[str, list[str]]:
    def ask(text: str = "Say hello.", **changes: Any) -> object:
        return ChatOpenAI(**(GREEDY | changes)).invoke(text)

    return {
        "wrong key": names_of(lambda: ask(api_key="sk-wrong")),
        "no such model": names_of(lambda: ask(model="none")),
        "long chat": names_of(lambda: ask("word " * 3000)),
        "bad value": names_of(lambda: ask(max_tokens=-1)),
    }


def names_of(call: Callable[[], object]) -> list[str]:
    """The classes of the error that a call raises."""
    try:
        call()
    except Exception as exc:
        return [kind.__name__ for kind in type(exc).__mro__]
    return []


sys.stdout.write(json.dumps({"chat": chat(), "completion": complete(), "errors": meet_errors()}))
