"""What came of a job under chaos: the audit of its results, and which of its rows were computed more than once.

The audit reads `results/*.parquet` as anybody would, with a bare Parquet reader, and holds it against the rows that
went in. What was computed more than once can't be seen in the results, so a `Witness` watches the job directory while
the job runs and keeps what a commit deletes: a copy of every chunk, a link to every attempt's journal.
"""

import io
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.errors import BatcherError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import TEMP_PREFIX
from batcher.manage.finish import STALE_AFTER_S, read_summary

#: The one error code that chance may give a row here: each of several random kills found it alone in a worker.
SET_ASIDE = "worker_crashed"
#: Seconds from an attempt's claim until it has read the chunks of those before it: a flush to disk and small files.
#: Not longer, as it also is the time in which an attempt could waste work unseen.
_READING_S = 0.5
#: Problems that a report lists of one job.
_NUM_LISTED = 10


class Why(StrEnum):
    """Why an attempt computed a row that an earlier attempt had begun."""

    UNSAVED = "in flight or not yet saved when a worker died, stopped or froze"
    OVERLAP = "by two workers at once, one of which had lost its lease"
    DAMAGED = "after its chunk was damaged"
    SAVED = "although it was saved"


@dataclass(frozen=True, slots=True)
class InputRow:
    """What must come out as it went in."""

    custom_id: str
    prompts: tuple[str, ...]
    topic: str


@dataclass(slots=True)
class SavedChunk:
    """A chunk as it was when it appeared. `seen_at` is Unix time, no earlier than that; `texts` are by row."""

    shard: int
    attempt: int
    seen_at: float
    texts: dict[int, tuple[str | None, ...]]
    is_damaged: bool = False


@dataclass(slots=True)
class Audit:
    """The account of one job. `lost` and `twice` are row numbers; `problems` say what else is not as it must be."""

    job_id: str
    num_in: int
    num_ok: int = 0
    num_set_aside: int = 0
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    computed_again: Counter[Why] = field(default_factory=Counter)
    #: Rows of which two attempts saved different texts (the order of sums in a batch), out of those both saved.
    num_differing: int = 0
    num_compared: int = 0

    @property
    def has_passed(self) -> bool:
        return not (self.lost or self.twice or self.problems)

    def blame(self, problem: str) -> None:
        if len(self.problems) < _NUM_LISTED:
            self.problems.append(f"{self.job_id}: {problem}")


class Witness:
    """Watches one job directory. Call `look` several times a second, and before anything is damaged.

    A chunk or journal that comes and goes between two looks is not seen: its rows are then missing from the account of
    what was computed again, never from that of the results.
    """

    def __init__(self, job: JobDir, folder: Path) -> None:
        self.job = job
        #: By path.
        self.chunks: dict[Path, SavedChunk] = {}
        self.torn: list[Path] = []
        self.num_parts = 0
        self._folder = folder
        self._journals: dict[tuple[int, int], Path] = {}
        folder.mkdir(parents=True)

    def look(self) -> bool:
        """Take down what is new. Returns whether rows were saved or committed since the last look."""
        before = len(self.chunks), self.num_parts
        for shard in _numbers(self.job.path / "attempts"):
            for path in _files(self.job.attempts_dir(shard), ".journal"):
                self._keep_journal(shard, path)
        for shard in _numbers(self.job.path / "chunks"):
            for chunk in self.job.chunks(shard):
                if chunk.path not in self.chunks:
                    self._keep_chunk(shard, chunk.attempt, chunk.path)
        self.num_parts = len(self.job.committed_shards())
        return (len(self.chunks), self.num_parts) != before

    def begun(self) -> dict[int, set[int]]:
        """Row to the attempts that computed it, finished or not, by all there is: journals, chunks and parts."""
        found: dict[int, set[int]] = defaultdict(set)
        for (_, attempt), path in self._journals.items():
            for line in path.read_text(errors="replace").splitlines():
                mark, _, number = line.partition(" ")
                if mark in {"+", "-"} and number.isdigit():
                    found[int(number)].add(attempt)
        for chunk in self.chunks.values():
            for row in chunk.texts:
                found[row].add(chunk.attempt)
        return found

    def _keep_journal(self, shard: int, path: Path) -> None:
        key = (shard, int(path.stem))
        if key in self._journals:
            return
        # A link: what is written to the journal later is seen here too, and its deletion leaves it.
        kept = self._folder / f"{shard:05d}-{path.name}"
        try:
            os.link(path, kept)
        except FileNotFoundError:
            return
        self._journals[key] = kept

    def _keep_chunk(self, shard: int, attempt: int, path: Path) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        (self._folder / f"{shard:05d}-{path.name}").write_bytes(data)
        try:
            table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
        except (OSError, pa.ArrowException):
            self.torn.append(path)
            table = pa.table({"row": [], "text": []})
        texts: dict[int, tuple[str | None, ...]] = {}
        for row, text in zip(table["row"].to_pylist(), table["text"].to_pylist(), strict=True):
            texts[row] = (*texts.get(row, ()), text)
        self.chunks[path] = SavedChunk(shard, attempt, time.time(), texts)


