"""A session of litellm with a server, as its own documentation calls an OpenAI-compatible endpoint. Run as a script.

Base URL and key come from the environment. Prints what came of the calls as one JSON object, for `test_clients`.
Arguments: the model, and a batch file.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litellm

MODEL, BATCH_FILE = sys.argv[1], Path(sys.argv[2])
CHAT, TEXT = f"openai/{MODEL}", f"text-completion-openai/{MODEL}"
PATIENCE_S = 300

HELLO = [{"role": "user", "content": "Say hello."}]
HISTORY = [
    {"role": "user", "content": "How warm is it in Ulm?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
]
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "max_retries": 0, "num_retries": 0}


def chat() -> dict[str, object]:
    whole = litellm.completion(model=CHAT, messages=HELLO, **GREEDY)
    usage = {"stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(model=CHAT, messages=HELLO, stream=True, **usage, **GREEDY))
    several = litellm.batch_completion(model=CHAT, messages=[HELLO, HISTORY], **GREEDY)
    return {
        "text": whole.choices[0].message.content,
        "usage": counts(whole.usage),
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "streamed_usage": counts(chunks[-1].usage),
        "batch": [one.choices[0].finish_reason for one in several],
    }


def complete() -> dict[str, object]:
    whole = litellm.text_completion(model=TEXT, prompt="The capital of France is", **GREEDY)
    chunks = list(litellm.text_completion(model=TEXT, prompt="The capital of France is", stream=True, **GREEDY))
    return {
        "text": whole.choices[0].text,
        "usage": counts(whole.usage),
        "streamed": "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices),
    }


def counts(usage: Any) -> dict[str, int]:
    return {
        "prompt": usage.prompt_tokens,
        "completion": usage.completion_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
    }


def run_batch() -> dict[str, object]:
    with BATCH_FILE.open("rb") as file:
        uploaded = litellm.create_file(file=file, purpose="batch", custom_llm_provider="openai")
    batch = litellm.create_batch(
        completion_window="24h",
        endpoint="/v1/completions",
        input_file_id=uploaded.id,
        custom_llm_provider="openai",
    )
    deadline = time.monotonic() + PATIENCE_S
    while batch.status not in {"completed", "failed"} and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = litellm.retrieve_batch(batch_id=batch.id, custom_llm_provider="openai")
    content = litellm.file_content(file_id=batch.output_file_id, custom_llm_provider="openai").content
    return {"status": batch.status, "custom_ids": [json.loads(line)["custom_id"] for line in content.splitlines()]}


def meet_errors() -> dict[str, str]:
    def ask(**changes: Any) -> Any:
        return litellm.completion(**({"model": CHAT, "messages": HELLO} | GREEDY | changes))

    def crowd() -> None:
        # As many streams as the server takes at a time, none of which is read, and one more.
        streams = [ask(max_tokens=1000, stream=True) for _ in range(2)]
        try:
            ask()
        finally:
            for one in streams:
                one.completion_stream.close()

    long = "word " * 3000
    return {
        "wrong key": name_of(lambda: ask(api_key="sk-wrong")),
        "no such model": name_of(lambda: ask(model="openai/none")),
        "long chat": name_of(lambda: ask(messages=[{"role": "user", "content": long}])),
        "long prompt": name_of(lambda: litellm.text_completion(model=TEXT, prompt=long, **GREEDY)),
        "long answer": name_of(lambda: ask(max_tokens=100_000)),
        "bad value": name_of(lambda: ask(max_tokens=-1)),
        "crowd": name_of(crowd),
    }


def name_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as exc:
        return f"{type(exc).__name__} {getattr(exc, 'status_code', None)}"
    return "none"


found = {"chat": chat(), "completion": complete(), "batch": run_batch(), "errors": meet_errors()}
sys.stdout.write(json.dumps(found))
