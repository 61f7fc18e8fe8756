"""A job is taken up again: what a resume does, in which order, and that it may be interrupted between any two steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from batcher.errors import BrokerError
from batcher.jobdir.attempts import Outcome, record_end
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.manage import resume as module
from batcher.manage.finish import finalize
from batcher.manage.resume import Resumed, needed_models, resume
from tests.support.crashing import ProcessDiedError
from tests.support.job_files import complete_job, make_job, ok, write_part

#: The part of the first shard is damaged, that of the second, of refused rows, is lost, the third was given up.
DAMAGED, REFUSED, GIVEN_UP, DONE = range(4)


@dataclass(frozen=True, slots=True)
class Disk:
    """What a resume changes, as it is on disk."""

    is_damage_moved: bool
    has_refused: bool
    is_cancelled: bool
    is_given_up: bool


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    """A cancelled job with one of everything that a resume mends."""
    job = make_job(tmp_path / "job", (1, 1, 1, 1), models=("a", None, "b", "c"))
    write_part(job, DAMAGED, [ok(0)])
    job.part_path(DAMAGED).write_bytes(b"torn")
    attempt = job.claim_attempt(GIVEN_UP, worker="w")
    record_end(job, GIVEN_UP, attempt, worker="w", outcome=Outcome.FAILED, detail="no", is_retriable=False)
    write_part(job, DONE, [ok(3)])
    job.cancel()
    return job


def disk_of(job: JobDir) -> Disk:
    return Disk(
        is_damage_moved=job.damaged_dir.exists(),
        has_refused=job.part_path(REFUSED).exists(),
        is_cancelled=job.is_cancelled,
        is_given_up=job.attempt_end_path(GIVEN_UP, attempt=1).exists(),
    )


MENDED = Disk(is_damage_moved=True, has_refused=True, is_cancelled=False, is_given_up=False)


def test_everything_is_mended_before_the_pending_shards_are_sent(job: JobDir) -> None:
    sent: list[int] = []

    def send(sent_of: JobDir, shards: Sequence[ShardInfo]) -> int:
        assert disk_of(sent_of) == MENDED
        sent.extend(info.shard for info in shards)
        return len(shards)

    assert resume(job, send=send) == Resumed(None, num_sent=2)

    assert sent == [DAMAGED, GIVEN_UP]
    assert needed_models(job) == {"a", "b"}


#: Before which call of a resume the process dies -> what is on disk then.
DEATHS = {
    "on_damage": Disk(is_damage_moved=True, has_refused=False, is_cancelled=True, is_given_up=True),
    "commit_refused": Disk(is_damage_moved=True, has_refused=False, is_cancelled=True, is_given_up=True),
    "finalize": Disk(is_damage_moved=True, has_refused=True, is_cancelled=True, is_given_up=True),
    "forgive": Disk(is_damage_moved=True, has_refused=True, is_cancelled=False, is_given_up=True),
    "send": MENDED,
}


@pytest.mark.parametrize("step", DEATHS)
def test_the_next_resume_does_what_an_interrupted_one_did_not(
    job: JobDir, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def die(*args: object) -> NoReturn:
        raise ProcessDiedError

    on_damage = die if step == "on_damage" else lambda damage: None
    with monkeypatch.context() as patch:
        if hasattr(module, step):
            patch.setattr(module, step, die)
        with pytest.raises(ProcessDiedError):
            resume(job, send=die, on_damage=on_damage)
    assert disk_of(job) == DEATHS[step]

    assert resume(job, send=lambda job, shards: len(shards)) == Resumed(None, num_sent=2)
    assert disk_of(job) == MENDED


def test_job_whose_last_worker_died_before_the_proof_is_finished_and_nothing_is_sent(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    job.cancel()

    resumed = resume(job, send=lambda job, shards: pytest.fail("nothing is pending"))

    assert resumed == Resumed(finalize(job), num_sent=0)
    assert job.is_complete
    assert not job.is_cancelled


def test_broker_that_takes_nothing_leaves_a_job_that_the_next_resume_sends(job: JobDir) -> None:
    def away(job: JobDir, shards: Sequence[ShardInfo]) -> int:
        raise BrokerError("away")

    with pytest.raises(BrokerError):
        resume(job, send=away)

    assert resume(job, send=lambda job, shards: len(shards)).num_sent == 2


def test_damage_is_logged_where_nobody_asks_for_it(job: JobDir, caplog: pytest.LogCaptureFixture) -> None:
    resume(job)

    assert "part-00000.parquet" in caplog.text
    assert "computed again" in caplog.text
