"""The models that LM Studio has on this machine: OWNER/REPO/*.gguf in its folder of models."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batcher.models.source import FoundModel, find_by_name
from batcher.models.weights import names_in, weights_among

#: Its home is named in this file, and is else one of these.
_POINTER = "~/.lmstudio-home-pointer"
_HOMES = ("~/.lmstudio", "~/.cache/lm-studio")


@dataclass(frozen=True, slots=True)
class LmStudio:
    """Models named as those of the hub, from which LM Studio gets them: OWNER/REPO:QUANT."""

    key: str = "lmstudio"

    def models(self) -> Iterator[FoundModel]:
        seen = set()
        for folder in _folders():
            for name, path, missing in _models_in(folder):
                if name in seen:
                    continue
                seen.add(name)
                problem = f"{missing.name} is not here; download the model again in LM Studio" if missing else None
                yield FoundModel(name, path, self.key, problem)

    def find(self, name: str) -> FoundModel | None:
        return find_by_name(self, name)

    def how_to_remove(self, model: FoundModel) -> str:
        return f"it is LM Studio's: delete it there, or its file {model.path}"


def _folders() -> list[Path]:
    """The folders of models: of each home that is there, or where its settings have moved it."""
    pointer = Path(_POINTER).expanduser()
    homes = [Path(home).expanduser() for home in _HOMES]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        homes.insert(0, Path(pointer.read_text(encoding="utf-8").strip()))
    folders = [_moved(home) or home / "models" for home in homes]
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def _moved(home: Path) -> Path | None:
    try:
        settings: Any = json.loads((home / "settings.json").read_text(encoding="utf-8"))
        value = settings["downloadsFolder"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return Path(value) if isinstance(value, str) and value else None


def _models_in(folder: Path) -> Iterator[tuple[str, Path, Path | None]]:
    """Name and first file of each, and the first of its files that is missing."""
    try:
        repositories = sorted(path for path in folder.glob("*/*") if path.is_dir())
    except OSError:
        return
    for repository in repositories:
        files = [path.relative_to(repository).as_posix() for path in repository.rglob("*.gguf")]
        for name, weights in names_in(repository.relative_to(folder).as_posix(), weights_among(files)).items():
            missing = next((repository / file for file in weights.files if not (repository / file).exists()), None)
            yield name, repository / weights.first, missing
