"""How fast workers of a jobs folder are, by what they have done there, and what a job takes of them.

Results say what was computed, by whom and in which attempt; the claim and the file say from when to when. A worker may
hold several shards at a time, so its time is the union of theirs. Nothing is asked of workers, and nothing computed.
"""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batcher.errors import BatcherError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.root import list_jobs
from batcher.manage.finished import finished_table
from batcher.manage.worked import covered_s
from batcher.types import FinishReason, RowStatus, SamplingParams
from workers.estimating.lengths import Length
from workers.estimating.trial import SeenSequence
from workers.estimating.whole import count_tokens, spread_of_lengths

#: The newest jobs and completions that are looked at.
_MAX_JOBS, _MAX_SEEN = 20, 20_000
_COLUMNS = (
    *("status", "prompt", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens"),
    *("attempts", "worker"),
)
#: Seconds. A shard takes no less: files are stamped by another clock than claims.
_LEAST_S = 1e-3
#: A fleet is never twice the same, as a share.
_USUAL_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Shift:
    """What a worker computed of a shard, in Unix seconds from the claim to the last file."""

    worker: str
    begin_s: float
    end_s: float
    num_prompt_tokens: int
    num_completion_tokens: int


@dataclass(slots=True)
class Record:
    """What workers have done with a model, in these jobs."""

    jobs: list[str] = field(default_factory=list)
    seen: list[SeenSequence] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second: those of completions, and those of prompts and completions together."""

    drawn: float
    computed: float


@dataclass(frozen=True, slots=True)
class FleetForecast:
    """Seconds of a fleet, with a range, and the tokens of a job."""

    seconds: float
    low_s: float
    high_s: float
    prompt_tokens: float
    cached_tokens: float
    completion_tokens: float


def read_record(root: Path, model: str, *, defaults: SamplingParams) -> Record:
    """What is known of a model by the newest jobs under `root`: by those with these defaults, if there are any.

    How long texts become, and what a token of them takes, goes by what is asked. Jobs that can't be read are left out.
    """
    alike, others = Record(), Record()
    for job in _newest_jobs(root, model):
        record = alike if job.manifest.defaults == defaults else others
        num_before = len(record.seen)
        with contextlib.suppress(BatcherError, OSError):
            _add_job(record, job, model)
        if len(record.seen) > num_before:
            record.jobs.append(job.job_id)
    return alike if alike.shifts else others


def _newest_jobs(root: Path, model: str) -> list[JobDir]:
    found = []
    for job in list_jobs(root):
        with contextlib.suppress(BatcherError, OSError):
            if model in job.manifest.models:
                found.append(job)
    return sorted(found, key=lambda job: job.manifest.created_at, reverse=True)[:_MAX_JOBS]


def _add_job(record: Record, job: JobDir, model: str) -> None:
    """Add what a job has to say, its last shards first, so that those are shards of one time."""
    for info in reversed(job.manifest.shards):
        if len(record.seen) >= _MAX_SEEN:
            return
        if info.model != model:
            continue
        rows = [row for row in finished_table(job, info, columns=_COLUMNS).to_pylist() if _is_computed(row)]
        record.seen += [_seen(row) for row in rows]
        record.shifts += _shifts(job, info, rows)


def _is_computed(row: dict[str, Any]) -> bool:
    """Whether a row has a completion that was not copied from another, as `Counts.of` has it."""
    return row["status"] == RowStatus.OK and not 0 < row["prompt_tokens"] == row["cached_tokens"]


def _seen(row: dict[str, Any]) -> SeenSequence:
    length = Length(row["completion_tokens"], is_whole=row["finish_reason"] != FinishReason.LENGTH)
    return SeenSequence(len(row["prompt"]), row["prompt_tokens"], row["cached_tokens"], length)


def _shifts(job: JobDir, info: ShardInfo, rows: Sequence[dict[str, Any]]) -> Iterator[Shift]:
    """The shift of the last attempt: of others nobody knows when they ended."""
    last = max((row["attempts"] for row in rows), default=0)
    claim = job.read_attempt(info.shard, last)
    files = [job.part_path(info.shard), *(chunk.path for chunk in job.chunks(info.shard) if chunk.attempt == last)]
    ends = [head.modified_s for path in files if (head := job.store.head(path)) is not None]
    mine = [row for row in rows if row["attempts"] == last]
    num_prompt = sum(row["prompt_tokens"] - row["cached_tokens"] for row in mine)
    num_completion = sum(row["completion_tokens"] for row in mine)
    if claim is None or not ends or not num_prompt + num_completion:
        return
    begin_s = claim.claimed_at.timestamp()
    yield Shift(
        worker=claim.worker,
        begin_s=begin_s,
        end_s=max(*ends, begin_s + _LEAST_S),
        num_prompt_tokens=num_prompt,
        num_completion_tokens=num_completion,
    )


def fleet_speed(shifts: Sequence[Shift], workers: Iterable[str]) -> list[Speed]:
    """The speed of each of these workers: its own where it is known, else the mean of those that are."""
    by_worker: dict[str, list[Shift]] = defaultdict(list)
    for shift in shifts:
        by_worker[shift.worker].append(shift)
    speeds = {name: _speed(mine) for name, mine in by_worker.items()}
    mean = Speed(
        sum(each.drawn for each in speeds.values()) / len(speeds),
        sum(each.computed for each in speeds.values()) / len(speeds),
    )
    return [speeds.get(name, mean) for name in workers]


def _speed(shifts: Sequence[Shift]) -> Speed:
    busy_s = covered_s((shift.begin_s, shift.end_s) for shift in shifts)
    drawn = sum(shift.num_completion_tokens for shift in shifts)
    return Speed(drawn / busy_s, (drawn + sum(shift.num_prompt_tokens for shift in shifts)) / busy_s)


def forecast_fleet(job: JobDir, model: str, record: Record, workers: Sequence[str]) -> FleetForecast:
    """What a job takes of a model that these workers have, if they have nothing else to do. Reads shards.

    A token of a prompt takes something between nothing and what one of a completion takes. The time is between those
    by the one and by the other, which are the same where prompts and completions are in the proportion of before.
    """
    tokens = count_tokens(job, model, record.seen)
    num_shards = sum(info.model == model for info in job.manifest.shards)
    speeds = fleet_speed(record.shifts, workers)
    # A shard is one worker's.
    share_at_work = min(1.0, num_shards / len(workers))
    num_computed = tokens.num_completion + tokens.num_prompt * (1 - tokens.cached)
    times = [
        number / (rate * share_at_work)
        for number, rate in (
            (tokens.num_completion, sum(speed.drawn for speed in speeds)),
            (num_computed, sum(speed.computed for speed in speeds)),
        )
        if rate
    ]
    seconds = sum(times) / len(times)
    rates = np.array([speed.computed for speed in speeds])
    differ = float(rates.std() / rates.mean()) / len(speeds) ** 0.5
    spread = 2 * math.hypot(spread_of_lengths(record.seen), differ, _USUAL_SPREAD)
    # In the last round of shards, workers may stand by.
    num_rounds = num_shards / len(workers)
    last_round = math.ceil(num_rounds) / num_rounds if num_rounds > 1 else 1.0
    return FleetForecast(
        seconds=seconds,
        low_s=max(0.0, min(times) * (1 - spread)),
        high_s=max(times) * (last_round + spread),
        prompt_tokens=tokens.num_prompt,
        cached_tokens=tokens.num_prompt * tokens.cached,
        completion_tokens=tokens.num_completion,
    )
