"""JSONL -> batches of lines."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic_core import from_json

from batcher.errors import InputError
from batcher.submission.readers.raw_rows import LineBatch, Origin
from batcher.submission.readers.streams import BOM, Prefixed, Readable

#: A longer line becomes an error row: while it is checked and written, a line is held in memory up to nine times over.
MAX_LINE_BYTES = 32 << 20
_BLOCK_BYTES = 256 << 10
#: What the first element of an array begins with, if the elements may be rows.
_OF_ROWS = (b"{", b'"')


def read_lines(stream: Readable, name: str, *, path: Path | None = None) -> Iterator[LineBatch]:
    """The lines of a stream of JSONL, without compression, in bounded memory. Messages call it `name`.

    Raises InputError for JSON that is not one object a line, with the remedy for the file at `path`.
    """
    head = _read_head(stream).removeprefix(BOM)
    _refuse_documents(head, name, path)
    number = 1
    for lines in _split_lines(Prefixed(head, stream)):
        kept = [i for i, line in enumerate(lines) if line is None or (line and not line.isspace())]
        numbers: Sequence[int] = range(number, number + len(lines))
        number += len(lines)
        if len(kept) < len(lines):
            numbers = [numbers[i] for i in kept]
            lines = [lines[i] for i in kept]
        if lines:
            yield LineBatch(Origin(name, ":", numbers), lines)


def _read_head(stream: Readable) -> bytes:
    """The beginning of a stream, far enough to tell what it is; a pipe may give it in pieces."""
    head = b""
    while len(head) < _BLOCK_BYTES and (piece := stream.read(_BLOCK_BYTES - len(head))):
        head += piece
        first, newline, rest = head.removeprefix(BOM).lstrip().partition(b"\n")
        # Of what may be an array, the second line is needed, too.
        if newline and (not first.startswith(b"[") or b"\n" in rest.lstrip()):
            break
    return head


def _refuse_documents(head: bytes, name: str, path: Path | None) -> None:
    """Raise InputError for a file that begins as an array of rows, or as an object over several lines.

    A first line that is bad in another way is a bad row, and the others are read.
    """
    text = head.lstrip()
    first, newline, rest = text.partition(b"\n")
    if first.rstrip() == b"{":
        raise InputError(
            f"{name}: is JSON over several lines; write one object on each line: {_as_lines(name, path, '.')}"
        )
    if not text.startswith(b"["):
        return
    element = text[1:].lstrip()[:1]
    is_one_line = newline and _is_json(first)
    if first.rstrip() == b"[" or (is_one_line and not rest.strip() and element in _OF_ROWS):
        is_array = True
    else:
        # The second line tells an array whose first row is broken off from a row that is.
        second = rest.lstrip().partition(b"\n")[0]
        is_array = element in _OF_ROWS and not is_one_line and not _is_json(second)
    if is_array:
        filter_ = ".[] | {prompt: .}" if element == b'"' else ".[]"
        raise InputError(f"{name}: is a JSON array; write one object on each line: {_as_lines(name, path, filter_)}")


def _is_json(line: bytes) -> bool:
    try:
        from_json(line)
    except ValueError:
        return False
    return True


def _as_lines(name: str, path: Path | None, filter_: str) -> str:
    """The command that makes JSONL of a file, with jq and with Python."""
    if path is None:
        return f"pipe it through jq -c '{filter_}'"
    stem = name[: -len(path.suffix)] if path.suffix in (".gz", ".zst") else name
    source, target = shlex.quote(name), shlex.quote(f"{stem.removesuffix('.json').removesuffix('.jsonl')}.lines.jsonl")
    unpack = {".gz": f"gzip -dc {source} | ", ".zst": f"zstd -dc {source} | "}.get(path.suffix, "")
    jq = f"{unpack}jq -c '{filter_}'{'' if unpack else ' ' + source} > {target}"
    # Of bytes, json.load bears a byte order mark.
    rows = {".": "[json.load(sys.stdin.buffer)]", ".[]": "json.load(sys.stdin.buffer)"}.get(
        filter_, "[{'prompt': text} for text in json.load(sys.stdin.buffer)]"
    )
    feed = f"{unpack}python3" if unpack else "python3"
    program = f"import json, sys; [print(json.dumps(row)) for row in {rows}]"
    python = f'{feed} -c "{program}"{"" if unpack else " < " + source} > {target}'
    return f"{jq}   or   {python}"


def _split_lines(stream: Readable) -> Iterator[list[bytes | None]]:
    """The lines of a stream, a block's worth at a time. A line that is too long is not kept, and comes out as None."""
    held: list[bytes] = []
    held_bytes = 0
    while block := stream.read(_BLOCK_BYTES):
        lines: list[bytes | None] = [*block.split(b"\n")]
        first, last = lines[0], lines.pop()
        assert first is not None
        assert last is not None
        held_bytes += len(first)
        held.append(first)
        if held_bytes > MAX_LINE_BYTES:
            held.clear()
        if lines:
            lines[0] = b"".join(held) if held_bytes <= MAX_LINE_BYTES else None
            held, held_bytes = [last], len(last)
            yield lines
    if held_bytes:
        yield [b"".join(held) if held_bytes <= MAX_LINE_BYTES else None]
