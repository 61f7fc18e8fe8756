"""The folder of GGUF files that BATCHER_MODELS_DIR names: the models that were set up for Batcher."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import ModelError
from batcher.model_files import check_gguf, is_later_split, safe_name
from batcher.models.source import FoundModel
from batcher.paths import expand_home, whose

MODELS_DIR_VARIABLE = "BATCHER_MODELS_DIR"


@dataclass(frozen=True, slots=True)
class ModelsFolder:
    """Every `*.gguf` right in the folder, named after its file. `path` defaults to BATCHER_MODELS_DIR.

    One that is no GGUF file, or of something that completes no text, is a model with a problem.
    """

    path: Path | None = None
    key: str = "folder"

    def models(self) -> Iterator[FoundModel]:
        for name, path in self._named().items():
            yield self._found(name, path)

    def find(self, name: str) -> FoundModel | None:
        path = self._named().get(name)
        return None if path is None else self._found(name, path)

    def _named(self) -> dict[str, Path]:
        folder = self.path or models_dir()
        if folder is None or not os.access(folder, os.R_OK | os.X_OK):
            return {}
        return {safe_name(path): path for path in sorted(folder.glob("*.gguf")) if not is_later_split(path)}

    def _found(self, name: str, path: Path) -> FoundModel:
        problem = None
        try:
            check_gguf(path)
        except ModelError as exc:
            problem = str(exc)
        return FoundModel(name, path.absolute(), self.key, problem)

    def how_to_remove(self, model: FoundModel) -> str:
        return f"it is a file of your folder of models: delete {model.path}"


def models_dir() -> Path | None:
    """The folder that BATCHER_MODELS_DIR names, whether it is there or not."""
    value = os.environ.get(MODELS_DIR_VARIABLE)
    return Path(expand_home(value)) if value else None


def check_models_dir() -> None:
    """Raise ModelError where BATCHER_MODELS_DIR names a folder that this user may not look into."""
    folder = models_dir()
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
