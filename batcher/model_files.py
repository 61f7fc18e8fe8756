"""GGUF files of models: their checksums, the parts of split ones, and what their names say.

Which file a name stands for is for `batcher.models` to say. Loading is the engine's business; here a file is only
recognized.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from batcher.errors import InputError, ModelError
from batcher.gguf import GGUF_MAGIC
from batcher.ids import MAX_MODEL_NAME_CHARS, is_model_name
from batcher.model_kinds import check_completes_text
from batcher.paths import whose

SomePath = TypeVar("SomePath", bound=PurePath)

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_QUANTIZATION = re.compile(r"(?<![A-Z0-9])(?:[IT]?Q\d(?:_[A-Z0-9]+)*|B?F16|F32|MXFP4(?:_MOE)?|NVFP4)(?![A-Z0-9])")
#: Of a model split over several files llama.cpp is given the first; the others are no models of their own.
_LATER_SPLIT = re.compile(r"-(?!00001-)\d{5}-of-\d{5}$")
_FIRST_SPLIT = re.compile(r"-00001-of-\d{5}$")
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, a GGUF file of its own, and by how much it changes the model."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A name and the GGUF file it stands for on this machine, with an adapter perhaps."""

    name: str
    path: Path
    adapter: Adapter | None = None

    @property
    def file_spec(self) -> str:
        """What `--model NAME=` takes for it."""
        if self.adapter is None:
            return str(self.path)
        return f"{self.path}+{self.adapter.path}:{self.adapter.scale:g}"


def parse_sha256(specs: Sequence[str], models: Sequence[ModelRef]) -> tuple[tuple[str, str], ...]:
    """Pairs of model name and expected digest, from what `--model-sha256` gives: [NAME=]HEX. Raises InputError.

    NAME can be left out where there is one model.
    """
    names = [model.name for model in models]
    found: dict[str, str] = {}
    for spec in specs:
        name, _, digest = spec.rpartition("=")
        if not _SHA256.fullmatch(digest):
            raise InputError(f"--model-sha256 {spec}: not a SHA-256; give the 64 hex digits that `sha256sum` prints")
        if not name and len(names) != 1:
            raise InputError(f"--model-sha256 {spec}: of which model ({', '.join(names)})? Write NAME={digest}")
        name = name or names[0]
        if name not in names:
            raise InputError(f"--model-sha256 {spec}: no model {name} is served here, only {', '.join(names)}")
        if found.setdefault(name, digest.lower()) != digest.lower():
            raise InputError(f"--model-sha256 {spec}: another digest was given for {name}; leave out one")
    return tuple(found.items())


def verify_sha256(path: Path, digest: str) -> None:
    """Check that the model file at `path` has this digest (64 lower-case hex digits). Reads the whole file.

    Of a model split over several files it is the digest of all, one after the other. Raises ModelError.
    """
    hasher = hashlib.sha256()
    for part in split_files(path):
        try:
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: hasher)
        except OSError as exc:
            raise ModelError(f"{part}: cannot read the model file: {exc.strerror or exc}") from exc
    if hasher.hexdigest() != digest:
        raise ModelError(
            f"{path}: its SHA-256 is {hasher.hexdigest()}, not {digest} as --model-sha256 demands; it is not loaded. "
            "Download it again, or correct the option if you trust the file"
        )


def is_later_split(path: PurePath) -> bool:
    """Whether the file is one of a split model, but not the first, which is the one to be opened."""
    return _LATER_SPLIT.search(path.name.removesuffix(".gguf")) is not None


def split_files(path: SomePath) -> list[SomePath]:
    """The files that llama.cpp loads for `path`: itself, or all of a split model. They need not exist."""
    match = _SPLIT.search(path.name)
    if match is None:
        return [path]
    stem, num_files = path.name[: match.start()], int(match[1])
    return [path.with_name(f"{stem}-{number:05d}-of-{num_files:05d}.gguf") for number in range(1, num_files + 1)]


def safe_name(path: Path) -> str:
    """The model name of a file given without one: its stem if that is one, else in letters, digits, '_', '.', '-'."""
    stem = _FIRST_SPLIT.sub("", path.name.removesuffix(".gguf"))
    # Not what an option or a hidden file begins with.
    if is_model_name(stem) and stem[0] not in ".-":
        return stem
    return _UNSAFE.sub("-", stem).lstrip("._-")[:MAX_MODEL_NAME_CHARS] or "model"


def quantization(stem: str) -> str | None:
    """The quantization that a file's name tells, by the custom of those who publish GGUF files, e.g. `Q4_K_M`."""
    matches = _QUANTIZATION.findall(stem.upper())
    return matches[-1] if matches else None


def is_gguf(path: Path) -> bool:
    """Whether the file begins like a GGUF file. Raises OSError where it can't be read."""
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def check_gguf(path: Path, *, check_kind: Callable[[Path], None] = check_completes_text) -> Path:
    """`path`, absolute, if it is a GGUF file by its beginning, by default of a model that completes text; a truncated
    one is found by the loader.

    `check_kind` raises ModelError for one that is of another kind than is wanted. Links stay: a file may be one of a
    split model, which have their names beside it. Raises ModelError with the remedy.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path}: a folder; give the GGUF file in it")
        if not is_gguf(path):
            raise ModelError(
                f"{path}: not a GGUF file (it does not begin with 'GGUF'); "
                "convert the model with llama.cpp's convert_hf_to_gguf.py, or download it as GGUF"
            )
    except FileNotFoundError as exc:
        raise ModelError(f"{path}: no such model file; `batcher models` lists the names known here") from exc
    except OSError as exc:
        at = f": {whose(path)}" if isinstance(exc, PermissionError) else ""
        raise ModelError(f"{path}: cannot read the model file: {exc.strerror or exc}{at}") from exc
    check_kind(path)
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute would leave .. in it)
