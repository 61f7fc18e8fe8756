"""Makes engines: the one place that knows which kinds there are. Whoever runs something on them knows `base` alone.

A model is a GGUF file for llama.cpp in this process, or one of servers behind URLs. An engine of another kind gets its
branch in `load_engines`. What is heavy is imported where it is needed: a process that only asks about a model, or has
it computed elsewhere, need not have llama.cpp.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from batcher.errors import ModelError
from batcher.model_files import Adapter
from batcher.model_memory import model_need
from batcher.types import Demand, EngineConfig, RemoteServers, RowError, SamplingParams
from workers.engines.base import Engine, SequenceRequest

if TYPE_CHECKING:
    from workers.engines.llama.settings import EngineSettings
    from workers.engines.remote.catalog import Catalog

logger = logging.getLogger(f"batcher.{__name__}")

#: A model that memory leaves fewer slots than these is so slow that another one leaves for it.
_FEWEST_SLOTS = 4
#: Tokens of a slot.
_USUAL_LENGTH = 4096

#: Of each request the number of tokens of its prompt, or why it can't run.
CountTokens = Callable[[Sequence[SequenceRequest]], Iterable[int | RowError]]

#: Receives, in the engine's thread, how many tokens a step computed, and for how many sequences one is drawn from it.
OnDecoded = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that has not started yet, how it was set up, in a line, and the bytes that it takes here."""

    engine: Engine
    setup: str
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MeteredEngine:
    """An engine whose speed is measured. `count_tokens` tells how many a text has."""

    engine: Engine
    settings: "EngineSettings"
    uses_gpu: bool
    count_tokens: Callable[[str], int]


def load_engines(
    models: Sequence[tuple[str, str]],
    config: EngineConfig,
    demand: Demand,
    *,
    adapters: Sequence[tuple[str, str, float]] = (),
    on_abort: Callable[[str], None] | None = None,
    on_load: Callable[[str], None] = lambda name: None,
) -> list[LoadedEngine]:
    """An engine for each pair of a model's name and its path, or its name at the servers of `config`, all for this
    process. Blocks while models are read.

    `adapters` are, of models with a LoRA, name, path and scale. `on_abort` hears, in any thread, why an engine is just
    about to end the process; `on_load` the name of each model before it is loaded. Raises ModelError.
    """
    if config.servers is not None:
        return _remote_engines(models, config.servers, num_slots=config.num_slots)
    loader = EngineLoader(models, config, demand, adapters=adapters, on_abort=on_abort)
    loaded = []
    for name, _ in models:
        on_load(name)
        loaded.append(loader.load(name))
    return loaded


class EngineLoader:
    """Makes engines for pairs of a model's name and its path, one by one, all for this process."""

    def __init__(
        self,
        models: Sequence[tuple[str, str]],
        config: EngineConfig,
        demand: Demand,
        *,
        adapters: Sequence[tuple[str, str, float]] = (),
        on_abort: Callable[[str], None] | None = None,
        on_decoded: OnDecoded | None = None,
    ) -> None:
        """`adapters` and `on_abort` are as for `load_engines`. `on_decoded` is told of each step."""
        from workers.engines.llama import loader
        from workers.engines.llama.gate import Gate

        if on_abort is not None:
            loader.tell_aborts(on_abort)
        self._paths = {name: Path(where) for name, where in models}
        self._adapters = {name: Adapter(Path(where), scale) for name, where, scale in adapters}
        self._config = config
        self._demand = demand
        self._on_decoded = on_decoded
        self._gate = Gate()
        #: What each of those takes that are loaded.
        self._taken: dict[str, int] = {}
        available = loader.available_memory(on_gpu=loader.uses_gpu(config))
        self._budget = config.memory or available // demand.num_workers

    @property
    def usual_slots(self) -> int:
        """The slots of a model that is not loaded yet; a guess."""
        from workers.engines.llama import loader

        return loader.usual_slots(self._config)

    def load(self, name: str) -> LoadedEngine:
        """An engine for one of the models. Blocks while it is read; raises ModelError."""
        from workers.engines.fingerprint import system_fingerprint
        from workers.engines.llama import loader
        from workers.engines.profile import find_tuned

        path, config = self._paths[name], self._config
        if config.memory is not None:
            config = replace(config, memory=config.memory - sum(self._taken.values()))
        model = loader.load_model(path, config, on_decoded=self._on_decoded)
        if (adapter := self._adapters.get(name)) is not None:
            model.add_adapter(adapter.path, scale=adapter.scale)
        model.chat_template = dict(config.chat_templates).get(name, model.chat_template)
        tuned = find_tuned(path, uses_gpu=loader.uses_gpu(config))
        settings = loader.choose(model, config, tuned=tuned, demand=self._demand)
        engine = loader.make_engine(
            name,
            model,
            settings,
            is_deduplicating=config.is_deduplicating,
            gate=self._gate,
            system_fingerprint=system_fingerprint(path, backend=loader.describe_backend(config), adapter=adapter),
        )
        self._taken[name] = loader.bytes_taken(model, settings)
        setup = f"{name}: {settings}"
        logger.info("%s", setup)
        return LoadedEngine(engine, setup, self._taken[name])

    def has_room(self, name: str, *, beside: Collection[str]) -> bool:
        """Whether memory has room for a model beside those, with slots enough to be of use; always for the first."""
        for gone in self._taken.keys() - set(beside):
            del self._taken[gone]
        need = model_need(self._paths[name])
        if need is None or not beside:
            return True  # What can't be read fails when it is loaded.
        slots = min(self._config.num_slots or _FEWEST_SLOTS, _FEWEST_SLOTS)
        length = self._config.context_length or self._demand.longest_request or _USUAL_LENGTH
        return sum(self._taken.values()) + need.total(num_slots=slots, context_length=length) <= self._budget


