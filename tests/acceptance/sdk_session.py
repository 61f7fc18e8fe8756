"""A session of the OpenAI SDK with a server, in whichever version this interpreter has. Run as a script.

The calls are those of OpenAI's own documentation; base URL and key come from the environment, as the SDK takes them.
Prints what came of them as one JSON object, for `test_sdk`. Arguments: the model, and a batch file.
"""

import json
import sys
import time
from pathlib import Path

import openai
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

MODEL, BATCH_FILE = sys.argv[1], Path(sys.argv[2])
#: Seconds in which a batch of a few lines ends.
PATIENCE_S = 300

client = OpenAI(max_retries=0)


def complete() -> dict[str, object]:
    completion = client.completions.create(model=MODEL, prompt="Say this is a test", max_tokens=7, temperature=0)
    assert completion.usage
    several = client.completions.create(model=MODEL, prompt=["One, two,", "A, B,"], max_tokens=4, temperature=0, n=2)
    return {
        "object": completion.object,
        "system_fingerprint": completion.system_fingerprint,
        "text": completion.choices[0].text,
        "finish_reason": completion.choices[0].finish_reason,
        "usage": completion.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
        "indices": [choice.index for choice in several.choices],
    }


def stream() -> dict[str, object]:
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="Say this is a test",
            max_tokens=7,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].usage
    told = [chunk for chunk in chunks if chunk.choices]
    return {
        "text": "".join(chunk.choices[0].text for chunk in told),
        "finish_reasons": [chunk.choices[0].finish_reason for chunk in told],
        "completion_tokens": chunks[-1].usage.completion_tokens,
        "system_fingerprint": chunks[0].system_fingerprint,
    }


def chat() -> dict[str, object]:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0)
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0, stream=True)
    )
    return {
        "role": whole.choices[0].message.role,
        "content": whole.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    }


def list_models() -> dict[str, object]:
    return {"ids": [model.id for model in client.models.list()], "one": client.models.retrieve(MODEL).id}


def run_batch() -> dict[str, object]:
    with BATCH_FILE.open("rb") as file:
        batch_input_file = client.files.create(file=file, purpose="batch")
    batch = client.batches.create(
        input_file_id=batch_input_file.id,
        endpoint="/v1/completions",
        completion_window="24h",
        metadata={"description": "nightly eval job"},
    )
    first = batch.status
    deadline = time.monotonic() + PATIENCE_S
    while batch.status not in {"completed", "failed", "expired", "cancelled"} and time.monotonic() < deadline:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts
    output = client.files.content(batch.output_file_id).text if batch.output_file_id else ""
    errors = client.files.content(batch.error_file_id).text if batch.error_file_id else ""
    return {
        "first_status": first,
        "status": batch.status,
        "counts": batch.request_counts.model_dump(),
        "metadata": batch.metadata,
        "output": [json.loads(line) for line in output.splitlines()],
        "errors": [json.loads(line) for line in errors.splitlines()],
        "is_listed": batch.id in [each.id for each in client.batches.list(limit=10)],
        "input_is_listed": batch_input_file.id in [each.id for each in client.files.list()],
        "deleted": client.files.delete(batch_input_file.id).deleted,
    }


def cancel_batch() -> str:
    # More than could be completed before the cancellation comes.
    body = {"model": MODEL, "prompt": "Count on.", "max_tokens": 1000}
    frame = {"method": "POST", "url": "/v1/completions", "body": body}
    lines = [json.dumps({"custom_id": f"request-{number}", **frame}) for number in range(500)]
    uploaded = client.files.create(file=("long.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
    return client.batches.cancel(batch.id).status


def meet_errors() -> dict[str, str]:
    def name_of(call: object) -> str:
        try:
            call()  # type: ignore[operator]
        except openai.APIStatusError as exc:
            return f"{type(exc).__name__} {exc.status_code} {exc.code}"
        return "none"

    def crowd() -> None:
        # As many streams as the server takes at a time, none of which is read, and one more.
        streams = [
            client.completions.create(model=MODEL, prompt="Count.", max_tokens=1000, stream=True) for _ in range(2)
        ]
        try:
            client.completions.create(model=MODEL, prompt="Me too.")
        finally:
            for one in streams:
                one.close()

    stranger = OpenAI(api_key="wrong", max_retries=0)
    return {
        "wrong key": name_of(lambda: stranger.models.list()),
        "bad value": name_of(lambda: client.completions.create(model=MODEL, prompt="x", max_tokens=-1)),
        "too long": name_of(lambda: client.completions.create(model=MODEL, prompt="x " * 9000)),
        "no such model": name_of(lambda: client.completions.create(model="none", prompt="x")),
        "no such batch": name_of(lambda: client.batches.retrieve("batch_0123456789abcdef01234567")),
        "no such file": name_of(lambda: client.files.retrieve("file-0123456789abcdef01234567")),
        "crowd": name_of(crowd),
    }


print(
    json.dumps(
        {
            "version": openai.__version__,
            "models": list_models(),
            "completion": complete(),
            "stream": stream(),
            "chat": chat(),
            "batch": run_batch(),
            "cancelled": cancel_batch(),
            "errors": meet_errors(),
        }
    )
)
