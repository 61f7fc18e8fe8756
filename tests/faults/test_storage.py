"""Storage trouble: full disks, torn and flipped files, edits, folders that can't be written, leftovers of the killed.

Disks are small tmpfs of their own, so that full is full. They need the right to mount; elsewhere these tests skip.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from batcher import planner
from batcher.jobdir import JobDir
from batcher.results import read_file
from batcher.sealed import seal
from tests.family import (
    Family,
    assert_every_row_once,
    chunk_rows,
    start_worker,
    submit,
    wait_until_ready,
    write_prompts,
)
from tests.faults.interruption import Interruption
from tests.job_reading import result_rows
from tests.submitted import make_options
from tests.waiting import wait_for

#: A job that is done at once, and one of several chunks in a row: one every 256 rows.
SHORT = ("--max-tokens", 8, "--threads", 1)
MANY_ROWS = 1000
MANY = ("--max-tokens", 4, "--shard-rows", MANY_ROWS, "--threads", 1)

NO_SPACE = "No space left on device; free some space there"


class Disk:
    """A file system of its own, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Take all its space but `leave` bytes."""
        free = os.statvfs(self.path)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)

    def free(self) -> None:
        self._filler.unlink()

    def remount(self, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)


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
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def run_line(family: Family, model: Path) -> Callable[..., list[object]]:
    """The command line of a run, its input written and its job known to the family."""

    def line(job: JobDir, *options: object, rows: int) -> list[object]:
        prompts = write_prompts(family.folder / "prompts.jsonl", rows)
        family.jobs.append(job.path)
        return ["run", prompts, "-o", job.path, "--model", f"tiny={model}", *options]

    return line


RunLine = Callable[..., list[object]]
Mount = Callable[[Path], Disk]


def flip(path: Path, share: float) -> None:
    """Flip a bit somewhere behind this share of the file."""
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def second_chunk(family: Family) -> Interruption:
    """The moment at which a worker is about to write its second chunk, and the first is saved."""
    return Interruption(family.folder / "moment", "batcher.storage:create_if_absent", "-0002.parquet", "workers.child")


def temporary_files(job: JobDir) -> list[Path]:
    return sorted(job.path.rglob(".tmp-*"))


# -- a full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_at", ["shard", "manifest"])
def test_submit_on_a_full_disk_leaves_no_job_and_works_once_there_is_space(
    family: Family, mount: Mount, run_line: RunLine, full_at: str
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(job, *SHORT, "--shard-rows", 10, rows=20)
    dry = planner.submit(JobDir(family.folder / "dry"), [str(line[1])], make_options(shard_rows=10))
    shards = [(family.folder / "dry" / "shards" / f"{info.shard:05d}.parquet").stat().st_size for info in dry.shards]
    page = os.sysconf("SC_PAGE_SIZE")
    disk.fill(leave=0 if full_at == "shard" else sum(-(-size // page) * page for size in shards))

    refused = family.run(*line)

    assert refused.process.returncode == 3
    name = job.shard_path(0) if full_at == "shard" else job.manifest_path
    assert f"{name}: cannot write: {NO_SPACE}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not job.path.exists(), "what was half made is gone"
    assert "No jobs" in family.run("list", "--jobs-dir", disk.path).stderr

    disk.free()
    again = family.run(*line)

    assert again.process.returncode == 0, again.stderr
    assert_every_row_once(job, 20)


def test_run_on_a_disk_that_fills_keeps_its_rows_and_goes_on_once_there_is_space(
    family: Family, mount: Mount, run_line: RunLine
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(job, *MANY, rows=MANY_ROWS)
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
    assert f"{len(saved):,} of {MANY_ROWS:,} rows are done and kept" in run.stderr

    disk.free()
    again = family.run(*line)

    assert again.process.returncode == 0, again.stderr
    rows = {row["row"]: row for row in assert_every_row_once(job, MANY_ROWS)}
    assert {number: rows[number] for number in saved} == saved
    assert temporary_files(job) == []


@pytest.mark.parametrize(
    ("at", "match", "named"),
    [
        ("batcher.storage:create_if_absent", "attempts/00000/0001.json", "attempts/00000/0001.json"),
        ("batcher.storage:create_if_absent", "part-00000", "results/part-00000.parquet"),
        ("batcher.jobdir:write_summary", "", "summary.json"),
    ],
    ids=["claim", "part", "summary"],
)
def test_disk_that_is_full_at_a_durable_write_ends_the_run_and_costs_nothing_saved(
    family: Family, mount: Mount, run_line: RunLine, at: str, match: str, named: str
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    line = run_line(job, *SHORT, rows=20)
    moment = Interruption(family.folder / "moment", at, match)
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
    again = family.run(*line)

    assert again.process.returncode == 0, again.stderr
    assert_every_row_once(job, 20)
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


# -- torn and changed files ---------------------------------------------------------------------------------------


def make_foreign(path: Path) -> None:
    """A whole chunk, of a job with other columns."""
    path.write_bytes(seal(read_file(path).append_column("other", pa.nulls(read_file(path).num_rows, pa.int64()))))


def test_damaged_chunks_are_left_out_and_their_rows_computed_again(
    family: Family, model: Path, run_line: RunLine
) -> None:
    """Given chunks as a killed run leaves them, all but one damaged, when resumed, then every row is there once."""
    job = JobDir(family.folder / "out")
    assert family.run(*run_line(job, *SHORT, "--shard-rows", 4, rows=24)).process.returncode == 0
    chunks = []
    for info in job.manifest.shards:
        chunk = job.chunk_path(info.shard, attempt=1, uid="abcd", sequence=1)
        chunk.parent.mkdir(parents=True)
        job.part_path(info.shard).rename(chunk)
        chunks.append(chunk)
    job.success_path.unlink()
    job.summary_path.unlink()
    flip(chunks[0], 0.3)
    flip(chunks[1], 0.9)
    cut(chunks[2])
    chunks[3].write_bytes(b"")
    make_foreign(chunks[4])
    whole = read_file(chunks[5]).to_pylist()

    resumed = family.run("resume", job.path, "--model", f"tiny={model}", "--threads", 1)

    assert resumed.process.returncode == 0, resumed.stderr
    rows = assert_every_row_once(job, 24)
    assert rows[20:] == whole
    assert {row["attempts"] for row in rows[:20]} == {2}
    for chunk in chunks[:5]:
        assert re.search(rf"{chunk}: .*; its rows are computed again", resumed.stderr)
    assert str(chunks[5]) not in resumed.stderr


def test_damaged_parts_are_named_and_made_anew_by_the_same_command(family: Family, run_line: RunLine) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(job, *SHORT, "--shard-rows", 4, rows=20)
    assert family.run(*line).process.returncode == 0
    parts = [job.part_path(shard) for shard in range(5)]
    flip(parts[0], 0.3)
    flip(parts[1], 0.9)
    cut(parts[2])
    parts[3].write_bytes(b"")
    damaged = {path.read_bytes() for path in parts[:4]}
    whole = (parts[4].stat().st_ino, parts[4].read_bytes())

    for reading in (("results", job.path, "--json"), ("export", job.path, "-o", family.folder / "x.csv")):
        refused = family.run(*reading)
        assert refused.process.returncode == 3
        assert f"{parts[0]}: cannot read: the checksum" in refused.stderr
        assert f"`batcher resume {job.path}` moves it aside and computes its rows again" in refused.stderr

    mended = family.run(*line)

    assert mended.process.returncode == 0, mended.stderr
    assert_every_row_once(job, 20)
    assert {path.read_bytes() for path in job.damaged_dir.iterdir()} == damaged, "nothing is thrown away"
    assert (parts[4].stat().st_ino, parts[4].read_bytes()) == whole
    for part in parts[:4]:
        assert re.search(rf"Warning: {part}: .*; moved to .*, its 4 rows are computed again", mended.stderr)
    assert "20 in = 20 ok + 0 error" in mended.stdout


def test_fleet_heals_a_torn_part_by_itself(family: Family, model: Path, redis_url: str) -> None:
    first = start_worker(family, redis_url, model, "first")
    job = submit(family, redis_url, rows=20, shard_rows=5, options=SHORT[:2])
    wait_for(lambda: job.is_complete, what="the job is complete")
    family.kill_all()
    first.wait()
    job.success_path.unlink()
    cut(job.part_path(2))

    second = start_worker(family, redis_url, model, "second", "--lease-ttl", 3)
    wait_for(lambda: job.is_complete, what="the job is complete again")

    rows = assert_every_row_once(job, 20)
    assert {row["worker"] for row in rows[10:15]} == {"second"}
    assert {row["worker"] for row in rows[:10]} == {"first"}
    assert re.search(rf"{job.part_path(2)}: cannot read: .*; moved to {job.damaged_dir}", second.stderr)


def test_changed_manifest_is_refused_by_name(family: Family, run_line: RunLine) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(job, *SHORT, rows=20)
    planner.submit(job, [str(line[1])], make_options(shard_rows=10))
    changed = json.loads(job.manifest_path.read_text())
    changed["shards"][1]["num_rows"] = 9
    job.manifest_path.write_text(json.dumps(changed))

    for command in (line, ("status", job.path), ("resume", *line[2:4][1:], *line[4:6])):
        refused = family.run(*command)
        assert refused.process.returncode == 2
        assert f"{job.manifest_path}: damaged or changed (" in refused.stderr
        assert "restore it, or submit the input again" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert job.committed_shards() == set()


@pytest.mark.parametrize("what", ["a flipped bit", "another shard's rows"])
def test_damaged_shard_is_refused_by_name(family: Family, model: Path, run_line: RunLine, what: str) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(job, *SHORT, rows=20)
    planner.submit(job, [str(line[1])], make_options(shard_rows=15))
    if what == "a flipped bit":
        flip(job.shard_path(0), 0.2)
        message = "cannot read: the checksum of its content is wrong; submit the input again"
    else:
        job.shard_path(0).write_bytes(job.shard_path(1).read_bytes())
        message = "holds 5 rows, the manifest says 15; restore the one that was changed, or submit the input again"

    run = family.run("resume", job.path, "--model", f"tiny={model}", "--threads", 1)

    assert run.process.returncode == 3
    assert f"{job.shard_path(0)}: {message}" in run.stderr
    assert "Traceback" not in run.stderr
    assert 0 not in job.committed_shards()


# -- crashes between durable writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["resume", "another worker"])
def test_job_whose_last_part_was_written_just_before_the_crash_is_completed(
    family: Family, model: Path, run_line: RunLine, redis_url: str, by: str
) -> None:
    job = JobDir(family.folder / "jobs" / "out")
    moment = Interruption(family.folder / "moment", "batcher.jobdir:write_summary")
    family.start(*run_line(job, *SHORT, rows=20), env=moment.env)
    moment.wait()
    family.kill_all()
    assert job.pending_shards() == []
    assert not job.is_complete
    rows = result_rows(job)

    if by == "resume":
        resumed = family.run("resume", job.path, "--model", f"tiny={model}")
        assert resumed.process.returncode == 0, resumed.stderr
        assert "The job is complete" in resumed.stderr
    else:
        start_worker(family, redis_url, model, "w1")
        wait_for(lambda: job.is_complete, what="the job is complete")

    assert assert_every_row_once(job, 20) == rows
    assert job.num_attempts(0) == 1


@pytest.mark.parametrize("match", ["part-00000", "chunks/00000", "attempts/00000/0001.json"])
def test_leftovers_of_a_writer_killed_in_its_file_are_swept(family: Family, run_line: RunLine, match: str) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(job, *MANY, rows=MANY_ROWS)
    moment = Interruption(
        family.folder / "moment", "batcher.storage:publish_if_absent", match, "workers.child", is_deadly=True
    )

    run = family.run(*line, env=moment.env)

    assert run.process.returncode == 0, run.stderr
    assert moment.is_reached
    assert "its process died (signal SIGKILL)" in run.stderr
    assert_every_row_once(job, MANY_ROWS)
    # A claim that is younger than a minute could be somebody's who is about to make it.
    assert [path for path in temporary_files(job) if "attempts" not in path.parts] == []


# -- folders ------------------------------------------------------------------------------------------------------


def test_folder_that_can_only_be_read_is_named_and_can_be_looked_into(
    family: Family, mount: Mount, model: Path, run_line: RunLine
) -> None:
    disk = mount(family.folder / "disk")
    job = JobDir(disk.path / "out")
    moment = second_chunk(family)
    family.start(*run_line(job, *MANY, rows=MANY_ROWS), env=moment.env)
    moment.wait()
    family.kill_all()
    saved = chunk_rows(job)
    disk.remount("ro")
    resume = ("resume", job.path, "--model", f"tiny={model}", "--threads", 1)

    refused = family.run(*resume)
    assert refused.process.returncode == 3
    assert "Read-only file system; make it writable, or use another folder" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert f"{len(saved):,} of {MANY_ROWS:,} rows are done and kept" in refused.stderr
    assert family.run("status", job.path).process.returncode == 0
    assert family.run("results", job.path).process.returncode == 0
    for change in (("cancel",), ("delete", "--yes")):
        refused = family.run(*change, job.path)
        assert refused.process.returncode == 3
        assert "Read-only file system" in refused.stderr

    disk.remount("rw")
    assert family.run(*resume).process.returncode == 0
    rows = {row["row"]: row for row in assert_every_row_once(job, MANY_ROWS)}
    assert {number: rows[number] for number in saved} == saved


def test_results_may_lie_on_another_file_system(family: Family, mount: Mount, run_line: RunLine) -> None:
    job = JobDir(family.folder / "out")
    disk = mount(job.results_dir)
    line = run_line(job, *SHORT, "--shard-rows", 5, rows=20)

    run = family.run(*line)
    assert run.process.returncode == 0, run.stderr
    assert_every_row_once(job, 20)
    assert job.part_path(0).stat().st_dev != job.manifest_path.stat().st_dev

    # A part that goes bad is moved from one to the other.
    flip(job.part_path(1), 0.3)
    damaged = job.part_path(1).read_bytes()
    again = family.run(*line)
    assert again.process.returncode == 0, again.stderr
    assert_every_row_once(job, 20)
    assert [path.read_bytes() for path in job.damaged_dir.iterdir()] == [damaged]
    names = {path.name for path in disk.path.iterdir()}
    assert names == {"_SUCCESS", *(f"part-0000{shard}.parquet" for shard in range(4))}

    deleted = family.run("delete", "--yes", job.path)
    assert deleted.process.returncode == 0, deleted.stderr
    assert deleted.stdout.strip().endswith("left there: results")
    assert list(disk.path.iterdir()) == []
