"""What an attempt leaves for those after it: its journal while it runs, and how it ended if not in good order.

The journal is a text file that says what the attempt is doing, written before it is done, so that it is true after a
SIGKILL (it is not flushed to disk: a machine that fails takes it along, and blames nobody). Rows by their number:

    ? 17    the prompt of row 17 is being tokenized
    + 17    a choice of row 17 enters the engine
    = 17    row 17 is all that this process computes from now on
    - 17    row 17 is finished
    .       nothing is being tokenized, and no row is alone, any more
    !       all rows are finished, and the part is being made

An orderly end, also a stop, a cancellation or an error that has its message, deletes the journal. One that stays is
the trace of a crash, of a worker that vanished, or of one that is frozen and may come back.
What both mean for the next attempt is for `verdict` to say.
"""

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from batcher.errors import StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Store

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How an attempt ended that did not end in good order."""

    #: Its process died, or its engine did.
    CRASHED = "crashed"
    #: It could not go on, and said why: a damaged file, a full disk.
    FAILED = "failed"


class Cause(StrEnum):
    """What ended a crashed attempt."""

    #: The process died of what it did: SIGSEGV, SIGABRT and the like.
    FAULT = "fault"
    #: llama.cpp reported an error that the engine does not survive.
    ENGINE = "engine"
    #: The engine made no step for longer than any should take.
    STALLED = "stalled"
    #: The kernel killed the process because memory was short.
    MEMORY = "memory"
    #: The process was killed by somebody.
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of an attempt. `cause` is that of a crash; `detail` says in words what happened."""

    attempt: int
    worker: str
    outcome: Outcome
    detail: str
    at: datetime
    cause: Cause | None = None
    is_retriable: bool = True


_END = TypeAdapter(AttemptEnd)


def record_end(
    job: JobDir,
    shard: int,
    attempt: int,
    *,
    worker: str,
    outcome: Outcome,
    detail: str,
    cause: Cause | None = None,
    is_retriable: bool = True,
) -> bool:
    """Say how an attempt ended. The first to say it wins; returns whether this was. Raises StorageError."""
    end = AttemptEnd(attempt, worker, outcome, detail, datetime.now(UTC), cause, is_retriable)
    path = job.attempt_end_path(shard, attempt=attempt)
    return job.store.create(path, _END.dump_json(end), guard=job.check_exists)


def read_ends(job: JobDir, shard: int) -> list[AttemptEnd]:
    """How earlier attempts of `shard` ended, those that did not end in good order, oldest first."""
    return load_ends(job, job.list_attempts(shard).ends)


def load_ends(job: JobDir, paths: Iterable[Path]) -> list[AttemptEnd]:
    """The ends that these files say. One that can't be read counts as that of an attempt that vanished: it is none."""
    found = []
    for path in paths:
        try:
            found.append(_END.validate_json(job.store.read(path)))
        except (OSError, StorageError, ValidationError):
            continue  # Damaged, or forgotten meanwhile.
    return found


def forgive(job: JobDir, shard: int) -> None:
    """Let a shard be tried again that was given up; suspects stay suspects. For the user's own `resume` and `run`."""
    listed = job.list_attempts(shard)
    for end in load_ends(job, listed.ends):
        journal = listed.journals.get(end.attempt)
        if end.outcome is Outcome.FAILED:
            job.store.delete_many([job.attempt_end_path(shard, attempt=end.attempt)])
        elif journal is not None and not read_journal(journal, store=job.store).has_begun:
            job.store.delete_many([journal])


def delete_journals(job: JobDir, shard: int, *, up_to: int) -> None:
    """Drop all suspicion that attempts up to `up_to`, which has committed `shard`, have left. Never raises."""
    # A journal that stays beside a part means nothing.
    with contextlib.suppress(StorageError):
        journals = job.list_attempts(shard).journals
        job.store.discard([path for number, path in journals.items() if number <= up_to])


class Journal:
    """The journal of one attempt, open for writing. For all threads: a line is one write to the end of the file."""

    def __init__(self, path: Path, *, store: Store = LOCAL) -> None:
        """Begin it. Raises StorageError."""
        self._store = store
        self._path = path
        # The engine's thread may still speak of a row when the attempt has ended, and the number of a closed descriptor
        # is soon that of another file.
        self._lock = threading.Lock()
        self._is_over = False
        self._log = store.log(path)

    def tokenizing(self, row: int) -> None:
        self._write(f"? {row}\n")

    def no_suspect(self) -> None:
        """Nothing is tokenized or alone any more."""
        self._write(".\n")

    def admitted(self, row: int) -> None:
        self._write(f"+ {row}\n")

    def alone(self, row: int) -> None:
        self._write(f"= {row}\n")

    def finished(self, rows: Iterable[int]) -> None:
        self._write("".join(f"- {row}\n" for row in rows))

    def committing(self) -> None:
        self._write("!\n")

    def close(self, *, is_orderly: bool) -> None:
        """Close the file, and delete it where the attempt ends in good order."""
        with self._lock:
            self._is_over = True
            self._log.close()
        if is_orderly:
            # One that could not be deleted only makes the next attempt careful.
            self._store.discard([self._path])

    def _write(self, line: str) -> None:
        with self._lock:
            if self._is_over:
                return
            try:
                self._log.append(line.encode())
            except StorageError as exc:
                # The engine's thread is no place to fail in. What the disk refuses here it soon refuses to a chunk.
                self._is_over = True
                logger.warning("%s; a crash now would be blamed on nobody", exc)


@dataclass(frozen=True, slots=True)
class JournalState:
    """Where an attempt stood at its last word. `has_begun`: it had begun with its rows, and was not yet committing."""

    in_flight: frozenset[int] = frozenset()
    alone: int | None = None
    has_begun: bool = False


def read_journal(path: Path, *, store: Store = LOCAL) -> JournalState:
    """Read a journal to where it breaks off. One that is gone or unreadable says nothing of any row."""
    in_flight: set[int] = set()
    tokenizing: int | None = None
    alone: int | None = None
    has_begun = False
    for mark, row in _read_lines(path, store):
        if mark == "?":
            tokenizing, has_begun = row, True
        elif mark == ".":
            tokenizing, alone, has_begun = None, None, True
        elif mark == "+":
            in_flight.add(row)
        elif mark == "=":
            alone, has_begun = row, True
        elif mark == "-":
            in_flight.discard(row)
            alone = None if alone == row else alone
        elif mark == "!":
            in_flight.clear()
            tokenizing, alone, has_begun = None, None, False
    in_flight.update(row for row in (tokenizing, alone) if row is not None)
    return JournalState(frozenset(in_flight), alone, has_begun)


def _read_lines(path: Path, store: Store) -> Iterator[tuple[str, int]]:
    """Marks and rows (-1 where the mark has none), without a last line that is torn."""
    try:
        text = store.read(path).decode(errors="replace")
    except (OSError, StorageError):
        return
    for line in text.split("\n")[:-1]:
        mark, _, row = line.partition(" ")
        if not row:
            yield mark, -1
        elif row.isascii() and row.isdigit():
            yield mark, int(row)
