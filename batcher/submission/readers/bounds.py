"""What bounds the reading of an input: somebody who may end it, and how much may come out of a small file.

A reader asks for each block of bytes that it reads or unpacks. To ask for each row is not enough: a file of a few MB
can hold gigabytes that make no row.
"""

from collections.abc import Callable
from dataclasses import dataclass

from batcher.errors import InputError

#: A longer line, or row of a table, becomes an error row: while it is checked and written, it is held in memory up to
#: nine times over.
MAX_LINE_BYTES = 32 << 20

#: Called before each block; what it raises ends the reading. It is called often, so it must be fast.
Checkpoint = Callable[[], None]

#: Of a compressed file unpacked, in bytes.
MAX_UNPACKED_BYTES = 256 << 30
#: Times its size that a compressed file may unpack to. Of a batch of chats that have 40 kB in common, zstd makes a
#: thousandth; gzip can't make less of anything.
MAX_RATIO = 1000
#: Up to here the ratio is nobody's concern.
FREE_BYTES = 1 << 30


def go_on() -> None:
    """The checkpoint of those who read for themselves: nobody stops them but a signal."""


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """How much a compressed file may become: `max_unpacked_bytes`, and beyond the first `FREE_BYTES` also `max_ratio`
    times its own size (0: however large)."""

    max_unpacked_bytes: int = MAX_UNPACKED_BYTES
    max_ratio: int = MAX_RATIO

    def check(self, name: str, *, num_packed: int, num_unpacked: int) -> None:
        """Raise InputError if so many bytes may not become so many. Messages call the file `name`."""
        self.check_size(name, num_unpacked)
        if num_unpacked > FREE_BYTES and 0 < self.max_ratio < num_unpacked / max(1, num_packed):
            raise InputError(
                f"{name}: unpacks to more than {self.max_ratio:,} times its size ({num_packed:,} bytes made "
                f"{num_unpacked:,} so far); if that is what you mean, unpack it first, or allow more with --max-ratio"
            )

    def check_size(self, name: str, num_unpacked: int) -> None:
        """Raise InputError for so many bytes, however they were packed."""
        if num_unpacked > self.max_unpacked_bytes:
            raise InputError(
                f"{name}: unpacks to more than {self.max_unpacked_bytes:,} bytes; split it, or allow more with "
                "--max-unpacked"
            )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds the reading of an input, in time by `checkpoint`."""

    checkpoint: Checkpoint = go_on
    limits: UnpackLimits = UnpackLimits()
    max_line_bytes: int = MAX_LINE_BYTES


NO_BOUNDS = Bounds()
