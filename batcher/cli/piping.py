"""`batcher run ... -o -`: results go to standard output, and the job's folder goes with the command.

It stays where the command could not finish or was stopped, or its results could not be written, and is named: what was
computed is not lost.
"""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli import EXIT_ERROR_ROWS, EXIT_INTERRUPTED
from batcher.cli.stdout import StdoutError, has_reader
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.manage.finish import Summary

#: What stands for standard output.
STDOUT = "-"


@dataclass(slots=True)
class OutputFolder:
    """The folder of a job. Mutable.

    `is_written`: its results are where they were wanted, so that a folder for them alone may go.
    """

    path: str
    is_written: bool = False


@contextmanager
def output_folder(output: str) -> Iterator[OutputFolder]:
    """The folder of the job for `-o OUTPUT`; of STDOUT one that is gone afterwards, once its results are written."""
    from batcher.jobdir.folder import JobDir

    if output != STDOUT:
        yield OutputFolder(output)
        return
    temporary = Path(tempfile.mkdtemp(prefix="batcher-run-"))
    folder = OutputFolder(str(temporary / "run"))
    try:
        yield folder
    finally:
        if folder.is_written or not JobDir(Path(folder.path)).exists():
            shutil.rmtree(temporary, ignore_errors=True)


def write_results(folder: OutputFolder, job: "JobDir", summary: "Summary", *, quiet: bool) -> int:
    """Write all result rows to standard output, a JSON line a choice, in input order. Returns the exit code.

    Where that fails or is stopped, say how they are read. A reader that goes after the first has what it wanted.
    """
    from batcher.cli.texts import print_rows
    from batcher.manage.finished import tables_in_order

    try:
        if not has_reader():
            raise StdoutError("standard output: its reader was gone before there were results")
        print_rows(tables_in_order(job), limit=None)
        sys.stdout.flush()
    except BrokenPipeError:
        folder.is_written = True
        raise
    except StdoutError as exc:
        _say_kept(job, f"Error: {exc}")
        return exc.exit_code
    except KeyboardInterrupt:
        _say_kept(job, "Stopped while the results were written.")
        return EXIT_INTERRUPTED
    folder.is_written = True
    if not quiet or summary.num_errors:
        rows = f"{summary.num_ok:,} ok, {counted(summary.num_errors, 'error')}"
        reasons = ", ".join(f"{code} {number:,}" for code, number in sorted(summary.error_codes.items()))
        click.echo(f"{counted(summary.num_rows, 'row')}: {rows}{f' ({reasons})' if reasons else ''}", err=True)
    return EXIT_ERROR_ROWS if summary.num_errors else 0


def _say_kept(job: "JobDir", problem: str) -> None:
    line = shlex.join(["batcher", "results", str(job.path), "--json"])
    click.echo(f"{problem}\nAll rows are done and kept. Read them with:\n  {line}", err=True)
