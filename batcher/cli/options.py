"""Options that several commands share. Each option of the CLI has an environment variable `BATCHER_*`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.errors import InputError, JobError
from batcher.types import DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, SamplingParams

if TYPE_CHECKING:
    from batcher.jobdir import JobDir
    from batcher.planner import SubmitOptions

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class EnvOption(click.Option):
    """An option that can also be given as `BATCHER_<NAME>`; its help says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("show_envvar", True)
        kwargs.setdefault("show_default", True)
        super().__init__(*args, **kwargs)
        if self.envvar is None and self.name is not None:
            self.envvar = f"BATCHER_{self.name.upper()}"


def option(*names: str, **kwargs: Any) -> Decorator:
    """`click.option` with an environment variable."""
    return click.option(*names, cls=EnvOption, **kwargs)


def _not_nan(ctx: click.Context, param: click.Parameter, value: float) -> float:
    # Every comparison with NaN is false, so it passes any range.
    if math.isnan(value):
        raise click.BadParameter("nan is not a number", ctx, param)
    return value


def _no_empty_text(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:
        raise click.BadParameter("an empty stop string would end every completion before its first token", ctx, param)
    return values


def _chain(*decorators: Decorator) -> Decorator:
    """One decorator for several options, listed in `--help` in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


jobs_dir_option = option(
    "--jobs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("batcher-jobs"),
    help="Folder that holds the job directories.",
)

broker_option = option(
    "--broker",
    metavar="URL",
    help="Redis-protocol broker, e.g. redis://host:6379/0. [default: an embedded one where the command can start it]",
)

json_option = option("--json", "as_json", is_flag=True, envvar="BATCHER_JSON", help="Print JSON, for programs.")

#: How prompts are read from the input files. Parameters: prompt_column, id_column, template, strict, shard_rows.
input_options = _chain(
    option("--prompt-column", metavar="NAME", help="Column that holds the prompt. [default: prompt]"),
    option("--id-column", metavar="NAME", help="Column that holds the custom_id. [default: custom_id, else the row]"),
    option(
        "--template",
        metavar="TEXT|@FILE",
        help="Build each prompt from columns, e.g. 'Summarize: {text}'; @FILE reads it from a file, whose last "
        "newline is left out.",
    ),
    option("--strict", is_flag=True, help="Refuse the whole input if a row is bad, listing the first of them."),
    option(
        "--shard-rows",
        type=click.IntRange(min=1),
        help="Requests in a shard, the unit of scheduling. [default: 32 to 512, growing with the input]",
    ),
)

#: Defaults for rows that don't say. Parameters: max_tokens, temperature, top_p, stop, seed.
sampling_options = _chain(
    option(
        "--max-tokens",
        type=click.IntRange(min=1, max=2**31 - 1),
        default=DEFAULT_MAX_TOKENS,
        help="Most tokens to generate, for rows that don't say.",
    ),
    option(
        "--temperature",
        type=click.FloatRange(min=0, max=2),
        default=DEFAULT_TEMPERATURE,
        callback=_not_nan,
        help="Sampling temperature; 0 takes the likeliest token.",
    ),
    option(
        "--top-p",
        type=click.FloatRange(min=0, max=1, min_open=True),
        default=DEFAULT_TOP_P,
        callback=_not_nan,
        help="Nucleus sampling: draw from the likeliest tokens that hold this probability.",
    ),
    option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=_no_empty_text,
        help="End before this text; can be given several times. In bash, $'\\n' is a newline.",
    ),
    option(
        "--seed",
        type=click.IntRange(min=0, max=2**63 - 1),
        help="Seed of the job, from which every row without a seed derives its own. [default: 0]",
    ),
)


def read_template(value: str | None) -> str | None:
    """The template that `--template` gives: the text itself, or that of `@FILE`. Raises InputError.

    The newline that editors end a file with is left out: as the last character of a prompt it changes completions.
    """
    if value is None or not value.startswith("@"):
        return value
    path = Path(value[1:]).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise InputError(f"--template {value}: not UTF-8 at byte {exc.start}; save the file as UTF-8") from exc
    except OSError as exc:
        raise InputError(
            f"--template {value}: cannot read the file: {exc.strerror or exc}; "
            "give its path after the @, or the template itself"
        ) from exc
    return text.removesuffix("\n")


def submit_options(
    *,
    default_model: str | None,
    known_models: frozenset[str] | None,
    prompt_column: str | None,
    id_column: str | None,
    template: str | None,
    strict: bool,
    shard_rows: int | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    stop: tuple[str, ...],
    seed: int | None,
) -> "SubmitOptions":
    """What the planner takes, from the parameters of `input_options` and `sampling_options` as click gives them.

    A command declares `**rows: Any` and calls `submit_options(default_model=..., known_models=..., **rows)`.
    """
    from batcher.planner import SubmitOptions
    from batcher.protocol import MAX_STOPS

    if len(stop) > MAX_STOPS:
        raise click.BadParameter(f"{len(stop)} stop strings; at most {MAX_STOPS}", param_hint="--stop")
    return SubmitOptions(
        default_model=default_model,
        params=SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, stop=stop),
        known_models=known_models,
        prompt_column=prompt_column,
        id_column=id_column,
        template=read_template(template),
        strict=strict,
        shard_rows=shard_rows,
        seed=seed,
    )


def find_job(job: str, jobs_dir: Path) -> "JobDir":
    """The job that JOB names: the path of a job directory, else an id under the jobs root. Raises JobError."""
    # Here and not above: it brings pyarrow, and `--help` looks at every command.
    from batcher.jobdir import JobDir, check_id

    as_path = Path(job)
    if JobDir(as_path).exists():
        return JobDir.open(as_path.resolve())
    if as_path.name != job:
        raise JobError(f"{job}: no job here (no manifest.json); `batcher list` shows the jobs")
    return JobDir.open((jobs_dir / check_id(job, what="job id")).resolve())
