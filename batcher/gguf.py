"""What a GGUF file says of its model at its beginning, read without llama.cpp and without the weights.

After https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a head, pairs of key and value, and of each tensor its
name, shape and type.
"""

import itertools
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

#: The first four bytes of every GGUF file.
GGUF_MAGIC = b"GGUF"

_ARCHITECTURE = "general.architecture"
#: Versions whose lengths have 64 bits. In files for big-endian machines the version is a large number.
_VERSIONS = (2, 3)
#: The numbers by the format's ids of their types.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
#: Longer ones are of a damaged file; the largest are chat templates.
_MAX_STRING_BYTES = 1 << 24
_MAX_PAIRS = _MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 8
#: Longer arrays are no numbers of layers, and passed over.
_MAX_KEPT_NUMBERS = 1 << 12
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ArrayLength:
    """An array whose elements were not kept: how many they are."""

    number: int


#: Short arrays of numbers are tuples, other arrays their length.
Value = int | float | str | tuple[float, ...] | ArrayLength


@dataclass(frozen=True, slots=True)
class Tensor:
    """`shape` begins with the dimension that is contiguous. `kind` is ggml's number of its type (ggml.h)."""

    shape: tuple[int, ...]
    kind: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A file up to its weights. `values` by the format's keys, `tensors` by name; `num_bytes` are the whole file's."""

    num_bytes: int
    num_tensors: int
    values: Mapping[str, Value] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)

    @property
    def architecture(self) -> str | None:
        """`llama`, `gemma3`; None where the file does not say."""
        found = self.values.get(_ARCHITECTURE)
        return found if isinstance(found, str) else None

    @property
    def kind(self) -> str | None:
        """`model`, `adapter`, `mmproj`, `vocab`; None where the file does not say, as older ones don't."""
        found = self.values.get("general.type")
        return found if isinstance(found, str) else None

    def number(self, name: str, default: int = 0) -> int:
        """A whole number that the architecture has, such as `block_count`; of one that has one for each layer, the
        largest."""
        numbers = self.numbers(name)
        return max(numbers, default=default)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Those of each layer; a single one where there is one for all, none where there is none."""
        found = self.values.get(f"{self.architecture}.{name}")
        if isinstance(found, tuple):
            return tuple(map(int, found))
        return (int(found),) if isinstance(found, int) else ()


def read_header(path: Path) -> GgufHeader | None:
    """The header of the file at `path`, all before its weights; None for a file that is none or can't be read."""
    try:
        with path.open("rb") as file:
            head = _Head(file)
            num_tensors, num_pairs = head.read_counts()
            values = dict(head.read_pairs(num_pairs))
            tensors = dict(head.read_tensors(num_tensors))
            return GgufHeader(file.seek(0, os.SEEK_END), num_tensors, values, tensors)
    except (OSError, ValueError, OverflowError, RecursionError, struct.error):
        # llama.cpp says what is wrong with the file.
        return None


def read_summary(path: Path) -> GgufHeader | None:
    """As `read_header`, but only the values before those of the vocabulary, which is long, and no tensors."""
    try:
        with path.open("rb") as file:
            head = _Head(file)
            num_tensors, num_pairs = head.read_counts()
            pairs = itertools.takewhile(lambda pair: not pair[0].startswith("tokenizer."), head.read_pairs(num_pairs))
            values = dict(pairs)
            return GgufHeader(file.seek(0, os.SEEK_END), num_tensors, values, {})
    except (OSError, ValueError, OverflowError, RecursionError, struct.error):
        return None


def trained_context_length(path: Path) -> int | None:
    """Tokens of the context that the model was trained for; None where the file does not say, or can't be read.

    Reads no further than that: it comes before the long arrays of the vocabulary.
    """
    try:
        with path.open("rb") as file:
            return _find_context_length(_Head(file))
    except (OSError, ValueError, OverflowError, RecursionError, struct.error):
        return None


