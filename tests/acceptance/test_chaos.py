"""A minute of chaos, as CI runs it; that its audit can fail; that it leaves nothing when it is interrupted."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import TEMP_PREFIX
from batcher.jobdir.results import write_file
from batcher.manage.finish import finalize
from tests.acceptance.conftest import PATIENCE_S, ROOT, clean_environment
from tests.chaos.audit import InputRow, Why, Witness, audit_job
from tests.chaos.cluster import Submitter
from tests.chaos.faults import draw_faults
from tests.chaos.run import write_input
from tests.support.family import Family
from tests.support.job_files import make_job, ok, result_table, write_chunk, write_part
from tests.support.waiting import wait_for

#: Of the jobs that are audited here: three shards, and the last row has two choices.
SIZES = (2, 3, 1)


def family_of(folder: Path, *, text: str = "") -> list[int]:
    """The living processes whose folder for temporary files is `folder` and whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and f"TMPDIR={folder}\0".encode() in (entry / "environ").read_bytes()
                and text.encode() in (entry / "cmdline").read_bytes()
            ):
                found.append(int(entry.name))
    return found


def start_chaos(folder: Path, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.run", *map(str, arguments)],
        cwd=ROOT,
        env={**clean_environment(), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_minute_of_chaos_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    # Kept, so that what led to a failure can be looked at.
    chaos = start_chaos(tmp_path, "--minutes", 1, "--seed", 1, "--verbose", "--keep", tmp_path / "chaos")

    stdout, stderr = chaos.communicate(timeout=PATIENCE_S)

    assert chaos.returncode == 0, f"{stdout}\n{stderr}"
    assert "nothing lost, nothing twice" in stdout
    assert "faults injected" in stdout
    assert "rows computed again" in stdout
    assert not family_of(tmp_path)


def test_interrupted_chaos_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    chaos = start_chaos(tmp_path, "--minutes", 10)
    wait_for(lambda: family_of(tmp_path, text="workers.child"), what="a worker has a child")

    chaos.send_signal(signal.SIGTERM)
    _, stderr = chaos.communicate(timeout=PATIENCE_S)

    assert chaos.returncode == 130
    assert "interrupted" in stderr
    assert not family_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pause_of_a_job_whose_submit_has_not_ended_yet_ends_too(family: Family, redis_url: str, tmp_path: Path) -> None:
    job = JobDir(tmp_path / "jobs" / "job")
    source = tmp_path / "job.jsonl"
    write_input(source, 5, job_id="job", seed="1")
    submitter = Submitter(family, job, source, options=("--broker", redis_url), seed="1")

    def exists() -> bool:
        submitter.poll()
        return job.exists()

    wait_for(exists, what="the job exists")
    assert not submitter.has_submitted
    assert submitter.pause(0.0) is not None

    def goes_on() -> bool:
        submitter.poll()
        return not job.is_paused

    wait_for(goes_on, what="the job goes on")
    assert submitter.problems == []


def test_a_seed_gives_the_same_faults_each_time() -> None:
    first, again, other = (list(itertools.islice(draw_faults(seed), 100)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def input_rows() -> list[InputRow]:
    """What went into `complete`."""
    prompts = [1, 1, 1, 1, 1, 2]
    return [
        InputRow(f"id-{row}", tuple(f"prompt {row}.{index}" for index in range(number)), f"topic-{row}")
        for row, number in enumerate(prompts)
    ]


def complete(folder: Path, meanwhile: Callable[[Witness], int] = lambda witness: 1) -> Witness:
    """A complete job. Attempt 1 of shard 0 has saved row 0 before `meanwhile`, which says who commits, with row 1."""
    job = make_job(folder / "job", SIZES)
    witness = Witness(job, folder / "evidence")
    job.claim_attempt(0, worker="w1")
    write_chunk(job, 0, [ok(0)])
    witness.look()
    attempt = meanwhile(witness)
    witness.look()
    tables = [result_table([ok(0)], attempt=1), result_table([ok(1)], attempt=attempt)]
    write_file(job.part_path(0), pa.concat_tables(tables))
    # What is done here in a moment takes workers a while.
    in_a_minute = time.time() + 60
    os.utime(job.part_path(0), (in_a_minute, in_a_minute))
    job.delete_chunks(0)
    write_part(job, 1, [ok(2), ok(3), ok(4)])
    write_part(job, 2, [ok(5, num_choices=2)])
    finalize(job)
    return witness


def compute_again(witness: Witness) -> int:
    """A second attempt of shard 0 saves row 0, too."""
    attempt = witness.job.claim_attempt(0, worker="w2")
    write_chunk(witness.job, 0, [ok(0)], attempt=attempt)
    return attempt


def compute_again_after_damage(witness: Witness) -> int:
    for chunk in witness.chunks.values():
        chunk.is_damaged = True
    return compute_again(witness)


def compute_at_the_same_time(witness: Witness) -> int:
    """The second attempt began before the first saved row 0."""
    attempt = compute_again(witness)
    for chunk in witness.chunks.values():
        chunk.seen_at += 60
    return attempt


def compute_what_was_in_flight(witness: Witness) -> int:
    """The first attempt has died with row 1 in the engine."""
    witness.job.journal_path(0, attempt=1).write_text("? 1\n.\n+ 1\n")
    return witness.job.claim_attempt(0, worker="w2")


def compute_what_the_first_commits(witness: Witness) -> int:
    """The second attempt is at row 1 when the first, whose lease was lost, commits."""
    attempt = witness.job.claim_attempt(0, worker="w2")
    witness.job.journal_path(0, attempt=attempt).write_text("? 1\n.\n+ 1\n")
    return 1


def lose_row(job: JobDir) -> None:
    job.part_path(0).unlink()
    write_part(job, 0, [ok(0)])


def double_row(job: JobDir) -> None:
    shutil.copy(job.part_path(1), job.part_path(7))


def swap_rows(job: JobDir) -> None:
    job.part_path(1).unlink()
    write_part(job, 1, [ok(3), ok(2), ok(4)])


def change_text(job: JobDir) -> None:
    job.part_path(0).unlink()
    write_file(job.part_path(0), result_table([ok(0, text="other"), ok(1)], attempt=1))


def lose_choice(job: JobDir) -> None:
    job.part_path(2).unlink()
    write_part(job, 2, [ok(5)])


def tear_part(job: JobDir) -> None:
    job.part_path(2).write_bytes(job.part_path(2).read_bytes()[:-100])


def leave_chunk(job: JobDir) -> None:
    write_chunk(job, 1, [ok(2)])


def leave_temporary_file(job: JobDir) -> None:
    path = job.results_dir / f"{TEMP_PREFIX}1"
    path.touch()
    os.utime(path, (0, 0))


def test_audit_passes_a_job_that_is_as_it_must_be(tmp_path: Path) -> None:
    audit = audit_job(complete(tmp_path), input_rows())

    assert audit.has_passed, audit.problems
    assert (audit.num_in, audit.num_ok, audit.num_set_aside, audit.lost, audit.twice) == (6, 6, 0, [], [])
    assert audit.computed_again.total() == 0


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lose_row, "summary.json proves"),
        (double_row, "3 shards, but 4 parts"),
        (swap_rows, "not in the order of the input"),
        (change_text, "1 rows differ from what their attempt saved, row 0"),
        (lose_choice, "row 5 has 1 choices of 2"),
        (tear_part, "part-00002.parquet: cannot be read"),
        (leave_chunk, "1 chunks of committed shards are left"),
        (leave_temporary_file, "1 temporary files are left"),
        (lambda job: job.success_path.unlink(), "no _SUCCESS"),
    ],
)
def test_audit_fails_a_job_that_is_not(tmp_path: Path, spoil: Callable[[JobDir], None], problem: str) -> None:
    witness = complete(tmp_path)

    spoil(witness.job)

    audit = audit_job(witness, input_rows())
    assert not audit.has_passed
    assert any(problem in found for found in audit.problems), audit.problems


def test_audit_names_rows_that_are_lost_or_twice(tmp_path: Path) -> None:
    witness = complete(tmp_path)
    lose_row(witness.job)
    double_row(witness.job)

    audit = audit_job(witness, input_rows())

    assert (audit.lost, audit.twice) == ([1], [2, 3, 4])


@pytest.mark.parametrize(
    ("meanwhile", "why"),
    [
        (compute_again, {Why.SAVED: 1}),
        (compute_again_after_damage, {Why.DAMAGED: 1}),
        (compute_at_the_same_time, {Why.OVERLAP: 1}),
        (compute_what_was_in_flight, {Why.UNSAVED: 1}),
        (compute_what_the_first_commits, {Why.OVERLAP: 1}),
    ],
)
def test_audit_says_why_rows_were_computed_again(
    tmp_path: Path, meanwhile: Callable[[Witness], int], why: dict[Why, int]
) -> None:
    audit = audit_job(complete(tmp_path, meanwhile), input_rows())

    assert audit.computed_again == why
    assert audit.has_passed is (Why.SAVED not in why), audit.problems
