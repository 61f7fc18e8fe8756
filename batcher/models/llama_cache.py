"""What llama.cpp's own tools (`llama-cli -hf`) fetched to this machine.

Older ones keep flat files, OWNER_REPO_FILE.gguf, newer ones the hub's cache, which LLAMA_CACHE can move.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batcher.model_files import safe_name
from batcher.models.hub import HubCache
from batcher.models.source import FoundModel
from batcher.models.weights import weights_among
from batcher.paths import cache_home

CACHE_VARIABLE = "LLAMA_CACHE"


@dataclass(frozen=True, slots=True)
class LlamaCache:
    """Flat files by their names without `.gguf`, those of newer tools by their names at the hub."""

    key: str = "llama.cpp"

    def models(self) -> Iterator[FoundModel]:
        folder = _folder()
        try:
            files = [path.name for path in folder.glob("*.gguf")]
        except OSError:
            files = []
        for weights in weights_among(files):
            missing = [file for file in weights.files if not (folder / file).exists()]
            problem = f"{missing[0]} is not here; fetch it again with llama.cpp" if missing else None
            yield FoundModel(safe_name(Path(weights.first)), folder / weights.first, self.key, problem)
        yield from HubCache(folder, self.key).models()

    def find(self, name: str) -> FoundModel | None:
        flat = next((model for model in self.models() if model.name == name), None)
        return flat or HubCache(_folder(), self.key).find(name)

    def how_to_remove(self, model: FoundModel) -> str:
        return f"it is in the cache of llama.cpp: delete {model.path}"


def _folder() -> Path:
    value = os.environ.get(CACHE_VARIABLE)
    return Path(value).expanduser() if value else cache_home() / "llama.cpp"
