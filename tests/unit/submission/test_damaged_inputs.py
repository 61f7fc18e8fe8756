"""Bytes as they should not be, at random: every reader gives rows or an InputError, and nothing else."""

import contextlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.submission.readers.files import NamedStream, ReadOptions
from batcher.submission.source import SubmitOptions
from batcher.submission.validation import validate
from batcher.types import SamplingParams

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}
PLAIN = {
    "prompt": ["a", "\ud83d\ude00"],
    "max_tokens": 3,
    "stop": ["x"],
    "messages": [{"role": "user", "content": "b"}],
}
TEXT = "\n".join(map(json.dumps, (LINE, PLAIN))).encode()
CSV = b'prompt,custom_id,messages\n"a ""b""\nc",1,"[{""role"": ""user""}]"\nd,2,\n'
PACKED = [zlib.compress(TEXT * 20, wbits=31), pa.compress(TEXT * 20, codec="zstd", asbytes=True)]


def check(data: bytes, format_: str = "jsonl") -> None:
    """Read as submit would. Raises what it should not."""
    reading = ReadOptions(format=format_)
    options = SubmitOptions(default_model="m", params=SamplingParams(), known_models=None, reading=reading)
    with contextlib.suppress(InputError):
        validate([NamedStream(io.BytesIO(data))], options)


def damaged(*whole: bytes) -> st.SearchStrategy[bytes]:
    """One of these texts, in which some bytes are replaced by others, and perhaps the end is missing."""

    def damage(data: bytes, edits: list[tuple[int, bytes]], end: int) -> bytes:
        for position, piece in edits:
            position %= len(data)
            data = data[:position] + piece + data[position + 1 :]
        return data[: end % (len(data) + 1)] if end else data

    edits = st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=4)
    return st.builds(damage, st.sampled_from(whole), edits, st.integers(0, 10_000))


@given(damaged(TEXT, json.dumps(LINE).encode(), json.dumps(PLAIN).encode()))
@settings(max_examples=80, deadline=None)
def test_damaged_lines_are_rows_or_refused(data: bytes) -> None:
    check(data)


@given(damaged(CSV))
@settings(max_examples=60, deadline=None)
def test_damaged_csv_is_rows_or_refused(data: bytes) -> None:
    check(data, "csv")


@given(damaged(*PACKED))
@settings(max_examples=80, deadline=None)
def test_damaged_compression_is_rows_or_refused(data: bytes) -> None:
    check(data)


#: Flips a byte of a Parquet file at each of the given places, reads it, and says how far it came.
PROGRAM = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
from batcher.errors import InputError
from batcher.submission.source import SubmitOptions
from batcher.submission.validation import validate
from batcher.types import SamplingParams
whole, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
options = SubmitOptions(default_model="m", params=SamplingParams(), known_models=None)
for position in map(int, sys.argv[3:]):
    for mask in (0xFF, 0x10, 0x01):
        data = bytearray(whole)
        data[position] ^= mask
        target.write_bytes(data)
        print(position, mask, flush=True)
        try:
            validate([str(target)], options)
        except InputError as exc:
            assert str(target) in str(exc) or "column" in str(exc), exc
print("done")
"""


def test_parquet_with_flipped_bytes_is_rows_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.parquet"
    chats = [[{"role": "user", "content": f"text {i % 3}"}] for i in range(20)]
    pq.write_table(pa.table({"prompt": ["a", "b"] * 10, "n": range(20), "messages": chats}), path)
    places = range(0, path.stat().st_size, 41)
    # In a process of its own: native code may end it.
    target = tmp_path / "flipped.parquet"
    command = [sys.executable, "-c", PROGRAM, str(path), str(target), *map(str, places)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "done", (ended.stdout[-40:], ended.stderr[-2000:])
