"""In which times a job was worked on, by what its attempts left.

An attempt at a shard lasts from its claim to the commit of the part; one that another came after, to the last file that
it wrote before, which the claim of the next one notes (`Attempt.idle_since`). Attempts that run at once count once. So
a night between an interruption and the resume is no work, and neither is the time until a complete job is retried.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from batcher.jobdir.folder import Attempt, JobDir
from batcher.jobdir.listing import AttemptFiles

#: Begin and end, in Unix seconds.
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Work:
    """What was worked on a job: from the earliest claim to the last commit, None where there was none, for so many
    `seconds`."""

    started_at: datetime | None
    finished_at: datetime | None
    seconds: float


def read_work(job: JobDir) -> Work:
    """The work on a complete job. Reads each claim, most shards having one, and asks for each part once."""
    claimed_at: list[datetime] = []
    committed_at: list[float] = []
    spans: list[Span] = []
    for shard, last in _num_attempts(job).items():
        claims = [claim for number in range(1, last + 1) if (claim := job.read_attempt(shard, number)) is not None]
        claimed_at += [claim.claimed_at for claim in claims]
        part = job.store.head(job.part_path(shard))
        if part is not None:
            committed_at.append(part.modified_s)
        spans += spans_of(claims, end=None if part is None else part.modified_s)
    finished_at = datetime.fromtimestamp(max(committed_at), UTC) if committed_at else None
    return Work(min(claimed_at, default=None), finished_at, covered_s(spans))


def _num_attempts(job: JobDir) -> dict[int, int]:
    paths: dict[int, list[Path]] = {}
    for entry in job.store.list(job.attempts_root):
        if len(entry.parts) == 2 and entry.parts[0].isdigit():
            paths.setdefault(int(entry.parts[0]), []).append(entry.path)
    return {shard: AttemptFiles.of(found).last for shard, found in paths.items()}


def spans_of(claims: Iterable[Attempt], *, end: float | None) -> Iterator[Span]:
    """When the attempts at a shard ran, given their claims in order; the last one until `end`, None: nobody knows."""
    begin: float | None = None
    for claim in claims:
        if begin is not None:
            yield begin, (claim.idle_since or claim.claimed_at).timestamp()
        begin = claim.claimed_at.timestamp()
    if begin is not None and end is not None:
        yield begin, end


def covered_s(spans: Iterable[Span]) -> float:
    """Seconds that lie in at least one of these."""
    seconds, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        # Claims carry a worker's clock, files that of their store: an end may lie before its begin.
        seconds += max(0.0, end - max(begin, until))
        until = max(until, end)
    return seconds
