"""Streams of bytes that input is read from: what compression they have, and what they hold without it."""

import io
import zlib
from typing import Protocol

import pyarrow as pa

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
#: zlib: the window of a stream in the format of gzip, header and checksum included.
_GZIP_WBITS = 31
_GZIP_BLOCK_BYTES = 64 << 10

BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """All that is asked of an input stream. `read` blocks for up to `size` bytes; empty bytes are its end."""

    def read(self, size: int = -1, /) -> bytes: ...


class Prefixed(io.RawIOBase):
    """A stream with the bytes put back that were read from it to see what it is."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head + self._stream.read(size - len(head) if size >= 0 else size)
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
                data = self._member.decompress(self._packed, max(0, size))
            except zlib.error as exc:
                raise OSError(f"the gzip data is damaged: {exc}") from exc
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._is_between = self._member.eof
            if data:
                return data


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins with these 4 bytes is compressed in a way that `decompressed` knows."""
    return head.startswith((_GZIP, _ZSTD))


def decompressed(head: bytes, stream: Readable) -> Readable:
    """What `stream` holds without its compression, if it has one; `head` are the first 4 bytes, read before."""
    whole = Prefixed(head, stream)
    if head.startswith(_GZIP):
        return _GzipStream(whole)
    if head.startswith(_ZSTD):
        unpacked: Readable = pa.CompressedInputStream(pa.PythonFile(whole, mode="r"), "zstd")
        return unpacked
    return whole
