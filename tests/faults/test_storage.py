"""Storage trouble: full disks, torn and flipped files, edits, folders that can't be written, leftovers of the killed.

Disks are small tmpfs of their own, so that full is full. They need the right to mount; elsewhere these tests skip.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.submission import planner
from tests.faults.command_lines import (
    MANY,
    MANY_ROWS,
    SHORT,
    prompts_of,
    resume_line,
    run_line,
    second_chunk,
    temporary_files,
)
from tests.faults.interruption import Interruption
from tests.support.damage import flip
from tests.support.family import Family, assert_every_row_once, chunk_rows, start_worker, submit, wait_until_ready
from tests.support.job_files import result_rows
from tests.support.submitted import make_options
from tests.support.waiting import wait_for

NO_SPACE = "No space left on device; free some space there"


class Disk:
    """A file system of its own, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Take all its space but `leave` bytes."""
        with self._filler.open("wb") as file:
            while True:
                free = os.statvfs(self.path)
                # Whoever works there may have taken some meanwhile.
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)
                    return
                file.truncate(0)

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, option: str) -> None:
        # The files of a process that was killed are closed a moment after it is gone from the list.
        _retry(["mount", "-o", f"remount,{option}", str(self.path)])


def _retry(command: list[str]) -> None:
    wait_for(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, what=" ".join(command))


@pytest.fixture
def mount(family: Family) -> Iterator[Callable[[Path], Disk]]:
    """Mounts a tmpfs of 4 MiB at a folder, which it makes. Skips the test where this user may not mount."""
    mounted: list[Path] = []

    def mount_at(path: Path) -> Disk:
        path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=755", "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this user may not mount a tmpfs: {done.stderr.strip()}")
        mounted.append(path)
        return Disk(path)

    yield mount_at
    family.kill_all()
    for path in reversed(mounted):
        _retry(["umount", str(path)])


Mount = Callable[[Path], Disk]


# -- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_at", ["shard", "manifest"])
def test_submit_on_a_full_disk_leaves_no_job_and_works_once_there_is_space(
    family: Family, mount: Mount, model: Path, full_at: str
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT, "--shard-rows", 10)
    dry = planner.submit(JobDir(family.folder / "dry"), [str(line[1])], make_options(shard_rows=10)).manifest
    shards = [(family.folder / "dry" / "shards" / f"{info.shard:05d}.parquet").stat().st_size for info in dry.shards]
    page = os.sysconf("SC_PAGE_SIZE")
    disk.fill(leave=0 if full_at == "shard" else sum(-(-size // page) * page for size in shards))

    refused = family.run(*line, code=3)

    name = job.shard_path(0) if full_at == "shard" else job.manifest_path
    assert f"{name}: cannot write: {NO_SPACE}" in refused.stderr
    assert not job.path.exists(), "what was half made is gone"
    assert "No jobs" in family.run("list", "--jobs-dir", disk.path).stderr

    disk.free()
    family.run(*line, code=0)

    assert_every_row_once(job, 20)


def test_run_on_a_disk_that_fills_keeps_its_rows_and_goes_on_once_there_is_space(
    family: Family, mount: Mount, model: Path
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(family, model, job, prompts_of(family, MANY_ROWS), *MANY)
    moment = second_chunk(family)
    run = family.start(*line, env=moment.env)
    moment.wait()

    disk.fill()
    moment.release()

    assert run.wait() == 3
    assert re.search(rf"Error: shard 0 of out: {job.chunks_dir(0)}/0001-\S+: cannot write: {NO_SPACE}", run.stderr)
    assert run.stderr.strip().endswith(" ".join(["batcher", *map(str, line)])), "the line that goes on"
    assert "Traceback" not in run.stderr
    saved = chunk_rows(job)
    assert 0 < len(saved) < MANY_ROWS
    assert f"{len(saved):,} of {MANY_ROWS:,} rows done and kept" in run.stderr

    disk.free()
    family.run(*line, code=0)

    rows = {row["row"]: row for row in assert_every_row_once(job, MANY_ROWS)}
    assert {number: rows[number] for number in saved} == saved
    assert temporary_files(job) == []


@pytest.mark.parametrize(
    ("match", "named"),
    [
        ("attempts/00000/0001.json", "attempts/00000/0001.json"),
        ("part-00000", "results/part-00000.parquet"),
    ],
    ids=["claim", "part"],
)
def test_disk_that_is_full_at_a_durable_write_ends_the_run_and_costs_nothing_saved(
    family: Family, mount: Mount, model: Path, match: str, named: str
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT)
    moment = Interruption(family.folder / "moment", "batcher.jobdir.local_store:create_if_absent", match)
    run = family.start(*line, env=moment.env)
    moment.wait()

    disk.fill()
    moment.release()

    assert run.wait() == 3
    assert f"{job.path / named}: cannot write: {NO_SPACE}" in run.stderr
    assert run.stderr.strip().endswith(" ".join(["batcher", *map(str, line)])), "the line that goes on"
    assert "Traceback" not in run.stderr
    assert not job.is_complete

    disk.free()
    family.run(*line, code=0)

    assert_every_row_once(job, 20)
    assert temporary_files(job) == []


def test_disk_that_is_full_at_the_summary_is_named_and_the_job_complete_once_there_is_space(
    family: Family, mount: Mount, model: Path
) -> None:
    """Given a job whose last worker died before the summary was written, when the disk is full, then that is said."""
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT)
    family.run(*line, code=0)
    rows = result_rows(job)
    job.success_path.unlink()
    job.summary_path.unlink()
    disk.fill()

    refused = family.run(*line, code=3)

    assert f"Error: {job.summary_path}: cannot write: {NO_SPACE}" in refused.stderr
    assert not job.is_complete

    disk.free()
    family.run(*line, code=0)
    assert assert_every_row_once(job, 20) == rows
    assert temporary_files(job) == []


def test_worker_on_a_full_disk_waits_and_finishes_by_itself_once_there_is_space(
    family: Family, mount: Mount, model: Path, redis_url: str
) -> None:
    disk = mount(family.folder / "jobs")
    moment = second_chunk(family)
    worker = start_worker(family, redis_url, model, "w1", "--lease-ttl", 3, env=moment.env)
    wait_until_ready(worker)
    child = family.child_of(worker)
    job = submit(family, redis_url, rows=MANY_ROWS, shard_rows=MANY_ROWS, options=MANY[:2])
    moment.wait()

    disk.fill()
    moment.release()
    # Again and again: the sweep rings for it, and it fails.
    wait_for(lambda: worker.stderr.count(NO_SPACE) >= 6, what="the worker has tried several times")
    saved = chunk_rows(job)
    assert worker.process.poll() is None
    seconds = [line.split(",")[0] for line in worker.stderr.splitlines() if NO_SPACE in line]
    assert max(seconds.count(second) for second in seconds) <= 8, "it does not spin"

    disk.free()
    wait_for(lambda: job.is_complete, what="the job is complete")

    rows = {row["row"]: row for row in assert_every_row_once(job, MANY_ROWS)}
    assert {number: rows[number] for number in saved} == saved
    assert family.child_of(worker) == child, "the worker has not died of it"
    assert "Traceback" not in worker.stderr


# -- crashes between durable writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["resume", "another worker"])
def test_job_whose_last_part_was_written_just_before_the_crash_is_completed(
    family: Family, model: Path, redis_url: str, by: str
) -> None:
    job = JobDir(family.folder / "jobs" / "out")
    moment = Interruption(family.folder / "moment", "batcher.jobdir.folder:write_summary")
    family.start(*run_line(family, model, job, prompts_of(family, 20), *SHORT), env=moment.env)
    moment.wait()
    family.kill_all()
    assert job.pending_shards() == []
    assert not job.is_complete
    rows = result_rows(job)

    if by == "resume":
        resumed = family.run(*resume_line(job, model), code=0)
        assert "The job is complete" in resumed.stderr
    else:
        start_worker(family, redis_url, model, "w1")
        wait_for(lambda: job.is_complete, what="the job is complete")

    assert assert_every_row_once(job, 20) == rows
    assert job.num_attempts(0) == 1


@pytest.mark.parametrize("match", ["part-00000", "chunks/00000", "attempts/00000/0001.json"])
def test_leftovers_of_a_writer_killed_in_its_file_are_swept(family: Family, model: Path, match: str) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(family, model, job, prompts_of(family, MANY_ROWS), *MANY)
    moment = Interruption(
        family.folder / "moment", "batcher.jobdir.local_store:publish_if_absent", match, "workers.child", is_deadly=True
    )

    run = family.run(*line, env=moment.env, code=0)

    assert moment.is_reached
    assert "its process died (signal SIGKILL)" in run.stderr
    assert_every_row_once(job, MANY_ROWS)
    # A claim that is younger than a minute could be somebody's who is about to make it.
    assert [path for path in temporary_files(job) if "attempts" not in path.parts] == []


# -- folders ------------------------------------------------------------------------------------------------------


def test_folder_that_can_only_be_read_is_named_and_can_be_looked_into(
    family: Family, mount: Mount, model: Path
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    moment = second_chunk(family)
    family.start(*run_line(family, model, job, prompts_of(family, MANY_ROWS), *MANY), env=moment.env)
    moment.wait()
    family.kill_all()
    saved = chunk_rows(job)
    disk.remount("ro")
    resume = resume_line(job, model)

    refused = family.run(*resume, code=3)
    assert "Read-only file system; make it writable, or use another folder" in refused.stderr
    assert f"{len(saved):,} of {MANY_ROWS:,} rows done and kept" in refused.stderr
    family.run("status", job.path, code=0)
    family.run("results", job.path, code=0)
    for change in (("cancel",), ("delete", "--yes")):
        refused = family.run(*change, job.path, code=3)
        assert "Read-only file system" in refused.stderr

    disk.remount("rw")
    family.run(*resume, code=0)
    rows = {row["row"]: row for row in assert_every_row_once(job, MANY_ROWS)}
    assert {number: rows[number] for number in saved} == saved


def test_results_may_lie_on_another_file_system(family: Family, mount: Mount, model: Path) -> None:
    job = JobDir(family.folder / "out")
    disk = mount(job.results_dir)
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT, "--shard-rows", 5)

    family.run(*line, code=0)
    assert_every_row_once(job, 20)
    assert job.part_path(0).stat().st_dev != job.manifest_path.stat().st_dev

    # A part that goes bad is moved from one to the other.
    flip(job.part_path(1), 0.3)
    damaged = job.part_path(1).read_bytes()
    family.run(*line, code=0)
    assert_every_row_once(job, 20)
    assert [path.read_bytes() for path in job.damaged_dir.iterdir()] == [damaged]
    names = {path.name for path in disk.path.iterdir()}
    assert names == {"_SUCCESS", *(f"part-0000{shard}.parquet" for shard in range(4))}

    deleted = family.run("delete", "--yes", job.path, code=0)
    assert deleted.stdout.strip().endswith("left there: results")
    assert list(disk.path.iterdir()) == []
