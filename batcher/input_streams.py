"""Streams of bytes that input is read from: what compression they have, and what they hold without it."""

import io
from typing import Protocol

import pyarrow as pa

_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_CODEC_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


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


def decompressed(head: bytes, stream: Readable, *, suffix: str) -> Readable:
    """What `stream` holds; `head` is what was read of it before, `suffix` that of its name."""
    whole = Prefixed(head, stream)
    codec = _codec(head, suffix)
    return pa.CompressedInputStream(pa.PythonFile(whole, mode="r"), codec) if codec else whole


def _codec(head: bytes, suffix: str) -> str | None:
    for magic, codec in _CODECS.items():
        if head.startswith(magic):
            return codec
    return _CODEC_SUFFIXES.get(suffix) if head else None
