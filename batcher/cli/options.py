"""What commands' options are made of, and those that several share. Each has an environment variable `BATCHER_*`."""

import functools
import math
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from batcher.cli.completing import complete_file, complete_job, complete_model
from batcher.errors import InputError
from batcher.machine import parse_size

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class EnvOption(click.Option):
    """An option that can also be given as `BATCHER_<NAME>`; its help says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("show_envvar", True)
        kwargs.setdefault("show_default", True)
        super().__init__(*args, **kwargs)
        if self.envvar is None and self.name is not None:
            self.envvar = f"BATCHER_{self.name.upper()}"

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """As its type says; a text must be Unicode."""
        found = super().type_cast_value(ctx, value)
        if isinstance(self.type, click.types.StringParamType):
            check_unicode(ctx, self, found)
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As its type says; of a text, the names of models, or files."""
        found = super().shell_complete(ctx, incomplete)
        if found or self.is_flag or not isinstance(self.type, click.types.StringParamType):
            return found
        complete = complete_model if "--model" in self.opts else complete_file
        return complete(ctx, self, incomplete)


class Number(click.FloatRange):
    """A number in a range, which neither `nan` nor `inf` is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


def option(*names: str, **kwargs: Any) -> Decorator:
    """`click.option` with an environment variable."""
    return click.option(*names, cls=EnvOption, **kwargs)


def check_unicode(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The text, or texts, given. Refuses bytes that are no text in the locale's encoding: no row or column has them."""
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as exc:
                encoding = sys.getfilesystemencoding().upper()
                raise click.BadParameter(
                    f"{text!r} is no text in {encoding}; give it in {encoding}", ctx, param
                ) from exc
    return value


def as_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """The bytes that an option gives as `800M` or `16G`."""
    try:
        return None if value is None else parse_size(value)
    except ValueError as exc:
        raise click.BadParameter(f"{value!r} is {exc}", ctx, param) from exc


def chain(*decorators: Decorator) -> Decorator:
    """One decorator for several options, listed in `--help` in this order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


job_argument = click.argument("job", metavar="JOB", shell_complete=complete_job)
files_argument = click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_file)

jobs_dir_option = option(
    "--jobs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("batcher-jobs"),
    help="Folder that holds the job directories.",
)

_broker_options = chain(
    option(
        "--broker",
        metavar="URL",
        help="Redis-protocol broker, e.g. redis://host:6379/0 or rediss://host:6379/0. A URL with a password goes into "
        "the environment or a file. [default: an embedded one where the command can start it]",
    ),
    option(
        "--broker-file",
        type=click.Path(path_type=Path),
        help="File whose first line is the broker's URL, which may hold a password.",
    ),
)


def broker_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The broker, by URL or file, whose URL is one. Parameter: broker, a URL or None."""

    @functools.wraps(command)
    def with_checked(*args: Any, broker: str | None, **kwargs: Any) -> Any:
        if broker is not None:
            from batcher.broker.url import check_url

            # Before anything is read or written.
            check_url(broker)
        return command(*args, broker=broker, **kwargs)

    return any_broker_option(with_checked)


def any_broker_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same of a command that tells itself what is wrong with a URL."""

    @functools.wraps(command)
    def with_broker(*args: Any, broker: str | None, broker_file: Path | None, **kwargs: Any) -> Any:
        return command(*args, broker=_choose_broker(broker, broker_file), **kwargs)

    return _broker_options(with_broker)


def _choose_broker(url: str | None, file: Path | None) -> str | None:
    """The URL that was given; what the command line says goes before the environment. Raises InputError."""
    from batcher.broker.url import has_secret, read_url_file

    is_url_typed, is_file_typed = _is_typed("broker"), _is_typed("broker_file")
    if url is not None and is_url_typed and has_secret(url):
        raise InputError(
            "--broker: a password on the command line is seen by everyone who can run `ps` on this machine; put the "
            "URL into the environment as BATCHER_BROKER, or into a file that only you can read, for --broker-file"
        )
    if url is not None and file is not None and is_url_typed == is_file_typed:
        names = "--broker and --broker-file" if is_url_typed else "BATCHER_BROKER and BATCHER_BROKER_FILE"
        raise InputError(f"{names} are both given; leave out one")
    if file is None or (url is not None and is_url_typed):
        return url
    found = read_url_file(file)
    mode = stat.S_IMODE(file.stat().st_mode)
    if has_secret(found) and mode & stat.S_IROTH:
        click.echo(f"Warning: everyone on this machine can read {file} (mode {mode:o}); chmod 600 {file}", err=True)
    return found


def _is_typed(parameter: str) -> bool:
    """Whether it comes from the command line, not from the environment."""
    return click.get_current_context().get_parameter_source(parameter) is ParameterSource.COMMANDLINE


row_timeout_option = option(
    "--row-timeout",
    type=Number(min=0, min_open=True),
    help="Seconds that a completion may take once it has begun; then its row is an error row `timeout`. A worker's own "
    "goes before the job's.",
)

model_sha256_option = option(
    "--model-sha256",
    multiple=True,
    metavar="[NAME=]HEX",
    help="SHA-256 that the model's file must have, else it is not loaded; can be given several times.",
)

#: A job's place among others. Parameters: priority, finish_by.
standing_options = chain(
    option(
        "--priority",
        metavar="0-9",
        help="How urgent the job is: 9 goes before 8, and so on; also urgent (9), normal (5) and low (0). Jobs of one "
        "priority take turns. [default: normal]",
    ),
    option(
        "--finish-by",
        metavar="TIME",
        help="When the job has to be finished, such as 2027-01-31T18:00, of this machine's zone unless it has one, or "
        "+2h; `batcher status` says whether it will be. Within a priority the earliest goes first. [default: any time]",
    ),
)

json_option = option("--json", "as_json", is_flag=True, envvar="BATCHER_JSON", help="Print JSON, for programs.")

where_option = option(
    "--where",
    metavar="CONDITION",
    help="Only rows for which this holds, as in SQL: \"finish_reason = 'length' and completion_tokens > 40\"; "
    "docs/results.md has what can be said.",
)

gpu_layers_option = option(
    "--gpu-layers", type=click.IntRange(min=0), help="Layers on the GPU. [default: all, where there is one]"
)

context_option = option(
    "--ctx", type=click.IntRange(min=1), help="Tokens of a prompt and its completion together. [default: 2048]"
)


def find_job(job: str, jobs_dir: Path) -> "JobDir":
    """The job that JOB names: the path of a job directory, else an id under the jobs root. Raises JobError."""
    # Here and not above: it brings pyarrow, and `--help` looks at every command.
    from batcher.jobdir import root

    return root.find_job(job, jobs_dir)
