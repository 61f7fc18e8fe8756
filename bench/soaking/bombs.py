"""Small files that become large where they are read, and files that are broken; made once, as bytes."""

import gzip
import io
import json
import random
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

#: Bytes that a bomb becomes; more than any limit lets in, and small enough for the machine if none did.
EXPLODED_BYTES = 128 << 20
MODEL = "tiny"


def batch_lines(number: int, *, max_tokens: int = 4, prompt: str = "hello") -> bytes:
    """The lines of a batch file of completions, by their numbers."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens}
    lines = ({"custom_id": str(n), "method": "POST", "url": "/v1/completions", "body": body} for n in range(number))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def make_bombs() -> dict[str, bytes]:
    """The content of each, by the name of its file. Takes some seconds."""
    lines = batch_lines(100)
    return {
        "newlines.jsonl.gz": _gzip(lambda out: _repeat(out, b"\n" * (1 << 20))),
        "newlines.jsonl.zst": bytes(pa.compress(b"\n" * EXPLODED_BYTES, codec="zstd")),
        "endless.jsonl.gz": _gzip(lambda out: _repeat(out, b"[" * (1 << 20))),
        "one-string.jsonl.gz": _gzip(lambda out: _repeat(out, b"x" * (1 << 20), first=b'{"custom_id": "')),
        "torn.jsonl.gz": gzip.compress(lines)[:-20],
        "no-gzip.jsonl.gz": b"\x1f\x8b" + lines,
        "text.parquet": b"PAR1" + lines + b"PAR1",
        "row.parquet": _parquet("x" * EXPLODED_BYTES),
        "flipped.parquet": _flip(_parquet("hello")),
        "deep.jsonl": b"[" * 200_000 + b"\n",
        "binary.jsonl": random.Random(1).randbytes(100_000),
        "same-ids.jsonl": batch_lines(1) * 1000,
    }


def _repeat(out: gzip.GzipFile, block: bytes, *, first: bytes = b"") -> None:
    out.write(first)
    for _ in range(EXPLODED_BYTES // len(block)):
        out.write(block)


def _gzip(fill: Callable[[gzip.GzipFile], object]) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9) as out:
        fill(out)
    return buffer.getvalue()


def _parquet(text: str) -> bytes:
    """One row whose text is so long, in few bytes."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": [text]}), buffer, compression="zstd")
    return buffer.getvalue()


def _flip(data: bytes) -> bytes:
    """A few bits of the footer are the others."""
    rng = random.Random(2)
    found = bytearray(data)
    for _ in range(8):
        found[rng.randrange(len(found) // 2, len(found) - 8)] ^= 1 << rng.randrange(8)
    return bytes(found)
