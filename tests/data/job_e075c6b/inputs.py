"""Writes tickets.parquet, bodies.jsonl and batch.jsonl into the folder in which it is called, for make.sh."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: Each letter is a token, and the old runs had room for 256 (`--ctx 128`, which llama.cpp rounds up).
TOO_LONG = "x" * 300


def write_lines(name: str, lines: Sequence[dict[str, Any] | str]) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    Path(name).write_text("".join(f"{text}\n" for text in texts))


def body_line(custom_id: str, body: dict[str, Any], *, chat: bool = False, **carried: Any) -> dict[str, Any]:
    url = "/v1/chat/completions" if chat else "/v1/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **carried}


rows = range(6)
tickets = {
    "custom_id": pa.array([f"ticket-{i}" for i in rows]),
    "prompt": pa.array([TOO_LONG if i == 3 else f"hello {i}" for i in rows]),
    "max_tokens": pa.array([8 + i for i in rows], pa.int32()),
    "priority": pa.array([None if i == 4 else i for i in rows], pa.int16()),
    "opened": pa.array(
        [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=i) for i in rows], pa.timestamp("us", "UTC")
    ),
    "price": pa.array([Decimal(i * 5) / 100 for i in rows], pa.decimal128(9, 2)),
    "raw": pa.array([bytes([i, 255]) for i in rows]),
    "tags": pa.array([[f"t{j}" for j in range(i % 3)] for i in rows], pa.list_(pa.string())),
    "from": pa.array([{"name": f"n{i}", "age": i} for i in rows]),
    "text": pa.array([None if i == 5 else f"körper {i}" for i in rows]),
}
pq.write_table(pa.table(tickets), "tickets.parquet", compression="zstd")

hello = [{"role": "user", "content": "hello"}]
write_lines(
    "bodies.jsonl",
    [
        body_line("n-of-three", {"prompt": "hello", "n": 3, "max_tokens": 4}, priority=100, text="carried"),
        body_line("echoed", {"prompt": ["hello", "world"], "max_tokens": 3, "echo": True}, priority=101),
        body_line("logprobs", {"prompt": "hello", "max_tokens": 3, "logprobs": 2, "seed": 7}),
        body_line("chat", {"messages": hello, "max_tokens": 5, "n": 2}, chat=True, priority=103),
        {"custom_id": "plain", "prompt": "world", "priority": 104, "text": "ü"},
        body_line("best", {"prompt": "hello", "max_tokens": 3, "best_of": 3, "n": 2, "stop": ["\n", "zz"]}),
        body_line("bias", {"prompt": "hello", "max_tokens": 2, "temperature": 0, "logit_bias": {"72": 5.5}}),
        body_line("two-prompts", {"prompt": ["hello", "world"], "max_tokens": 2}, priority=107),
        body_line("n-of-two", {"prompt": "world", "n": 2, "max_tokens": 2}),
        body_line("refused", {"prompt": "hello", "max_tokens": -1}, priority=108),
        "not JSON",
        body_line("other-model", {"model": "another", "prompt": "hello"}, text="no worker has it"),
    ],
)
write_lines(
    "batch.jsonl",
    [
        body_line("a", {"model": "tiny", "prompt": "hello", "max_tokens": 4, "n": 2}),
        body_line("b", {"model": "tiny", "prompt": TOO_LONG, "max_tokens": 4}),
        body_line("c", {"model": "tiny", "prompt": "world", "max_tokens": 4, "logprobs": 1}),
    ],
)
