"""`batcher run ... -o -`: results go to standard output, and the job's folder goes with the command.

It stays where the command could not finish or was stopped, and is named: what was computed is not lost.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli import EXIT_ERROR_ROWS
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.manage.finish import Summary

#: What stands for standard output.
STDOUT = "-"


@contextmanager
def output_folder(output: str) -> Iterator[str]:
    """The folder of the job for `-o OUTPUT`; of STDOUT one that is gone afterwards, unless the job could not finish."""
    from batcher.jobdir.folder import JobDir

    if output != STDOUT:
        yield output
        return
    folder = Path(tempfile.mkdtemp(prefix="batcher-run-"))
    job = JobDir(folder / "run")
    try:
        yield str(job.path)
    finally:
        if not job.exists() or job.is_complete:
            shutil.rmtree(folder, ignore_errors=True)


def write_results(job: "JobDir", summary: "Summary", *, quiet: bool) -> int:
    """Write all result rows to standard output, a JSON line a choice, in input order. Returns the exit code."""
    from batcher.cli.texts import print_rows
    from batcher.manage.finished import tables_in_order

    print_rows(tables_in_order(job), limit=None)
    if not quiet or summary.num_errors:
        rows = f"{summary.num_ok:,} ok, {counted(summary.num_errors, 'error')}"
        reasons = ", ".join(f"{code} {number:,}" for code, number in sorted(summary.error_codes.items()))
        click.echo(f"{counted(summary.num_rows, 'row')}: {rows}{f' ({reasons})' if reasons else ''}", err=True)
    return EXIT_ERROR_ROWS if summary.num_errors else 0