def audit_job(witness: Witness, rows: Sequence[InputRow]) -> Audit:
    """Hold the results of a job that should be complete against `rows`, its input."""
    job = witness.job
    found = Audit(job.job_id, num_in=len(rows))
    if not job.exists():
        found.blame("it has no manifest")
        return found
    results = list(_read_results(job, found))
    _check_rows(found, rows, results)
    _check_proof(found, job)
    _check_leftovers(found, job)
    for path in witness.torn:
        found.blame(f"{path.name}: a chunk that was torn when it appeared")
    _check_chunks(found, witness, results)
    _count_computed_again(found, witness, results)
    return found


def _read_results(job: JobDir, found: Audit) -> Iterator[dict[str, Any]]:
    """The rows of all parts, in the order of their names. Notes parts that are missing or too many."""
    expected = {f"part-{info.shard:05d}.parquet" for info in job.manifest.shards}
    paths = sorted(job.results_dir.glob("*.parquet"))
    if {path.name for path in paths} != expected:
        found.blame(f"{len(expected)} shards, but {len(paths)} parts or other names")
    for path in paths:
        try:
            yield from pq.ParquetFile(path, page_checksum_verification=True).read().to_pylist()
        except (OSError, pa.ArrowException) as exc:
            found.blame(f"{path.name}: cannot be read: {exc}")


def _check_rows(found: Audit, rows: Sequence[InputRow], results: Sequence[dict[str, Any]]) -> None:
    """Each input row once, whole, in order and as it went in."""
    keys = [(result["row"], result["index"]) for result in results]
    if keys != sorted(keys):
        found.blame("the results are not in the order of the input")
    found.twice = sorted({row for (row, _), count in Counter(keys).items() if count > 1})
    by_row: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_row[result["row"]].append(result)
    found.lost = [row for row in range(len(rows)) if row not in by_row]
    for row, choices in by_row.items():
        if not 0 <= row < len(rows):
            found.blame(f"row {row} never went in")
            continue
        expected = rows[row]
        statuses = {(choice["status"], choice["error_code"]) for choice in choices}
        if statuses == {("ok", None)}:
            found.num_ok += 1
            prompts = expected.prompts
        elif statuses == {("error", SET_ASIDE)}:
            found.num_set_aside += 1
            prompts = expected.prompts[:1]
        else:
            found.blame(f"row {row} ended with {sorted(map(str, statuses))}")
            continue
        if len({choice["index"] for choice in choices}) != len(prompts):
            found.blame(f"row {row} has {len(choices)} choices of {len(prompts)}")
        elif any(
            (choice["custom_id"], choice["prompt"], choice["topic"])
            != (expected.custom_id, prompts[choice["index"]], expected.topic)
            for choice in choices
        ):
            found.blame(f"row {row} has another row's id, prompt or column")


def _check_proof(found: Audit, job: JobDir) -> None:
    if not job.success_path.exists():
        found.blame("it has no _SUCCESS")
        return
    try:
        proof = read_summary(job).proof
    except BatcherError as exc:
        found.blame(str(exc))
        return
    counted = (found.num_in, found.num_ok, found.num_set_aside)
    if (proof.rows_in, proof.rows_ok, proof.rows_error) != counted or not proof.holds:
        found.blame(f"summary.json proves {proof}, but the results have {counted}")


def _check_leftovers(found: Audit, job: JobDir) -> None:
    """Nothing of the work is left beside the results. For when no process is left that could be writing."""
    chunks = sorted(job.path.glob("chunks/*/*.parquet"))
    if chunks:
        found.blame(f"{len(chunks)} chunks of committed shards are left, {chunks[0].relative_to(job.path)} the first")
    if not job.success_path.exists():
        return
    # Not those of a worker that was killed after the end, or while it claimed a shard shortly before: nobody can tell
    # that its claim is not being written right now.
    end = job.success_path.stat().st_mtime
    claims = job.path / "attempts"
    temporary = [
        path
        for path in sorted(job.path.rglob(f"{TEMP_PREFIX}*"))
        if path.stat().st_mtime < end - (STALE_AFTER_S if path.is_relative_to(claims) else 0.0)
    ]
    if temporary:
        found.blame(f"{len(temporary)} temporary files are left, {temporary[0].relative_to(job.path)} the first")


