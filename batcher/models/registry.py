"""The sources of models of this machine, in the order in which a bare name is looked for in them."""

from collections.abc import Iterator

from batcher.models.folder import ModelsFolder
from batcher.models.hub import HubCache
from batcher.models.llama_cache import LlamaCache
from batcher.models.lm_studio import LmStudio
from batcher.models.ollama import Ollama
from batcher.models.source import FoundModel, Source
from batcher.models.wheel import Wheel

#: Models of these were put here for Batcher, so the only one of them is meant where no model is named.
OUR_SOURCES: tuple[Source, ...] = (ModelsFolder(), Wheel())
SOURCES: tuple[Source, ...] = (*OUR_SOURCES, HubCache(), Ollama(), LmStudio(), LlamaCache())


def source_of(key: str) -> Source | None:
    """The source with this key."""
    return next((source for source in SOURCES if source.key == key), None)


def find_model(name: str) -> FoundModel | None:
    """The model that a bare name means: of the first source that has one that can be used, else of the first at all."""
    found = [model for source in SOURCES if (model := source.find(name)) is not None]
    return next((model for model in found if model.problem is None), found[0] if found else None)


def all_models() -> Iterator[FoundModel]:
    """All models of this machine, each under what can be given as `--model`: of two with one name, the one that is
    found later has its source before it."""
    seen = set()
    for source in SOURCES:
        for model in source.models():
            name = model.name if model.name not in seen else f"{source.key}:{model.name}"
            seen.add(name)
            yield FoundModel(name, model.path, model.source, model.problem)
