"""A job as a Python program has it: how far it is, its results, and what can be done to it."""

import html
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, Unpack

from batcher.api.engines import ModelSpecs, model_specs
from batcher.api.options import EngineOptions, check_options, shows_options
from batcher.api.work import check_here
from batcher.errors import BatcherError, InputError, JobError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.standing import Standing, parse_finish_by, parse_priority
from batcher.manage.cancel import CancelResult, cancel
from batcher.manage.delete import delete_job
from batcher.manage.export import ExportFormat, export
from batcher.manage.finish import Summary, finalize, read_summary
from batcher.manage.pause import PauseResult, pause
from batcher.manage.prioritize import prioritize
from batcher.manage.retry import equals, parse_where, retry
from batcher.manage.status import Status, StatusReader
from batcher.paths import expand_home
from batcher.words import counted, duration_text

if TYPE_CHECKING:
    from batcher.api.results import Results

logger = logging.getLogger(__name__)


class Job:
    """A job in its folder, from `batcher.run`, `batcher.submit` or `batcher.open`.

    It holds no rows and no connection: all is read from the job's files when it is asked for, so several of them, in
    several programs, can stand for one job. For all threads. Errors are those of `batcher.errors`: JobError where the
    folder is no job (any more), StorageError where the disk says no, CorruptFileError for a file that was damaged.
    """

    def __init__(self, folder: JobDir, *, broker: str | None = None, models: Sequence[str] = ()) -> None:
        """For `batcher.open`, which see. `models` are those that a resume on this machine takes when none are given."""
        self._folder = folder
        self._broker = broker
        self._models = tuple(models)
        self._reader = StatusReader(folder)
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        """The job directory, absolute. `path / "results"` is a Parquet dataset at all times."""
        return self._folder.path

    @property
    def id(self) -> str:
        """The job's id: the name of its folder."""
        return self._folder.job_id

    @property
    def is_complete(self) -> bool:
        """Whether every row has its result, and the count proved it."""
        return finalize(self._here) is not None

    def status(self) -> Status:
        """How far the job is now: rows, tokens, rates (1/s), ETA (s), shards, workers, failures. Reads files only."""
        _ = self._here
        with self._lock:
            return self._reader.read()

    def summary(self) -> Summary:
        """The totals of a complete job. Raises JobError while it is none."""
        folder = self._here
        finalize(folder)
        return read_summary(folder)

    def wait(self, *, progress: bool = False, timeout: float | None = None) -> Self:
        """Block until the job is complete; returns it.

        With `progress` a bar on the terminal or in the notebook, elsewhere a short line at times on stderr.
        Waiting starts no workers: `resume` does. A pause is waited out. Ctrl-C ends the waiting, not the job. Raises
        TimeoutError after `timeout` seconds, JobCancelledError if the job is cancelled, BrokerError if the broker that
        it was submitted to is away for 30 seconds.
        """
        from batcher.api.work import wait_for

        wait_for(self._here, self._broker, progress=progress, timeout_s=timeout)
        return self

    def results(self, *, where: str | None = None, partial: bool = False) -> "Results":
        """The results: `.to_pandas()`, `.to_polars()`, `.to_table()`, `.dataset()`, or a loop over dicts.

        With `where` only the rows for which this holds, as in SQL: "finish_reason = 'length'". Raises InputError for a
        condition that is wrong, JobError for a job that is not complete, unless `partial`: then what is finished when
        it is read.
        """
        from batcher.api.results import Results

        if not partial and not self.is_complete:
            status = self.status()
            done = f"{status.num_done:,} of {counted(status.num_rows, 'row')} done"
            raise JobError(
                f"{self.path}: the job is not complete ({done}); "
                "wait() for it, or resume() it, or take what is there with results(partial=True)"
            )
        return Results(self._here, where=where)

    def errors(self) -> "Results":
        """The rows that have failed so far, with `error_code` and `error_message`; as `results`."""
        from batcher.api.results import Results

        return Results(self._here, errors_only=True)

    def retry(
        self,
        where: str | Sequence[str] = (),
        *,
        set: Mapping[str, object] | None = None,  # noqa: A002 (the command line's name)
        error_code: str | None = None,
        custom_id: str | None = None,
        row: int | None = None,
    ) -> int:
        """Have rows run again that all conditions are true of, or all failed ones that could succeed; returns how many.

        `where` is as in SQL, over the columns of the results: `"finish_reason = 'length'"`; rows that have an answer
        keep it until the new one is there, and then as an earlier version in the job's folder `earlier`. `set` gives
        them other sampling parameters, such as `{"max_tokens": 256}`.
        Rows that were refused at submit stay as they are. A job that was submitted to a broker goes on there; of
        another the rows run when `resume` is called. Raises InputError for a condition that can't be read and for
        parameters that a row can't have, JobError for a job that is cancelled, JobBusyError while another command
        changes it, BrokerError.
        """
        given = [where] if isinstance(where, str) else [*where]
        named = (("error_code", error_code), ("custom_id", custom_id), ("row", row))
        given += [equals(key, str(value)) for key, value in named if value is not None]
        condition = parse_where(self._here, given)
        settings = dict(set or {})
        if self._broker is None:
            selection = retry(self._here, where=condition, settings=settings).selection
        else:
            from batcher.broker.sender import sending

            with sending(self._broker) as send:
                selection = retry(self._here, where=condition, settings=settings, send=send).selection
        if selection.num_refused or selection.num_not_retriable:
            logger.info(
                "%s: left out: %s that %s refused at submit, %s whose error does not go away",
                *(self.id, counted(selection.num_refused, "row"), "was" if selection.num_refused == 1 else "were"),
                counted(selection.num_not_retriable, "row"),
            )
        return selection.num_rows

    @shows_options(EngineOptions)
    def resume(
        self,
        *,
        model: ModelSpecs | None = None,
        workers: int = 1,
        broker: str | None = None,
        progress: bool = False,
        **options: Unpack[EngineOptions],
    ) -> Self:
        """Go on with what is unfinished, paused, cancelled or opened by `retry`; what is finished is kept.

        Returns the job.
        With `broker`, or if the job was submitted to one, its shards are sent there, and this returns at once; `wait`
        waits. Else it blocks while `workers` processes of this machine complete the job, as `batcher.run` does, which
        has the parameters and errors. `model` are the models that they load, by default those of `run` or of the same
        names on this machine.
        """
        from batcher.api.work import resume_elsewhere, resume_here

        checked = check_options("resume", EngineOptions, options)
        if broker is not None:
            self._broker = broker
        if self._broker is not None:
            resume_elsewhere(self._here, self._broker)
            return self
        specs = self._models if model is None else model_specs(model)
        resume_here(self._here, specs, num_workers=workers, progress=progress, options=checked)
        return self

    def pause(self) -> bool:
        """Have the workers of the job stop at their next row and take other work; finished rows stay.

        Waiting goes on meanwhile; `resume` has the job go on. A `batcher.run` of it raises JobPausedError. Returns
        whether it is paused now; False: it is complete or cancelled.
        """
        return pause(self._here) in (PauseResult.PAUSED, PauseResult.ALREADY_PAUSED)

    def set_priority(self, priority: int | str) -> None:
        """Give the job another priority, 0 to 9 or "low", "normal" or "urgent", while it waits or runs.

        Shards in work are finished first; those that wait in the workers' queue are moved within seconds. Does nothing
        to a job that is complete. Raises InputError, JobBusyError while another command changes the job.
        """
        prioritize(self._here, Standing(priority=parse_priority(priority)))

    def set_finish_by(self, time: datetime | timedelta | str | None) -> None:
        """Have the job be finished by a time, given as for `batcher.submit`, or None: by no time. As `set_priority`."""
        finish_by = None if time is None else parse_finish_by(time)
        prioritize(self._here, Standing(finish_by=finish_by), forgets_time=time is None)

    def cancel(self) -> bool:
        """Stop the job: its workers end at their next row, and finished rows stay. `resume` takes it up again.

        Returns whether it is cancelled now; False: it is complete.
        """
        return cancel(self._here) is not CancelResult.TOO_LATE

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: Literal["rows", "openai"] = "rows",  # noqa: A002 (the command line's name)
        columns: str | None = None,
        output_column: str | None = None,
        partial: bool = False,
        force: bool = False,
    ) -> int:
        """Write the results as one file; its suffix says how: .parquet, .csv (a row a choice) or .jsonl (a line a row).

        `format` is what a JSONL line holds: a response object with the row's own columns, or an OpenAI batch output
        line. With `columns` ("finish_reason,output.name") or `output_column` the file has the input's rows in their
        order, the input's columns under their own names, then these of the results, and the answer as `output_column`:
        the text, or what the job has of `output` and `label`. Returns the number of rows or lines. `force` replaces a
        file that is there, `partial` takes a job that is not complete. Raises InputError for the path and the columns,
        JobError for the job.
        """
        layouts = {each.value: each for each in ExportFormat}
        if format not in layouts:
            raise InputError(f"format is {format!r}; use one of {', '.join(layouts)}")
        return export(
            self._here,
            Path(expand_home(path)),
            layout=layouts[format],
            columns=columns,
            output_column=output_column,
            force=force,
            partial=partial,
        )

    def delete(self) -> None:
        """Delete the job, and all in its `results` and other folders. Files of others beside these are left there."""
        delete_job(self._folder)

    @property
    def _here(self) -> JobDir:
        """The folder. Raises JobError where the job is not there any more: its manifest may have been read before."""
        check_here(self._folder)
        return self._folder

    def __repr__(self) -> str:
        return f"<Job {self.id!r}: {self._line()}>"

    def _repr_html_(self) -> str:
        """For a notebook."""
        line = html.escape(f"{self.id}: {self._line()}")
        return f"<div><b>Job</b> {line}<br><small>{html.escape(str(self.path))}</small></div>"

    def _line(self) -> str:
        """The status in a line; never raises."""
        try:
            status = self.status()
        except BatcherError as exc:
            return str(exc)
        texts = [status.state.value, f"{status.num_done:,} of {counted(status.num_rows, 'row')}"]
        texts += [counted(status.num_errors, "error")] if status.num_errors else []
        texts += [f"ETA {duration_text(status.eta_s)}"] if status.eta_s is not None else []
        return ", ".join(texts)
