"""Profiles: what `batcher tune` measured, kept for the workers of this machine. Owns their files.

A profile is of one model file on one kind of machine: by size and first MiB of the file, so that its name and place
don't matter, and by cores, processor, GPU and version of llama-cpp-python. All of these are in the file's name, and so
a home that machines of several kinds share holds one for each. What does not fit, or can't be read, is never used.
"""

import hashlib
import importlib.metadata
import logging
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, TypeAdapter, ValidationError

from batcher.errors import BatcherError, ModelError, StorageError
from batcher.jobdir.local_store import LOCAL, replacing
from batcher.machine import processor_name, usable_cores
from workers.engines.llama.settings import MAX_SLOTS, EngineValues, TunedValues

logger = logging.getLogger(f"batcher.{__name__}")

PROFILES_DIR_VARIABLE = "BATCHER_PROFILES_DIR"

#: Bytes of a model file that tell it from others: its metadata, and mostly some of its weights.
_HEAD_BYTES = 2**20

#: Digits of the digests in a file's name.
_MODEL_DIGITS, _MACHINE_DIGITS = 24, 12

#: What llama.cpp and ggml bear at most (GGML_MAX_N_THREADS); a batch of more tokens helps nobody.
_MOST = EngineValues(num_slots=MAX_SLOTS, num_threads=512, max_batch_tokens=2**17, max_micro_batch_tokens=2**17)


class ProfileError(BatcherError):
    """There is a profile of the model, but none that can be used here."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which model file: its bytes, and the SHA-256 of the first MiB. Of a split model, of the first file."""

    num_bytes: int
    head_sha256: str


@dataclass(frozen=True, slots=True)
class MachineKey:
    """What speed depends on beside the model."""

    num_cores: int
    processor: str
    uses_gpu: bool
    llama_cpp_python: str

    def differences(self, other: "MachineKey") -> str:
        """What is not the same here as in `other`, in words: `2 cores instead of 8`."""
        pairs = (
            (f"{self.num_cores} cores", f"{other.num_cores}"),
            (self.processor, other.processor),
            ("a GPU" if self.uses_gpu else "no GPU", "one" if other.uses_gpu else "none"),
            (f"llama-cpp-python {self.llama_cpp_python}", other.llama_cpp_python),
        )
        mine, theirs = asdict(self), asdict(other)
        differs = (mine[name] != theirs[name] for name in mine)
        return ", ".join(
            f"{ours} instead of {its}" for (ours, its), is_other in zip(pairs, differs, strict=True) if is_other
        )


def _check_values(values: EngineValues) -> EngineValues:
    for name, most in asdict(_MOST).items():
        if not 1 <= getattr(values, name) <= most:
            raise ValueError(f"{name} is {getattr(values, name)}, not from 1 to {most}")
    return values


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured best, and how. Rates are tokens/s of prompts and completions together."""

    model_name: str
    model: ModelKey
    machine: MachineKey
    measured_at: AwareDatetime
    workload: str
    values: Annotated[EngineValues, AfterValidator(_check_values)]
    tokens_per_s: float
    default_tokens_per_s: float
    reason: str
    version: Literal[1] = 1

    @property
    def source(self) -> str:
        """Where the values come from, as a reason for them."""
        return f"measured by batcher tune on {_date(self.measured_at)}"


_PROFILE = TypeAdapter(Profile)


def profiles_dir() -> Path:
    """Where profiles are: BATCHER_PROFILES_DIR, else in the user's cache folder."""
    if value := os.environ.get(PROFILES_DIR_VARIABLE):
        return Path(value).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path("~/.cache").expanduser()) / "batcher" / "profiles"


def model_key(path: Path) -> ModelKey:
    """What tells the model file at `path` from others. Raises ModelError."""
    try:
        with path.open("rb") as file:
            return ModelKey(path.stat().st_size, hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest())
    except OSError as exc:
        raise ModelError(f"{path}: cannot read the model file: {exc.strerror or exc}") from exc


def machine_key(*, uses_gpu: bool) -> MachineKey:
    """This machine, as this process may use it."""
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return MachineKey(usable_cores(), processor_name(), uses_gpu, version)


def profile_path(model: ModelKey, machine: MachineKey) -> Path:
    """Where the profile of this model on this machine is, or would be."""
    return profiles_dir() / f"{_model_digest(model)}-{_digest(machine)[:_MACHINE_DIGITS]}.json"


def save_profile(profile: Profile) -> Path:
    """Write it, atomically, over an earlier one of the same model and machine. Raises StorageError."""
    path = profile_path(profile.model, profile.machine)
    with replacing(path) as temp:
        temp.write_bytes(_PROFILE.dump_json(profile, indent=1) + b"\n")
    return path


def load_profile(model: ModelKey, machine: MachineKey) -> Profile | None:
    """The profile that was measured here. None where this model has none at all.

    Raises ProfileError, whose message names file and remedy, where it can't be read or is of another machine.
    """
    path = profile_path(model, machine)
    if LOCAL.head(path) is None:
        others = _profiles_of(model)
        if not others:
            return None
        path = others[-1]
    profile = _read(path)
    if profile.model != model:
        raise ProfileError(f"{path}: a profile of another model file, {profile.model_name}; {_REMEDY}")
    if profile.machine != machine:
        differences = machine.differences(profile.machine)
        raise ProfileError(f"{path}: a profile of another machine (here: {differences}); {_REMEDY}")
    return profile


_REMEDY = "it is not used; measure again with `batcher tune`, or delete it with `batcher tune --forget`"


def find_tuned(path: Path, *, uses_gpu: bool) -> TunedValues | None:
    """The values measured for the model file at `path` on this machine, for workers.

    None where there are none; and with a warning in the log where there are some that can't be used.
    """
    try:
        profile = load_profile(model_key(path), machine_key(uses_gpu=uses_gpu))
    except ProfileError as exc:
        logger.warning("%s", exc)
        return None
    return None if profile is None else TunedValues(profile.values, profile.source)


def forget_profiles(model: ModelKey) -> list[Path]:
    """Delete the profiles of a model, those of other machines too; returns their paths. Raises StorageError."""
    paths = _profiles_of(model)
    LOCAL.delete_many(paths)
    return paths


def _profiles_of(model: ModelKey) -> list[Path]:
    """Those of a model on whatever machine, by name. Empty where the folder can't be read."""
    folder, prefix = profiles_dir(), f"{_model_digest(model)}-"
    try:
        return [folder / name for name in LOCAL.names(folder) if name.startswith(prefix) and name.endswith(".json")]
    except StorageError:
        return []


def _read(path: Path) -> Profile:
    try:
        return _PROFILE.validate_json(LOCAL.read(path))
    except (OSError, StorageError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ProfileError(f"{path}: cannot read the profile: {why}; {_REMEDY}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"{place}: {first['msg']}" if place else first["msg"]
        raise ProfileError(f"{path}: the profile is damaged ({what}); {_REMEDY}") from exc


def _model_digest(model: ModelKey) -> str:
    return _digest(model)[:_MODEL_DIGITS]


def _digest(key: ModelKey | MachineKey) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()


def _date(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d}"
