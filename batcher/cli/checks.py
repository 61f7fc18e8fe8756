"""Commands that look before work is done: validate, doctor."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api.engines import context_lengths
from batcher.cli.engines import server_options
from batcher.cli.options import (
    any_broker_option,
    as_size,
    context_option,
    files_argument,
    jobs_dir_option,
    json_option,
    option,
)
from batcher.cli.row_options import input_options, sampling_options, say_shortage, submit_options, with_stdin
from batcher.types import EngineConfig
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.cli.doctor import Check
    from batcher.model_files import ModelRef
    from batcher.submission.validation import Examine
    from batcher.types import Request, RowError


@click.command("validate")
@files_argument
@option(
    "--model",
    "models",
    multiple=True,
    envvar="BATCHER_MODEL",
    metavar="NAME|[NAME=]PATH",
    help="Model of rows which name none, as in run and submit; of one on this machine the tokens are counted too. "
    "[default: the only one that `batcher models` lists, and other names are taken as submit takes them]",
)
@sampling_options
@input_options
@context_option
@option(
    "--list", "num_listed", envvar="BATCHER_LIST", type=click.IntRange(min=0), default=20, help="Most bad rows to list."
)
@json_option
def validate_command(
    files: tuple[str, ...], *, models: tuple[str, ...], ctx: int | None, num_listed: int, as_json: bool, **rows: Any
) -> int:
    """Read and check FILE... as run and submit would, and write nothing.

    Ends with 0 if all rows are good, with 1 if some would become error rows, with 2 if the input would be refused. With
    a model of this machine the tokens are counted, and rows are bad that it could not complete: whose prompt and
    max_tokens are more than its context, or whose messages its template refuses.

    \b
    Example:
      batcher validate prompts.jsonl --model smollm2-135m --max-tokens 64
    """
    from batcher.cli import EXIT_ERROR_ROWS
    from batcher.cli.texts import say_json_parts, validation_json, validation_text
    from batcher.errors import InputError
    from batcher.models.resolver import our_models
    from batcher.submission.validation import validate
    from batcher.thoughts import model_reasons

    chosen = [_find_model(spec) for spec in models]
    only = our_models()
    default = chosen[0][0] if chosen else only[0].name if len(only) == 1 else None
    # As `run` with models of this machine, else as `submit`, which takes the names of models elsewhere.
    known = frozenset(name for name, _ in chosen) if chosen and all(model for _, model in chosen) else None
    here = [model for _, model in chosen if model is not None] if chosen or len(only) != 1 else only
    if not chosen:
        click.echo(
            "Note: checked as for submit, whose models are its workers'; --model NAME checks as run does.", err=True
        )
    lengths = context_lengths(here, ctx)
    reasons = any(model_reasons(model.path) for model in here) if known is not None else None
    options = submit_options(
        default_model=default, known_models=known, context_lengths=lengths, models_reason=reasons, **rows
    )
    say_json_parts(options.params)
    examine = _examiner(here, lengths)
    report = validate(with_stdin(files), options, num_listed=num_listed, examine=examine)
    say_shortage(options.selection, report.num_rows)
    names = ", ".join(model.name for model in here)
    click.echo(validation_json(report) if as_json else validation_text(report, tokenizer=names))
    if report.num_refused and options.strict:
        bad = f"{report.num_refused:,} of {counted(report.num_rows, 'row')}"
        raise InputError(f"{bad} bad, so --strict refuses the input")
    if report.refusal is not None:
        raise InputError(report.refusal)
    return EXIT_ERROR_ROWS if report.num_bad else 0


def _find_model(spec: str) -> "tuple[str, ModelRef | None]":
    """The name that `--model` gives, and its file, if it is on this machine."""
    from batcher.errors import ModelError
    from batcher.models.registry import all_models
    from batcher.models.resolver import is_bare_name, parse_model, served_name

    try:
        model = parse_model(spec, fetch=False)
    except ModelError:
        # One of this name that is here, and can't be used, is what `run` would take.
        if not is_bare_name(spec) or any(model.name == spec for model in all_models()):
            raise
        click.echo(f"Note: the model {spec} is not on this machine, so its tokens are not counted.", err=True)
        return served_name(spec), None
    return model.name, model


def _examiner(models: "Sequence[ModelRef]", lengths: Mapping[str, int]) -> "Examine | None":
    """What the engines of these models would make of a request; None, with a note, where there is no llama.cpp."""
    from batcher.installation import check_installed

    if not models:
        return None
    try:
        check_installed("that", "worker")
        from workers.shard.examiner import Examiner
    except (ImportError, OSError, RuntimeError) as exc:
        click.echo(f"Note: tokens are not counted: {exc}", err=True)
        return None
    # Of a file that does not say its context, llama.cpp has the last word.
    examiners = {each.name: Examiner(each.path, limit=lengths.get(each.name, 2**31 - 1)) for each in models}

    def examine(requests: "Sequence[Request]") -> "Iterator[tuple[int, ...] | RowError]":
        for name, some in itertools.groupby(requests, key=lambda request: request.model):
            group = list(some)
            # Of models elsewhere nothing is known.
            yield from examiners[name].examine(group) if name in examiners else [()] * len(group)

    return examine


@click.command("doctor")
@option("--model", "models", multiple=True, envvar="BATCHER_MODEL", metavar="NAME|[NAME=]PATH", help="Model to check.")
@server_options
@option("--slots", type=click.IntRange(min=1), help="Slots that memory must have room for. [default: as a worker]")
@option("--ctx", type=click.IntRange(min=1), help="Tokens of each slot. [default: as a worker]")
@option("--gpu-layers", type=click.IntRange(min=0), help="As for a worker; 0 checks the memory that CPUs need.")
@option("--memory", metavar="SIZE", callback=as_size, help="Memory that a worker may take. [default: what is free]")
@any_broker_option
@json_option
@jobs_dir_option
def doctor_command(
    *,
    models: tuple[str, ...],
    engine: tuple[str, ...],
    engine_key_file: Path | None,
    slots: int | None,
    ctx: int | None,
    gpu_layers: int | None,
    memory: int | None,
    broker: str | None,
    as_json: bool,
    jobs_dir: Path,
) -> int:
    """Find what is wrong with this machine, and the remedy. Ends with 1 if a check failed, else with 0.

    Give it the options that `batcher worker` gets; it also reads the same environment. Each check tries the thing:

    \b
    packages     their versions; whether llama.cpp's library loads
    jobs folder  whether files are created atomically in it, its room, its clock, and whether the workers
                 that live there have one version of Batcher
    broker       whether it answers and takes writes, keeps its queue over a restart and when memory is
                 short, and agrees about the time; without --broker, whether one can be started here
    models       whether each file is there and whole, and memory has room for it and its slots (of the known
                 models, if none is given)
    engines      with --engine in place of the models: whether each server answers, has the models, and
                 completes a prompt

    \b
    Example:
      batcher doctor --broker redis://queue:6379/0 --jobs-dir /mnt/jobs --model llama=/data/llama.gguf
    """
    from batcher.api.servers import read_servers
    from batcher.cli import EXIT_CHECK_FAILED
    from batcher.cli.doctor import Level, run_checks
    from batcher.installation import check_installed
    from batcher.models.resolver import our_models

    if engine:
        check_installed("doctor --engine", "remote")
    servers = read_servers(engine, engine_key_file)
    refs, checks = _find_models(models if servers is None else ())
    if servers is None and not models:
        checks = _check_folder()
    found = run_checks(
        jobs_dir=jobs_dir,
        broker=broker,
        models=refs if models else our_models(),
        wishes=EngineConfig(
            num_slots=slots, context_length=ctx, num_gpu_layers=gpu_layers, memory=memory, servers=servers
        ),
        is_one_worker=bool(models),
        served=models,
    )
    is_failed = False
    for check in itertools.chain(found, checks):
        is_failed |= check.level is Level.FAIL
        click.echo(json.dumps(asdict(check), ensure_ascii=False) if as_json else _check_text(check))
    return EXIT_CHECK_FAILED if is_failed else 0


def _find_models(specs: Sequence[str]) -> "tuple[list[ModelRef], list[Check]]":
    """The models of this machine that `--model` gives, and what is wrong with the others."""
    from batcher.cli.doctor import Check, Level
    from batcher.errors import ModelError
    from batcher.models.resolver import parse_model

    refs, checks = [], []
    for spec in specs:
        try:
            refs.append(parse_model(spec, fetch=False))
        except ModelError as exc:
            message, _, remedy = str(exc).partition("; ")
            checks.append(
                Check(f"model {spec}", Level.FAIL, message, remedy or "`batcher models` lists the known ones")
            )
    return refs, checks


def _check_folder() -> "list[Check]":
    """What lies in the folder of models and is of no use."""
    from batcher.cli.doctor import Check, Level
    from batcher.models.resolver import our_problems

    checks = []
    for model in our_problems():
        message, _, remedy = str(model.problem).partition("; ")
        checks.append(Check(f"model {model.name}", Level.WARN, message, remedy))
    return checks


def _check_text(check: "Check") -> str:
    """A finding in a line, and its remedy in another."""
    from batcher.cli.doctor import Level

    marks = {Level.OK: ("ok  ", "green"), Level.WARN: ("warn", "yellow"), Level.FAIL: ("FAIL", "red")}
    mark, color = marks[check.level]
    text = f"{click.style(mark, fg=color)}  {check.name}: {check.message}"
    return f"{text}\n      remedy: {check.remedy}" if check.remedy else text
