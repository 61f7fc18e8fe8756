"""Workers of this machine, as whoever starts them chooses: which models they serve, and how."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batcher.api.servers import choose_served, read_servers
from batcher.chat_templates import find_template
from batcher.errors import InputError, ModelError
from batcher.gguf import trained_context_length
from batcher.machine import read_memory
from batcher.model_files import ModelRef, parse_sha256
from batcher.model_kinds import check_completes_text
from batcher.model_memory import model_need
from batcher.models.folder import ModelsFolder, check_models_dir
from batcher.models.resolver import model_named, our_models, our_problems, parse_model, spec_for
from batcher.models.source import Tell
from batcher.paths import expand_home
from batcher.thoughts import model_reasons
from batcher.types import EngineConfig, RemoteModel, RemoteServers

if TYPE_CHECKING:
    from workers.process.events import WorkerConfig

#: NAME, PATH of a GGUF file, or NAME=PATH; or several.
ModelSpecs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

#: A file of this machine, or a model of servers.
ChosenModel = ModelRef | RemoteModel

_MIB = 1 << 20

#: Seconds that a stopped worker gets by default. With the embedded broker's own end, `run` stops within 10.
DEFAULT_GRACE_S = 8.0


def model_specs(model: ModelSpecs) -> list[str]:
    """The models that a Python caller gives, as `choose_models` takes them. Raises InputError for what is none."""
    given = [model] if isinstance(model, str | os.PathLike) or not isinstance(model, Iterable) else list(model)
    for each in given:
        if not isinstance(each, str | os.PathLike):
            raise InputError(f"model is of type {type(each).__name__}; give NAME, PATH of a GGUF file, or NAME=PATH")
    # What is a Path is no name.
    return [each if isinstance(each, str) else os.path.join(".", expand_home(each)) for each in given]  # noqa: PTH118


def needed_extras(broker: str | None, *, is_remote: bool = False) -> tuple[str, ...]:
    """The extras that completing prompts on this machine takes, or with `is_remote` on servers; with a broker of our
    own where none is given."""
    engine = "remote" if is_remote else "worker"
    return (engine,) if broker else (engine, "embedded")


def choose_models(
    specs: Sequence[str],
    *,
    needed: set[str] | None = None,
    servers: RemoteServers | None = None,
    takes_all: bool = False,
    tell: Tell | None = None,
) -> list[ChosenModel]:
    """The models that `--model` gives; with none given, those `needed` by name, else the only one of ours.

    With `servers` they are models of these (`choose_served`). `takes_all`: with none given, all of the folder of models
    that complete text. A model of the hub that is not here is fetched; `tell` takes what is said of it, and of those
    that are left out. Raises InputError where nothing says which, ModelError for a model that is not here and can't be
    fetched, or completes no text.
    """
    if servers is not None:
        return [*choose_served(specs, servers, needed=needed)]
    chosen: list[ChosenModel] = [parse_model(spec, tell=tell) for spec in specs]
    names = [model.name for model in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"--model: two models have the same name ({', '.join(names)}); write NAME=PATH")
    if needed is not None:
        return chosen + [_needed(name) for name in sorted(needed - set(names))]
    if chosen:
        return chosen
    if takes_all and (found := _all_of_folder(tell)):
        return [*found]
    ours = our_models()
    if len(ours) == 1:
        check_completes_text(ours[0].path)
        return [*ours]
    check_models_dir()
    if not ours and (problems := our_problems()):
        raise ModelError(str(problems[0].problem))
    listed = ", ".join(model.name for model in ours)
    raise InputError(
        f"which model? Give --model NAME; `batcher models` lists: {listed}"
        if ours
        else "which model? Give --model NAME, of those that `batcher models` lists, PATH of a GGUF file, or "
        "hf:OWNER/REPO:QUANT to fetch one"
    )


def _all_of_folder(tell: Tell | None) -> list[ModelRef]:
    found = []
    for model in ModelsFolder().models():
        if model.problem is None:
            found.append(ModelRef(model.name, model.path))
        elif tell is not None:
            tell(f"left out: {model.problem}")
    return found


def _needed(name: str) -> ModelRef:
    """The model of this machine that a job calls by `name`."""
    found = model_named(name)
    if found is None:
        raise ModelError(f"the job needs the model {name}; give --model {spec_for(name)}")
    return found


def where(model: ChosenModel) -> str:
    """Where its engine finds it: the path of its file, or its name at the servers."""
    return model.served_name if isinstance(model, RemoteModel) else str(model.path)


def model_spec(model: ChosenModel) -> str:
    """The `--model` that means just this one."""
    return f"{model.name}={model.file_spec if isinstance(model, ModelRef) else model.served_name}"


def context_lengths(models: Sequence[ChosenModel], ctx: int | None) -> dict[str, int]:
    """Tokens that a sequence of each model can hold where `--ctx` is this; without those whose file does not say, or
    whose server."""
    if any(isinstance(model, RemoteModel) for model in models):
        return {model.name: n for model in models if isinstance(model, RemoteModel) and (n := model.context_length)}
    from workers.engines.llama.settings import context_limit

    trained = {model.name: trained_context_length(model.path) for model in models if isinstance(model, ModelRef)}
    return {name: context_limit(ctx, trained=found) for name, found in trained.items() if found is not None}


@dataclass(frozen=True, slots=True)
class DefaultMemory:
    """Bytes that a worker takes with its default slots, on CPUs, and whether they are available now."""

    num_bytes: int
    num_slots: int
    fits: bool


def memory_at_defaults(path: Path) -> DefaultMemory | None:
    """What the model takes; None where its header can't be read. With fewer slots it takes less."""
    from workers.engines.llama.settings import DEFAULT_CONTEXT_LENGTH, DEFAULT_NUM_SLOTS, context_limit

    need = model_need(path)
    if need is None:
        return None
    context_length = context_limit(None, trained=trained_context_length(path) or DEFAULT_CONTEXT_LENGTH)
    num_bytes = need.total(num_slots=DEFAULT_NUM_SLOTS, context_length=context_length)
    return DefaultMemory(num_bytes, DEFAULT_NUM_SLOTS, num_bytes <= read_memory().available)


