"""What an engine is, in a few characters: the API's `system_fingerprint`.

Where it is the same, so are the model's file, the versions of Batcher and llama.cpp, and what llama.cpp was built for
and computes on; so the same seed draws the same, but for rounding. It says nothing else: it can't be undone.
"""

import hashlib
import os
from pathlib import Path

import batcher
from batcher.errors import ModelError
from batcher.model_files import Adapter, split_files

#: Bytes and number of the blocks that stand for a file, spread evenly over it. A model of gigabytes is not read for it,
#: and of two whose weights or templates differ hardly all of these are the same.
_BLOCK_BYTES = 16 << 10
_NUM_BLOCKS = 64
_NUM_DIGITS = 12


def system_fingerprint(path: Path, *, backend: str, adapter: Adapter | None = None) -> str:
    """The fingerprint of the model at `path`, computed by `backend` (its version, and what it was built for).

    Reads a megabyte of each of the model's files. Raises ModelError.
    """
    hasher = hashlib.sha256(f"{batcher.__version__}\n{backend}\n".encode())
    files = split_files(path)
    if adapter is not None:
        files.append(adapter.path)
        hasher.update(f"{adapter.scale}\n".encode())
    for file in files:
        try:
            _add_file(hasher, file)
        except OSError as exc:
            raise ModelError(f"{file}: cannot read the model file: {exc.strerror or exc}") from exc
    return f"fp_{hasher.hexdigest()[:_NUM_DIGITS]}"


def _add_file(hasher: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        hasher.update(f"{size}\n".encode())
        last = max(0, size - _BLOCK_BYTES)
        for position in sorted({last * number // (_NUM_BLOCKS - 1) for number in range(_NUM_BLOCKS)}):
            file.seek(position)
            hasher.update(file.read(_BLOCK_BYTES))
