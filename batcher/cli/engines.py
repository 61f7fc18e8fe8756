"""Options and choices of the commands that load models: run, worker, resume, serve."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.cli.options import (
    Decorator,
    context_option,
    gpu_layers_option,
    model_sha256_option,
    option,
    row_timeout_option,
)
from batcher.errors import ModelError

if TYPE_CHECKING:
    from batcher.model_files import ModelRef
    from workers.process.events import WorkerConfig

#: Seconds that a stopped worker gets by default. With the embedded broker's own end, `run` stops within 10.
DEFAULT_GRACE_S = 8.0

models_option = option(
    "--model",
    "models",
    multiple=True,
    envvar="BATCHER_MODEL",
    metavar="NAME|PATH|NAME=PATH",
    help="Model to serve; can be given several times, and the first is that of rows which name none. "
    "[default: the only one that `batcher models` lists]",
)
_ENGINE_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--slots",
        type=click.IntRange(min=1),
        help="Prompts decoded at a time. [default: as tuned, else 32, on a GPU 128, or what memory has room for]",
    ),
    option(
        "--threads", type=click.IntRange(min=1), help="CPU threads of a worker. [default: as tuned, else all cores]"
    ),
    option(
        "--batch-tokens",
        type=click.IntRange(min=1),
        help="Most tokens of one step, of prompts and completions together. [default: as tuned, else 2048]",
    ),
    option(
        "--micro-batch-tokens",
        type=click.IntRange(min=1),
        help="Most tokens that llama.cpp computes at once. [default: as tuned, else 512]",
    ),
    gpu_layers_option,
    context_option,
    option(
        "--grace",
        type=click.FloatRange(min=0),
        default=DEFAULT_GRACE_S,
        help="Seconds in which a worker stops: shorter than the notice that your machines get.",
    ),
    option(
        "--stall-timeout",
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds without a step after which an engine is restarted. [default: 120, or more by the engine's pace]",
    ),
    option(
        "--lease-ttl",
        type=click.FloatRange(min=1),
        help="Seconds after which the shards of a worker that says nothing go to another. [default: 30]",
    ),
    row_timeout_option,
    model_sha256_option,
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How models are loaded and workers stopped. Parameters: slots ... row_timeout."""
    for decorate in reversed(_ENGINE_OPTIONS):
        command = decorate(command)
    return command


def needed_extras(broker: str | None) -> tuple[str, ...]:
    """The extras that completing prompts on this machine takes, with a broker of our own where none is given."""
    return ("worker",) if broker else ("worker", "embedded")


def take_engine_options(options: dict[str, Any]) -> dict[str, Any]:
    """Move the parameters of `engine_options` out of `options`, named as `WorkerConfig` has them."""
    from batcher.broker.leases import LEASE_TTL_S

    return {
        "num_slots": options.pop("slots"),
        "num_threads": options.pop("threads"),
        "num_gpu_layers": options.pop("gpu_layers"),
        "context_length": options.pop("ctx"),
        "max_batch_tokens": options.pop("batch_tokens"),
        "max_micro_batch_tokens": options.pop("micro_batch_tokens"),
        "grace_s": options.pop("grace"),
        "stall_timeout_s": options.pop("stall_timeout"),
        "lease_ttl_s": options.pop("lease_ttl") or LEASE_TTL_S,
        "row_timeout_s": options.pop("row_timeout"),
        "model_sha256": options.pop("model_sha256"),
    }


def worker_config(
    models: Sequence["ModelRef"],
    jobs_root: Path,
    *,
    home: Path,
    quiet: bool,
    model_sha256: Sequence[str],
    **engine: Any,
) -> "WorkerConfig":
    from batcher.model_files import parse_sha256
    from workers.local import default_worker_name
    from workers.process.events import WorkerConfig

    return WorkerConfig(
        name=default_worker_name(),
        models=tuple((model.name, str(model.path)) for model in models),
        broker_url="",  # whoever starts the workers knows it
        jobs_root=str(jobs_root),
        home=str(home),
        quiet=quiet,
        model_sha256=parse_sha256(model_sha256, models),
        **engine,
    )


def context_lengths(models: "Sequence[ModelRef]", ctx: int | None) -> dict[str, int]:
    """Tokens that a sequence of each model can hold where `--ctx` is this; without those whose file does not say."""
    from batcher.gguf import trained_context_length
    from workers.engines.llama.settings import context_limit

    trained = {model.name: trained_context_length(model.path) for model in models}
    return {name: context_limit(ctx, trained=found) for name, found in trained.items() if found is not None}


def choose_models(specs: Sequence[str], *, needed: set[str] | None = None) -> list["ModelRef"]:
    """The models that `--model` gives; with none given, those `needed` by name, else the only known one."""
    from batcher.model_files import known_models, parse_model

    chosen = [parse_model(spec) for spec in specs]
    names = [model.name for model in chosen]
    if len(set(names)) < len(names):
        raise click.UsageError(f"--model: two models have the same name ({', '.join(names)}); write NAME=PATH")
    known = known_models()
    if needed is not None:
        chosen += [model for model in known if model.name in needed - set(names)]
        missing = sorted(needed - {model.name for model in chosen})
        if missing:
            raise ModelError(f"the job needs the model {missing[0]}; give --model {missing[0]}=PATH")
        return chosen
    if chosen:
        return chosen
    if len(known) == 1:
        return known
    listed = ", ".join(model.name for model in known)
    raise click.UsageError(
        f"which model? Give --model NAME; `batcher models` lists: {listed}"
        if known
        else "which model? Give --model PATH of a GGUF file; no model is known by name on this machine"
    )