def models_reason(models: Sequence[ChosenModel], templates: Mapping[str, str]) -> bool | None:
    """Whether one of the models reasons, by these templates; None where nobody knows, as a server computes."""
    if any(isinstance(model, RemoteModel) for model in models):
        return None
    return any(model_reasons(model.path, template=templates.get(model.name)) for model in _files(models))


def chat_templates(specs: str | Sequence[str], models: Sequence[ChosenModel]) -> dict[str, str]:
    """The Jinja sources that `--chat-template` gives, by model: [MODEL=]FILE|NAME. Raises InputError."""
    files = _files(models)
    found: dict[str, str] = {}
    for spec in (specs,) if isinstance(specs, str) else specs:
        name, is_of_one, own = spec.partition("=")
        some = [model for model in files if is_of_one and model.name == name]
        for model in some or files:
            found[model.name] = _compiled(spec, find_template(own if some else spec, model.path))
        if not files:
            raise InputError(f"--chat-template {spec}: the server that computes has templates of its own; leave it out")
    return found


def _compiled(spec: str, source: str) -> str:
    from workers.engines.open import find_template_problem

    if problem := find_template_problem(source):
        raise InputError(f"--chat-template {spec}: {problem}; correct the template")
    return source


def worker_config(
    models: Sequence[ChosenModel],
    jobs_root: Path,
    *,
    home: Path,
    quiet: bool,
    model_sha256: Sequence[str],
    chat_template: str | Sequence[str],
    engine: EngineConfig,
    validators: Sequence[str],
    max_loaded: int | None,
    is_loading_on_demand: bool = False,
    **options: Any,
) -> "WorkerConfig":
    """What a worker of these models needs to know but for its broker; `options` are fields of `WorkerConfig`.

    With `max_loaded` it loads models when they are wanted, too. Imports the modules of `validators`. Raises InputError
    for one that is not there, and where the models are not in its own memory.
    """
    _check_memory(engine.memory, _files(models))
    from workers.local import default_worker_name
    from workers.process.events import WorkerConfig
    from workers.process.logs import LogStyle
    from workers.shard.validators import find_validator

    return WorkerConfig(
        name=default_worker_name(),
        models=tuple((model.name, where(model)) for model in models),
        adapters=tuple(
            (model.name, str(model.adapter.path), model.adapter.scale)
            for model in _files(models)
            if model.adapter is not None
        ),
        broker_url="",  # whoever starts the workers knows it
        jobs_root=str(jobs_root),
        home=str(home),
        log=LogStyle(level=logging.WARNING if quiet else logging.INFO),
        engine=replace(engine, chat_templates=tuple(chat_templates(chat_template, models).items())),
        is_loading_on_demand=is_loading_on_demand or max_loaded is not None,
        max_loaded=max_loaded,
        model_sha256=parse_sha256(model_sha256, _files(models)),
        validators=tuple((name, find_validator(name).folder) for name in dict.fromkeys(validators)),
        **options,
    )


def _check_memory(memory: int | None, models: Sequence[ModelRef]) -> None:
    """Raises ModelError for a model whose weights alone take more than `--memory` allows."""
    for model in models if memory is not None else ():
        need = model_need(model.path)
        if memory is not None and need is not None and need.weights >= memory:
            given, taken = memory / _MIB, need.weights / _MIB
            raise ModelError(
                f"--memory {given:,.0f}M: the weights of {model.name} alone take {taken:,.0f}M; give more, or take a "
                "smaller model"
            )


def _files(models: Sequence[ChosenModel]) -> list[ModelRef]:
    return [model for model in models if isinstance(model, ModelRef)]


def take_engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Move what `options` of `batcher run` say of engines and workers out of them, named as `WorkerConfig` has it."""
    from batcher.broker.leases import LEASE_TTL_S

    digests = options.pop("model_sha256", ())
    return {
        "engine": EngineConfig(
            num_slots=options.pop("slots", None),
            num_threads=options.pop("threads", None),
            num_gpu_layers=options.pop("gpu_layers", None),
            context_length=options.pop("ctx", None),
            max_batch_tokens=options.pop("batch_tokens", None),
            max_micro_batch_tokens=options.pop("micro_batch_tokens", None),
            memory=options.pop("memory", None),
            servers=read_servers(options.pop("engine", ()), options.pop("engine_key_file", None)),
        ),
        "grace_s": options.pop("grace", DEFAULT_GRACE_S),
        "stall_timeout_s": options.pop("stall_timeout", None),
        "lease_ttl_s": options.pop("lease_ttl", None) or LEASE_TTL_S,
        "row_timeout_s": options.pop("row_timeout", None),
        "chat_template": options.pop("chat_template", ()),
        "max_loaded": options.pop("max_loaded", None),
        "model_sha256": (digests,) if isinstance(digests, str) else digests,
        "validators": tuple(options.pop("allow_validator", ())),
    }
