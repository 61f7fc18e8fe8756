"""What a fleet takes for a job, by what its workers have done: speeds, and a time between two bounds."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batcher
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import WorkerHeartbeat, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.types import SamplingParams
from tests.support.job_files import make_job, ok, write_chunk, write_part
from workers.estimating.fleet import Record, Shift, Speed, fleet_speed, forecast_fleet, read_record
from workers.estimating.lengths import Length
from workers.estimating.trial import SeenSequence

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEAT = WorkerHeartbeat("w1", "host-a", 17, "0.1.0", ("tiny",), NOW, NOW, WorkerState.IDLE, 60.0)


def begun_at(job: JobDir, shard: int, attempt: int = 1) -> float:
    claim = job.read_attempt(shard, attempt)
    assert claim is not None
    return claim.claimed_at.timestamp()


def end_after(job: JobDir, path: Path, shard: int, seconds: float, attempt: int = 1) -> None:
    """Have a file be written so long after the claim of its shard."""
    end_s = begun_at(job, shard, attempt) + seconds
    os.utime(path, (end_s, end_s))


def ran_job(path: Path, *, seconds: float = 10.0, params: SamplingParams | None = None, tokens: int = 3) -> JobDir:
    """A job of two shards with two rows each, of which the first took `seconds`, and the second ended with it."""
    job = make_job(path, (2, 2), params=params)
    for shard in (0, 1):
        write_part(job, shard, [ok(2 * shard, tokens=tokens), ok(2 * shard + 1, tokens=tokens)])
        end_after(job, job.part_path(shard), 0, seconds)
    return job


# -- how fast workers are -----------------------------------------------------------------------------------------


def test_time_of_a_worker_is_the_union_of_its_shards() -> None:
    shifts = [
        Shift("a", 0, 10, 50, 100),
        Shift("a", 5, 15, 50, 100),
        Shift("a", 6, 7, 0, 0),
        Shift("a", 100, 105, 0, 40),
    ]

    assert fleet_speed(shifts, ["a"]) == [Speed(240 / 20, 340 / 20)]


def test_who_has_done_nothing_yet_is_as_fast_as_the_others_in_the_mean() -> None:
    shifts = [Shift("a", 0, 10, 0, 100), Shift("gone", 0, 10, 100, 300)]

    assert fleet_speed(shifts, ["a", "new"]) == [Speed(10, 10), Speed(20, 25)]


def test_of_a_shard_counts_what_its_last_attempt_computed_from_claim_to_part(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3,))
    job.claim_attempt(0, worker="first")
    earlier = write_chunk(job, 0, [ok(0, tokens=90)])
    copied = ok(2, tokens=70, cached=5)
    assert job.claim_attempt(0, worker="second") == 2
    last = write_chunk(job, 0, [ok(1, tokens=8, cached=1), copied], attempt=2)
    end_after(job, earlier, 0, 500)
    end_after(job, last, 0, 4, attempt=2)

    record = read_record(tmp_path, "tiny", defaults=SamplingParams())

    begin_s = begun_at(job, 0, 2)
    (shift,) = record.shifts
    assert shift == Shift("second", begin_s, pytest.approx(begin_s + 4), 4, 8)  # type: ignore[arg-type]
    # The lengths of the first attempt's are known, too; what was copied took nobody's time.
    assert {each.length for each in record.seen} == {Length(90, is_whole=False), Length(8, is_whole=False)}


def test_jobs_with_the_same_defaults_count_alone_if_there_are_any(tmp_path: Path) -> None:
    same, other = SamplingParams(max_tokens=50), SamplingParams(max_tokens=5)
    ran_job(tmp_path / "other", params=other)

    assert read_record(tmp_path, "tiny", defaults=same).jobs == ["other"]
    ran_job(tmp_path / "same", params=same)
    make_job(tmp_path / "waits", params=same)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")

    record = read_record(tmp_path, "tiny", defaults=same)

    assert (record.jobs, len(record.seen)) == (["same"], 4)
    assert read_record(tmp_path, "strange", defaults=same) == Record()


# -- what a job takes ---------------------------------------------------------------------------------------------


@given(prompt_s=st.floats(0, 1), drawn_s=st.floats(0.01, 1), num_before=st.integers(1, 400), tokens=st.integers(1, 400))
def test_the_range_has_the_time_whatever_a_token_of_a_prompt_takes(
    tmp_path_factory: pytest.TempPathFactory, prompt_s: float, drawn_s: float, num_before: int, tokens: int
) -> None:
    # Given a fleet whose prompts take no more a token than completions, and a job of other proportions.
    prompt_s = min(prompt_s, drawn_s)
    before_s = prompt_s * 100 + drawn_s * num_before
    seen = [SeenSequence(len("prompt 0.0"), 7, 0, Length(tokens, is_whole=True))]
    record = Record(["job"], seen, [Shift("a", 0, before_s, 100, num_before)])
    job = make_job(tmp_path_factory.mktemp("jobs") / "job", (4,), params=SamplingParams(max_tokens=500))

    found = forecast_fleet(job, "tiny", record, ["a"])

    assert (found.prompt_tokens, found.completion_tokens) == (28, 4 * tokens)
    assert found.low_s <= 28 * prompt_s + 4 * tokens * drawn_s <= found.high_s
    assert found.low_s <= found.seconds <= found.high_s


@pytest.mark.parametrize(("num_shards", "num_workers", "share"), [(1, 2, 1), (2, 2, 1 / 2), (8, 4, 1 / 4)])
def test_workers_share_the_shards_that_there_are(
    tmp_path: Path, num_shards: int, num_workers: int, share: float
) -> None:
    job = make_job(tmp_path / "job", (2,) * num_shards, params=SamplingParams(max_tokens=10))
    seen = [SeenSequence(len("prompt 0.0"), 5, 0, Length(10, is_whole=False))]
    record = Record(["job"], seen, [Shift("a", 0, 10, 5, 10)])

    found = forecast_fleet(job, "tiny", record, [f"w{number}" for number in range(num_workers)])

    assert found.seconds == pytest.approx(2 * num_shards * 10 * share)


# -- what is said -------------------------------------------------------------------------------------------------


def test_estimate_of_a_fleet_says_by_whom_and_by_which_jobs(tmp_path: Path) -> None:
    ran_job(tmp_path / "before", params=SamplingParams(max_tokens=3))
    write_heartbeat(tmp_path, BEAT)
    write_heartbeat(tmp_path, replace(BEAT, name="w2", num_running=3))
    write_heartbeat(tmp_path, replace(BEAT, name="leaves", state=WorkerState.DRAINING))
    write_heartbeat(tmp_path, replace(BEAT, name="has-another", models=("another",)))
    given = {"model": "tiny", "max_tokens": 3, "fleet": True, "jobs_dir": tmp_path, "shard_rows": 4}

    found = batcher.estimate([{"prompt": f"prompt {n}.0"} for n in range(8)], price_per_hour=3600, **given)  # type: ignore[arg-type]

    assert (found.workers, found.num_busy, found.jobs, found.num_measured) == (("w1", "w2"), 1, ("before",), 4)
    assert (found.num_rows, found.prompt_tokens, found.completion_tokens) == (8, 40, 24)
    # Twice as many rows as w1 had in its ten seconds, for two of its kind.
    assert found.total_s == pytest.approx(10, rel=0.01)
    assert found.cost == found.total_s
    assert found.job == ""
    assert {path.name for path in tmp_path.iterdir()} == {"before", ".workers"}


def test_a_model_that_nobody_has_or_that_was_never_run_is_refused_with_what_helps(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}]

    with pytest.raises(InputError, match=r"no worker with the model tiny is alive there\. Start one"):
        batcher.estimate(rows, model="tiny", fleet=True, jobs_dir=tmp_path)
    write_heartbeat(tmp_path, replace(BEAT, models=("another",)))
    with pytest.raises(InputError, match="alive there; those that are have another"):
        batcher.estimate(rows, model="tiny", fleet=True, jobs_dir=tmp_path)
    write_heartbeat(tmp_path, BEAT)
    with pytest.raises(InputError, match="no job there has answers of the model tiny"):
        batcher.estimate(rows, model="tiny", fleet=True, jobs_dir=tmp_path)
    with pytest.raises(InputError, match="no row of the input can be computed"):
        batcher.estimate([{"prompt": 5}], model="tiny", fleet=True, jobs_dir=tmp_path, allow_bad_rows=True)
