"""What a GGUF file says of its model at its beginning, read without llama.cpp and without the rest of the file.

After https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a head, then pairs of key and value.
"""

import struct
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
_MAX_PAIRS = 1 << 16


def trained_context_length(path: Path) -> int | None:
    """Tokens of the context that the model was trained for; None where the file does not say, or can't be read."""
    try:
        with path.open("rb") as file:
            return _find_context_length(file)
    except (OSError, ValueError, OverflowError, RecursionError, struct.error):
        # llama.cpp says what is wrong with the file.
        return None


def _find_context_length(file: BinaryIO) -> int | None:
    magic, version, _, num_pairs = struct.unpack("<4sIQQ", file.read(24))
    if magic != GGUF_MAGIC or version not in _VERSIONS:
        return None
    architecture = None
    lengths: dict[str, int] = {}
    for _ in range(min(num_pairs, _MAX_PAIRS)):
        key = _read_string(file).decode("utf-8", errors="replace")
        value = _read_value(file, *_unpack("<I", file))
        if key == _ARCHITECTURE and isinstance(value, bytes):
            architecture = value.decode("utf-8", errors="replace")
        elif key.endswith(".context_length") and isinstance(value, int):
            lengths[key] = value
        # They come early, before the long arrays of the vocabulary.
        if architecture is not None and f"{architecture}.context_length" in lengths:
            return lengths[f"{architecture}.context_length"]
    return None


def _read_value(file: BinaryIO, kind: int) -> object:
    """The next value, which is passed over where it is an array."""
    if kind == _STRING:
        return _read_string(file)
    if kind != _ARRAY:
        if kind not in _NUMBERS:
            raise ValueError(f"type {kind} is not known")
        return _unpack(_NUMBERS[kind], file)[0]
    element, number = _unpack("<IQ", file)
    if element in _NUMBERS:
        file.seek(struct.calcsize(_NUMBERS[element]) * number, 1)
    else:
        for _ in range(number):
            _read_value(file, element)
    return None


def _read_string(file: BinaryIO) -> bytes:
    (num_bytes,) = _unpack("<Q", file)
    if num_bytes > _MAX_STRING_BYTES:
        raise ValueError(f"a string of {num_bytes} bytes")
    return file.read(num_bytes)


def _unpack(layout: str, file: BinaryIO) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
