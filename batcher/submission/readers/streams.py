"""Streams of bytes that input is read from: what compression they have, and what they hold without it.

Before each block that is read, and before each that is unpacked, a stream asks its `Bounds` whether to go on, be there
rows in the blocks before it or not.
"""

import io
import select
import zlib
from typing import Protocol

import pyarrow as pa

from batcher.submission.readers.bounds import Bounds, Checkpoint

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: zlib: the window of a stream in the format of gzip, header and checksum included.
_GZIP_WBITS = 31
_GZIP_BLOCK_BYTES = 64 << 10

BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """All that is asked of an input stream. `read` blocks for up to `size` bytes; empty bytes are its end."""

    def read(self, size: int = -1, /) -> bytes: ...


class Arriving:
    """A stream that waits for the first byte of a block only: of a pipe whose writer pauses it gives what is there.

    A stream that can't tell what is there waits for the whole block.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._read_some = getattr(stream, "read1", None)
        # Not `select.select`, which refuses the descriptors above 1,023 that a busy server has.
        self._poll = select.poll()
        try:
            self._poll.register(stream.fileno(), select.POLLIN)  # type: ignore[attr-defined]
        except (AttributeError, OSError):
            self._read_some = None

    def read(self, size: int = -1, /) -> bytes:
        if self._read_some is None or size < 0:
            return self._stream.read(size)
        data: bytes = self._read_some(size)
        while 0 < len(data) < size and self._poll.poll(0):
            piece = self._read_some(size - len(data))
            if not piece:
                break
            data += piece
        return data


class Prefixed(io.RawIOBase):
    """A stream with the bytes put back that were read from it to see what it is."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if size < 0:
            head, self._head = self._head, b""
            return head + self._stream.read(size)
        if self._head and size:
            # Alone, as there may be nothing behind it yet.
            head, self._head = self._head[:size], self._head[size:]
            return head
        return self._stream.read(size)


class _GzipStream:
    """What the members of a gzip file hold, one after another. Zeros behind a member, as tapes pad it, are left out.

    Raises OSError for a file that is cut short or damaged. Not pyarrow's: it takes zeros for a damaged member.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._member = zlib.decompressobj(wbits=_GZIP_WBITS)
        self._packed = b""
        self._is_between = False

    def read(self, size: int = -1, /) -> bytes:
        while True:
            if not self._packed:
                self._packed = self._stream.read(_GZIP_BLOCK_BYTES)
                if not self._packed:
                    if not self._is_between:
                        raise OSError("the gzip data ends in the middle")
                    return b""
            if self._is_between:
                self._packed = self._packed.lstrip(b"\0")
                if not self._packed:
                    continue
                self._member = zlib.decompressobj(wbits=_GZIP_WBITS)
                self._is_between = False
            try:
                data = self._member.decompress(self._packed, size if size > 0 else _GZIP_BLOCK_BYTES)
            except zlib.error as exc:
                raise OSError(f"the gzip data is damaged: {exc}") from exc
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._is_between = self._member.eof
            if data:
                return data


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins with these 4 bytes is compressed in a way that `decompressed` knows."""
    return head.startswith((_GZIP, _ZSTD))


class _Asking(io.RawIOBase):
    """A stream that asks at each block whether to go on, and counts."""

    def __init__(self, stream: Readable, checkpoint: Checkpoint) -> None:
        self._stream = stream
        self._checkpoint = checkpoint
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        self._checkpoint()
        data = self._stream.read(size)
        self.num_bytes += len(data)
        return data


class _Unpacked:
    """What a compressed stream holds, which it refuses to become too much."""

    def __init__(self, stream: Readable, packed: _Asking, name: str, bounds: Bounds) -> None:
        self._stream = _Asking(stream, bounds.checkpoint)
        self._packed = packed
        self._name = name
        self._limits = bounds.limits

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._limits.check(self._name, num_packed=self._packed.num_bytes, num_unpacked=self._stream.num_bytes)
        return data


def is_zstd(head: bytes) -> bool:
    """Whether a file that begins so is of zstd, which may hold 128 MB of what was unpacked to refer to."""
    return head.startswith(_ZSTD)


def decompressed(head: bytes, stream: Readable, *, name: str, bounds: Bounds) -> Readable:
    """What `stream` holds without its compression, if it has one; `head` are the first 4 bytes, read before.

    Its `read` raises InputError, which calls it `name`, for what unpacks to too much, and whatever
    `bounds.checkpoint` does.
    """
    whole = _Asking(Prefixed(head, stream), bounds.checkpoint)
    if head.startswith(_GZIP):
        return _Unpacked(_GzipStream(whole), whole, name, bounds)
    if head.startswith(_ZSTD):
        unpacked = pa.CompressedInputStream(pa.PythonFile(whole, mode="r"), "zstd")
        return _Unpacked(unpacked, whole, name, bounds)
    return whole
