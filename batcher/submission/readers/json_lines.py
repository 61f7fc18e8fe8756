"""JSONL -> batches of lines."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic_core import from_json

from batcher.errors import InputError
from batcher.submission.readers.bounds import MAX_LINE_BYTES
from batcher.submission.readers.raw_rows import LineBatch, Origin
from batcher.submission.readers.streams import BOM, Prefixed, Readable

_BLOCK_BYTES = 256 << 10
#: As many are handed on at a time. A block can hold a quarter of a million.
_MAX_BATCH_LINES = 4096
#: Blank lines one after another, in bytes, and the rest of a line that is too long: beyond these a file is no JSONL.
MAX_BLANK_BYTES = 32 << 20
MAX_SKIPPED_BYTES = 1 << 30
#: What the first element of an array begins with, if the elements may be rows.
_OF_ROWS = (b"{", b'"')


def read_lines(
    stream: Readable, name: str, *, path: Path | None = None, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[LineBatch]:
    """The lines of a stream of JSONL, without compression, in bounded memory. Messages call it `name`.

    Raises InputError for JSON that is not one object a line, with the remedy for the file at `path`, for a line without
    end, and for too many blank lines in a row.
    """
    head = _read_head(stream).removeprefix(BOM)
    _refuse_documents(head, name, path)
    for first, lines in _split_lines(Prefixed(head, stream), name, max_bytes):
        kept = [i for i, line in enumerate(lines) if line is None or (line and not line.isspace())]
        numbers: Sequence[int] = range(first, first + len(lines))
        if len(kept) < len(lines):
            numbers = [numbers[i] for i in kept]
            lines = [lines[i] for i in kept]
        for start in range(0, len(lines), _MAX_BATCH_LINES):
            end = start + _MAX_BATCH_LINES
            yield LineBatch(Origin(name, ":", numbers[start:end]), lines[start:end], max_bytes=max_bytes)


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


def _split_lines(stream: Readable, name: str, max_bytes: int) -> Iterator[tuple[int, list[bytes | None]]]:
    """The lines of a stream, a block's worth at a time, and the number of the first. Blocks of blanks are left out.

    A line of over `max_bytes` is not kept, and comes out as None. Raises InputError for one that seems to have no end,
    and for blank lines without end.
    """
    number = 1
    held: list[bytes] = []
    held_bytes = blank_bytes = 0
    is_blank = True
    while block := stream.read(_BLOCK_BYTES):
        if is_blank and block.isspace():
            blank_bytes += len(block)
            _check_blank(blank_bytes, name, number)
            before, newline, rest = block.rpartition(b"\n")
            if newline:
                number += before.count(b"\n") + 1
                held, held_bytes = [], 0
            held.append(rest)
            held_bytes += len(rest)
            continue
        blank_bytes = 0
        lines: list[bytes | None] = [*block.split(b"\n")]
        first, last = lines[0], lines.pop()
        assert first is not None
        assert last is not None
        held_bytes += len(first)
        held.append(first)
        is_blank = False
        if held_bytes > max_bytes:
            held.clear()
            _check_skipped(held_bytes - max_bytes, name, number, max_bytes)
        if lines:
            lines[0] = b"".join(held) if held_bytes <= max_bytes else None
            held, held_bytes = [last], len(last)
            is_blank = not last or last.isspace()
            yield number, lines
            number += len(lines)
    if held_bytes:
        yield number, [b"".join(held) if held_bytes <= max_bytes else None]


def _check_blank(num_bytes: int, name: str, number: int) -> None:
    if num_bytes > MAX_BLANK_BYTES:
        raise InputError(
            f"{name}: the lines before {number} are blank, more than {MAX_BLANK_BYTES >> 20} MB of them in a row; "
            "leave them out, as grep -v '^[[:space:]]*$' does"
        )


def _check_skipped(num_bytes: int, name: str, number: int, max_bytes: int) -> None:
    if num_bytes > MAX_SKIPPED_BYTES:
        raise InputError(
            f"{name}:{number}: the line is longer than {max_bytes >> 20} MB, and has no end for "
            f"{MAX_SKIPPED_BYTES >> 20} MB more; give a file of lines, one JSON object on each"
        )