def _check_chunks(found: Audit, witness: Witness, results: Sequence[dict[str, Any]]) -> None:
    """A row in the results is what its attempt saved, to the letter; and no attempt saved a row twice."""
    saved: dict[tuple[int, int], tuple[str | None, ...]] = {}
    for chunk in witness.chunks.values():
        for row, texts in chunk.texts.items():
            if (row, chunk.attempt) in saved:
                found.blame(f"row {row} is in two chunks of attempt {chunk.attempt}")
            saved[row, chunk.attempt] = texts
    texts_of: dict[tuple[int, int], list[str | None]] = defaultdict(list)
    for result in results:
        texts_of[result["row"], result["attempts"]].append(result["text"])
    changed = [row for (row, attempt), texts in texts_of.items() if saved.get((row, attempt), (*texts,)) != (*texts,)]
    if changed:
        found.blame(f"{len(changed)} rows differ from what their attempt saved, row {changed[0]} the first")
    by_row: dict[int, set[tuple[str | None, ...]]] = defaultdict(set)
    copies = Counter(row for row, _ in saved)
    for (row, _), texts in saved.items():
        by_row[row].add(texts)
    found.num_compared = sum(count > 1 for count in copies.values())
    found.num_differing = sum(len(texts) > 1 for texts in by_row.values())


def _count_computed_again(found: Audit, witness: Witness, results: Sequence[dict[str, Any]]) -> None:
    """Count, for each row, the attempts after the first that computed it, by reason."""
    begun = witness.begun()
    committed: dict[int, int] = {result["row"]: result["attempts"] for result in results}
    for row, attempt in committed.items():
        begun[row].add(attempt)
    holders: dict[int, list[SavedChunk]] = defaultdict(list)
    for chunk in witness.chunks.values():
        for row in chunk.texts:
            holders[row].append(chunk)
    claims = _Claims(witness.job)
    wasted: dict[str, list[int]] = defaultdict(list)
    for row, attempts in begun.items():
        for attempt in sorted(attempts)[1:]:
            earlier = [chunk for chunk in holders[row] if chunk.attempt < attempt]
            claimed_at = claims.claimed_at(row, attempt)
            there = [chunk for chunk in earlier if chunk.seen_at < claimed_at]
            if not there:
                has_rival = earlier or committed.get(row, attempt) < attempt
                why = Why.OVERLAP if has_rival else Why.UNSAVED
            elif all(chunk.is_damaged for chunk in there):
                # When it was damaged does not count: an attempt reads the chunks some time after its claim.
                why = Why.DAMAGED
            elif claims.was_overtaken(row, attempt):
                why = Why.OVERLAP
            else:
                why = Why.SAVED
                savers = ", ".join(f"{chunk.attempt} ({claimed_at - chunk.seen_at:.1f} s before)" for chunk in there)
                wasted[f"attempt {attempt} computed rows again that attempt {savers} had saved"].append(row)
            found.computed_again[why] += 1
    for what, rows in wasted.items():
        found.blame(f"{what}: {len(rows)}, row {rows[0]} the first")


class _Claims:
    """When the attempts of a job began, in Unix time."""

    def __init__(self, job: JobDir) -> None:
        self._job = job
        self._known: dict[tuple[int, int], float] = {}
        # All rows here are of one model, so shards hold them in the order of the input.
        self._shards: dict[int, int] = {}
        for info in job.manifest.shards:
            first = len(self._shards)
            self._shards.update(dict.fromkeys(range(first, first + info.num_rows), info.shard))

    def claimed_at(self, row: int, attempt: int) -> float:
        key = self._shards[row], attempt
        if key not in self._known:
            record = json.loads((self._job.attempts_dir(key[0]) / f"{attempt:04d}.json").read_text())
            self._known[key] = datetime.fromisoformat(record["claimed_at"]).timestamp()
        return self._known[key]

    def was_overtaken(self, row: int, attempt: int) -> bool:
        """Whether a rival committed the shard, and deleted its chunks, just when the attempt was about to read them."""
        try:
            committed_at = self._job.part_path(self._shards[row]).stat().st_mtime
        except FileNotFoundError:
            return False
        return 0 <= committed_at - self.claimed_at(row, attempt) < _READING_S


def _numbers(folder: Path) -> list[int]:
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    except FileNotFoundError:
        return []


def _files(folder: Path, suffix: str) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.name.endswith(suffix)]
    except FileNotFoundError:
        return []