def chat_template(path: Path) -> str | None:
    """The Jinja source of the model's chat template; None where the file has none, or can't be read."""
    header = read_header(path)
    found = None if header is None else header.values.get("tokenizer.chat_template")
    return found if isinstance(found, str) else None


def _find_context_length(head: "_Head") -> int | None:
    _, num_pairs = head.read_counts()
    architecture = None
    lengths: dict[str, int] = {}
    for key, value in head.read_pairs(num_pairs):
        if key == _ARCHITECTURE and isinstance(value, str):
            architecture = value
        elif key.endswith(".context_length") and isinstance(value, int):
            lengths[key] = value
        if architecture is not None and f"{architecture}.context_length" in lengths:
            return lengths[f"{architecture}.context_length"]
    return None


class _Head:
    """The beginning of a file, as much of it as was asked for. Raises ValueError for what is no such file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._at = 0

    def read_counts(self) -> tuple[int, int]:
        """How many tensors there are, and how many pairs."""
        magic, version, num_tensors, num_pairs = struct.unpack("<4sIQQ", self._take(24))
        if magic != GGUF_MAGIC or version not in _VERSIONS:
            raise ValueError("no GGUF file of a known version")
        return min(num_tensors, _MAX_TENSORS), min(num_pairs, _MAX_PAIRS)

    def read_pairs(self, number: int) -> Iterator[tuple[str, Value]]:
        for _ in range(number):
            key = self._read_text()
            yield key, self._read_value(self._read("<I"))

    def read_tensors(self, number: int) -> Iterator[tuple[str, Tensor]]:
        for _ in range(number):
            name = self._read_text()
            num_dimensions = self._read("<I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {num_dimensions} dimensions")
            shape = struct.unpack(f"<{num_dimensions}Q", self._take(8 * num_dimensions))
            kind, _ = struct.unpack("<IQ", self._take(12))
            yield name, Tensor(shape, kind)

    def _read_value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._read_text()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"type {kind} is not known")
            return self._read(_NUMBERS[kind])
        element, number = struct.unpack("<IQ", self._take(12))
        return self._read_array(element, number)

    def _read_array(self, element: int, number: int) -> Value:
        if element in _NUMBERS:
            layout = _NUMBERS[element]
            size = struct.calcsize(layout) * number
            if number > _MAX_KEPT_NUMBERS:
                self._skip(size)
                return ArrayLength(number)
            return struct.unpack(f"<{number}{layout[1]}", self._take(size))
        if element == _STRING:
            self._skip_strings(number)
        else:
            for _ in range(number):
                self._read_value(element)
        return ArrayLength(number)

    def _read_text(self) -> str:
        num_bytes = self._read("<Q")
        if num_bytes > _MAX_STRING_BYTES:
            raise ValueError(f"a string of {num_bytes} bytes")
        return self._take(num_bytes).decode("utf-8", errors="replace")

    def _skip_strings(self, number: int) -> None:
        """Pass over many of them: vocabularies have hundreds of thousands."""
        read_length = struct.Struct("<Q").unpack_from
        for _ in range(number):
            if self._at + 8 > len(self._data):
                self._load(8)
            (num_bytes,) = read_length(self._data, self._at)
            if num_bytes > _MAX_STRING_BYTES:
                raise ValueError(f"a string of {num_bytes} bytes")
            self._at += 8 + num_bytes

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes

    def _read(self, layout: str) -> int:
        found: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return found

    def _take(self, num_bytes: int) -> bytes:
        if self._at + num_bytes > len(self._data):
            self._load(num_bytes)
        self._at += num_bytes
        return self._data[self._at - num_bytes : self._at]

    def _load(self, num_bytes: int) -> None:
        """Have the next `num_bytes` at hand, and drop what was read."""
        past = max(0, self._at - len(self._data))
        if past:
            self._file.seek(past, 1)
        kept = self._data[self._at :]
        self._data = kept + self._file.read(max(_BLOCK_BYTES, num_bytes - len(kept)))
        self._at = 0
        if num_bytes > len(self._data):
            raise ValueError("the file ends in its header")
