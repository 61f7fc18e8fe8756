"""The command line: parse, call one function, print. Commands load when they are used, so `--help` is instant.

Exit codes: 0 all rows ok, 1 the job ended with error rows, 2 bad usage or input, 3 the job could not finish
or the output not be written, 130 interrupted.

run.py          run, submit, worker, resume
jobs.py         status, list, pause, cancel, delete
workers.py      workers
results.py      results, export, retry
checks.py       validate, doctor
drain.py        drain
estimate.py     estimate
priority.py     priority
models.py       models
health.py       health
completion.py   completion
completing.py   what a shell offers at the Tab key
tune.py         tune
serve.py        serve
options.py      what options are made of, and those that several commands share
row_options.py  options that say what the rows of a job are
engines.py      options of the commands that load models
logs.py         the log of commands that stay, and its options
piping.py       results on standard output, of a job whose folder goes
stdout.py       standard output, and what is said where it can't be written
watch.py        waiting for a job, and telling how it ended
query.py        results by SQL: query
diff.py         two jobs beside each other: diff
row_table.py    rows as a table
texts.py        a status, the summary, a sample of the results
job_table.py    the table of `batcher list`
unserved.py     what is said of models that no worker has
doctor/         the checks of `batcher doctor`
"""

import atexit
import difflib
import importlib
import os
import sys
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

import batcher
from batcher.cli.stdout import take_stdout
from batcher.errors import BatcherError
from batcher.startup import start_fast, start_in_utf8

EXIT_ERROR_ROWS = 1
#: Of `doctor` and `health`; what asks for a machine's health takes 1 for ill.
EXIT_CHECK_FAILED = 1
EXIT_INTERRUPTED = 130

#: Command name -> module under `batcher.cli` whose attribute of the same name (with `_command`) it is.
#: In the order in which `--help` lists them.
_COMMANDS = {
    "run": "run",
    "submit": "run",
    "worker": "run",
    "resume": "run",
    "serve": "serve",
    "status": "jobs",
    "list": "jobs",
    "workers": "workers",
    "results": "results",
    "export": "results",
    "query": "query",
    "diff": "diff",
    "retry": "results",
    "pause": "jobs",
    "priority": "priority",
    "cancel": "jobs",
    "delete": "jobs",
    "drain": "drain",
    "validate": "checks",
    "estimate": "estimate",
    "models": "models",
    "tune": "tune",
    "doctor": "checks",
    "health": "health",
    "completion": "completion",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when first looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = getattr(importlib.import_module(f"batcher.cli.{module}"), f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names alone: their help would import all commands, and a person waits at the Tab key."""
        names = [CompletionItem(name) for name in _COMMANDS if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but for the hint: it looks among the commands that are loaded, which are none."""
        name = args[0]
        if name not in _COMMANDS and (near := difflib.get_close_matches(name, _COMMANDS, n=3)):
            ctx.fail(f"No such command {name!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(batcher.__version__, prog_name="batcher")
def cli() -> None:
    """Turn a file of prompts into a Parquet dataset of completions, on your own machines.

    \b
    Start here:
      batcher run prompts.jsonl -o out --max-tokens 64
    """


def main() -> NoReturn:
    """Entry point: what Batcher raises on purpose becomes one line and an exit code, never a traceback."""
    start_in_utf8()
    start_fast()
    take_stdout()
    # What is registered first is called last, after the threads have ended.
    ending = _Ending()
    atexit.register(ending)
    ending.code = run_cli(sys.argv[1:])
    sys.exit(ending.code)


class _Ending:
    """Ends the process without the destructors of C++ libraries, once Python has done all that it does at an end.

    Now and then one of pyarrow's threads is still being started then, and its destructor ends a command that has done
    its work with SIGABRT ("terminate called without an active exception"). Mutable.
    """

    def __init__(self) -> None:
        self.code: int | None = None

    def __call__(self) -> None:
        if self.code is None:
            return  # A fault of ours, which Python shows.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (BatcherError, OSError, ValueError):
            return  # Nobody reads them any more; Python knows what to do then.
        os._exit(self.code)


def run_cli(args: list[str]) -> int:
    """Run one command line and return its exit code."""
    stdout = sys.stdout
    try:
        result: Any = cli.main(args=args, prog_name="batcher", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except BatcherError as exc:
        click.echo(f"Error: {exc}", err=True)
        return exc.exit_code
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has what it wanted.
        sys.stderr.close()
        return 0
    except SystemExit:
        # So it is where click finds that out: it puts something in the place of stdout, and exits with 1.
        if sys.stdout is not stdout:
            return 0
        raise
    return result if isinstance(result, int) else 0
