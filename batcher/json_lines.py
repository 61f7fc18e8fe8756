"""JSONL -> batches of lines."""

from collections.abc import Iterator, Sequence

from batcher.input_batches import LineBatch, Origin
from batcher.input_streams import Readable

#: A longer line becomes an error row: while it is checked and written, a line is held in memory up to nine times over.
MAX_LINE_BYTES = 32 << 20
_BLOCK_BYTES = 256 << 10

_BOM = b"\xef\xbb\xbf"


def read_lines(stream: Readable, name: str) -> Iterator[LineBatch]:
    """The lines of a stream of JSONL, without compression, in bounded memory. Messages call it `name`."""
    number = 1
    for lines in _split_lines(stream):
        first = lines[0]
        if number == 1 and first is not None:
            lines[0] = first.removeprefix(_BOM)
        kept = [i for i, line in enumerate(lines) if line is None or (line and not line.isspace())]
        numbers: Sequence[int] = range(number, number + len(lines))
        number += len(lines)
        if len(kept) < len(lines):
            numbers = [numbers[i] for i in kept]
            lines = [lines[i] for i in kept]
        if lines:
            yield LineBatch(Origin(name, ":", numbers), lines)


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
