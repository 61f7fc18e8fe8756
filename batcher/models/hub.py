"""Names of the hub's models, and those that are in its cache on this machine.

The hub is huggingface.co, or what HF_ENDPOINT names.

A model of it is OWNER/REPO:QUANT, or OWNER/REPO/FILE.gguf where the quantization does not tell it apart; of a revision
other than the main one, with @REVISION behind. The cache is that of huggingface_hub, transformers and llama.cpp:
models--OWNER--REPO/snapshots/COMMIT has the files of a revision as links to blobs, refs/REVISION its commit
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache). It is read here without huggingface_hub.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from batcher.errors import ModelError
from batcher.models.source import FoundModel, Tell
from batcher.models.weights import Weights, names_in, weights_among

KEY = "hf"
MAIN = "main"

_PREFIX = "models--"
_SPEC = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<label>[\w.-]+)|/(?P<file>[^@:]+\.gguf))?(?:@(?P<revision>[\w./-]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORMS = "write hf:OWNER/REPO:QUANT, or hf:OWNER/REPO/FILE.gguf, and @REVISION behind it if it is not the main one"


@dataclass(frozen=True, slots=True)
class HubName:
    """A name of the hub, taken apart. With neither `label` nor `file` it is for us to choose."""

    repository: str
    label: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        what = f":{self.label}" if self.label else f"/{self.file}" if self.file else ""
        return f"{self.repository}{what}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_exact(self) -> bool:
        """Whether it names a model, not only a repository."""
        return self.label is not None or self.file is not None

    def among(self, found: list[Weights]) -> list[Weights]:
        """Those of a repository that are meant."""
        if self.file is not None:
            return [each for each in found if self.file in each.files]
        if self.label is not None:
            return [each for each in found if each.label == self.label]
        return found


def parse_hub_name(text: str) -> HubName:
    """What stands behind `hf:`. A quantization is put into capitals. Raises ModelError."""
    match = _SPEC.fullmatch(text)
    if match is None or ".." in text:
        raise ModelError(f"hf:{text} names no model of the hub; {_FORMS}")
    label = match["label"]
    return HubName(match["repository"], label.upper() if label else None, match["file"], match["revision"])


@dataclass(frozen=True, slots=True)
class HubCache:
    """What was fetched from the hub, by whomever. `path` is the cache; by default the environment says where it is."""

    path: Path | None = None
    key: str = KEY

    def models(self) -> Iterator[FoundModel]:
        for folder in _folders(self.path or cache_folder()):
            yield from _models_in(folder, self.key)

    def find(self, name: str) -> FoundModel | None:
        """Of a repository without more the only model of it that is here."""
        try:
            wanted = parse_hub_name(name)
        except ModelError:
            return None
        for folder in _folders(self.path or cache_folder()):
            if _repository(folder).lower() != wanted.repository.lower():
                continue
            found = [
                (weights, revision, snapshot)
                for snapshot, revision in _snapshots(folder)
                if _is_meant(wanted.revision, revision, snapshot.name)
                for weights in wanted.among(weights_among(_files_in(snapshot)))
            ]
            if len(found) == 1:
                weights, _, snapshot = found[0]
                full = wanted if wanted.is_exact else _named(wanted, weights)
                return _found(str(full), weights, snapshot, self.key)
        return None

    def fetch(self, name: str, *, tell: Tell | None) -> FoundModel:
        # The library takes a second to load, and most have no use for it.
        from batcher.models.download import fetch

        return fetch(parse_hub_name(name), cache=self.path or cache_folder(), tell=tell)

    def how_to_remove(self, model: FoundModel) -> str:
        repository = parse_hub_name(model.name).repository
        return f"other programs put it into the cache of the hub: hf cache rm model/{repository}"


def endpoint() -> str:
    """Where the hub is."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """Where the hub's cache is, by the variables that huggingface_hub knows."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(value)).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")  # noqa: PTH118
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def repository_folder(file: Path) -> Path:
    """The folder of the repository of whose snapshot a file is."""
    return next(path for path in file.parents if path.name.startswith(_PREFIX))


def _named(wanted: HubName, weights: Weights) -> HubName:
    """The full name of the only model of a repository here."""
    if weights.label:
        return replace(wanted, label=weights.label)
    return replace(wanted, file=weights.first)


def _is_meant(wanted: str | None, revision: str, commit: str) -> bool:
    if wanted is None:
        return revision == MAIN
    return wanted == revision or (len(wanted) >= 7 and commit.startswith(wanted))


def _folders(cache: Path) -> list[Path]:
    """Those of repositories. A cache that is not there, or may not be read, has none."""
    try:
        return sorted(path for path in cache.iterdir() if path.name.startswith(_PREFIX) and path.is_dir())
    except OSError:
        return []


def _repository(folder: Path) -> str:
    return folder.name.removeprefix(_PREFIX).replace("--", "/")


def _snapshots(folder: Path) -> list[tuple[Path, str]]:
    """The snapshots, each with its revision: the main one's first, and the commit where no name leads to it."""
    try:
        refs = [path for path in (folder / "refs").rglob("*") if path.is_file()]
        # The main one last, so that a commit with several names has this one.
        refs.sort(key=lambda path: path.name == MAIN)
        commits = [path.read_text(encoding="utf-8").strip() for path in refs]
        names = {
            commit: path.relative_to(folder / "refs").as_posix() for commit, path in zip(commits, refs, strict=True)
        }
        snapshots = [path for path in (folder / "snapshots").iterdir() if _COMMIT.fullmatch(path.name)]
    except (OSError, UnicodeDecodeError):
        return []
    found = [(path, names.get(path.name, path.name)) for path in sorted(snapshots)]
    return sorted(found, key=lambda pair: pair[1] != MAIN)


def _files_in(snapshot: Path) -> list[str]:
    """Also the links whose blobs are gone."""
    try:
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf")]
    except OSError:
        return []


def _models_in(folder: Path, key: str) -> Iterator[FoundModel]:
    repository = _repository(folder)
    is_any = False
    for snapshot, revision in _snapshots(folder):
        for name, weights in names_in(repository, weights_among(_files_in(snapshot))).items():
            is_any = True
            yield _found(name if revision == MAIN else f"{name}@{revision}", weights, snapshot, key)
    if not is_any and "gguf" in repository.lower():
        yield from _unfinished(folder, repository, key)


def _unfinished(folder: Path, repository: str, key: str) -> Iterator[FoundModel]:
    """What was begun to be fetched, where nothing else of the repository is here."""
    try:
        parts = sorted((folder / "blobs").glob("*.incomplete"))
    except OSError:
        return
    if parts:
        remedy = f"`batcher models pull hf:{repository}` goes on with it"
        yield FoundModel(repository, parts[0], key, problem=f"its download was not finished; {remedy}")


def _found(name: str, weights: Weights, snapshot: Path, key: str) -> FoundModel:
    missing = [file for file in weights.files if not (snapshot / file).exists()]
    problem = None
    if missing:
        number = f"{len(missing)} of its {len(weights.files)} files are" if len(weights.files) > 1 else "its file is"
        problem = f"{number} not here ({missing[0]}); `batcher models pull hf:{name}` gets what is missing"
    return FoundModel(name, snapshot / weights.first, key, problem)