def _remote_engines(
    models: Sequence[tuple[str, str]], servers: RemoteServers, *, num_slots: int | None
) -> list[LoadedEngine]:
    from workers.engines.remote.engine import RemoteEngine

    where = ", ".join(servers.urls)
    most = f"{num_slots} at a time" if num_slots else "as many at a time as pay"
    return [
        LoadedEngine(RemoteEngine(name, served, servers, num_slots=num_slots), f"{name}: {served} at {where}, {most}")
        for name, served in models
    ]


def check_server_url(url: str) -> str:
    """The URL of a server's API as it is used. Raises InputError."""
    from workers.engines.remote.catalog import check_url

    return check_url(url)


def look_at_servers(servers: RemoteServers) -> "dict[str, Catalog | ModelError | str]":
    """What each server is, by URL; why no worker can ever use it; or why it does not answer. Blocks meanwhile."""
    from workers.engines.remote.catalog import Catalog, look_at_all, refusal

    return {
        url: found if isinstance(found, Catalog) else refusal(url, found) or str(found)
        for url, found in look_at_all(servers).items()
    }


def find_dropped(params: SamplingParams, servers: RemoteServers, *, is_chat: bool) -> str:
    """What of `params` a server that answers can't do, in a message; "" for nothing. Blocks as a look does."""
    from workers.engines.remote import bodies
    from workers.engines.remote.catalog import Catalog, look_at_all

    request = SequenceRequest((0, 0), "", params, is_chat=is_chat)
    for url, found in look_at_all(servers).items():
        if isinstance(found, Catalog) and (error := bodies.find_dropped(request, found.dialect, set(), where=url)):
            return error.message
    return ""


def load_metered(path: Path, config: EngineConfig, *, on_decoded: OnDecoded) -> MeteredEngine:
    """An engine as `config` says, whatever was tuned, that tells of the tokens of each step in its own thread.

    Raises ModelError.
    """
    from workers.engines.llama import loader

    model = loader.load_model(path, config, on_decoded=on_decoded)
    settings = loader.choose(model, config)
    engine = loader.make_engine("trial", model, settings)
    return MeteredEngine(engine, settings, loader.uses_gpu(config), model.vocabulary.count_tokens)


def load_token_counter(path: Path, *, limit: int) -> CountTokens:
    """What counts the tokens of prompts as an engine does that has the model at `path` and `limit` tokens a sequence,
    without its weights. Raises ModelError.
    """
    from workers.engines.llama.grammars import find_problem, refused_constraint
    from workers.engines.llama.loader import load_tokenizer
    from workers.engines.llama.prompts import Prompts

    # Mostly the constraint of all rows.
    problem_of = lru_cache(find_problem)

    # The vocabulary that the prompts are made with lives in it.
    tokenizer = load_tokenizer(path)
    prompts = Prompts(tokenizer, chat_template=tokenizer.chat_template, limit=limit)

    def count(requests: Sequence[SequenceRequest]) -> Iterator[int | RowError]:
        for request, found in zip(requests, prompts.tokenize_all(requests), strict=True):
            constraint = request.params.constraint
            if isinstance(found, RowError):
                yield found
            elif constraint is not None and (problem := problem_of(constraint)):
                yield refused_constraint(constraint, problem)
            else:
                yield len(found)

    return count


def uses_gpu(config: EngineConfig) -> bool:
    """Whether a GPU is going to compute."""
    from workers.engines.llama import loader

    return loader.uses_gpu(config)


def find_template_problem(source: str) -> str:
    """Why a chat template can't be used; "" where it can."""
    from workers.engines.llama.chat import ChatTemplate
    from workers.engines.llama.chat_frames import ChatTemplateError

    try:
        ChatTemplate(source, bos_token="", eos_token="")
    except ChatTemplateError as exc:
        return str(exc)
    return ""
