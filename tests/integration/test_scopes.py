"""Several jobs folders on one broker: each has its own queues, and nobody takes what another is to do."""

import re
import shutil
from pathlib import Path

import redis

import batcher.broker.client
from batcher.broker.client import KEY_PREFIX
from batcher.jobdir.folder import JobDir
from tests.support.family import Command, Family, assert_every_row_once, start_worker, wait_until_ready, write_prompts
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for

ROWS = 24
TIMES = 4


class Fleet:
    """Commands on one broker and one model, in jobs folders of any name."""

    def __init__(self, family: Family, model: Path, url: str) -> None:
        self.family = family
        self._model = f"tiny={model}"
        self._url = url
        self._prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)

    def run(self, out: Path) -> Command:
        """A `run` that has begun."""
        self.family.jobs.append(out)
        return self.family.start("run", self._prompts, "-o", out, "--model", self._model, *self._common)

    def submit(self, jobs: Path, job_id: str) -> JobDir:
        command = ("submit", self._prompts, "--jobs-dir", jobs, "--job-id", job_id, "--model", "tiny", *self._common)
        self.family.run(*command, code=0)
        return JobDir(jobs / job_id)

    @property
    def _common(self) -> tuple[object, ...]:
        return "--broker", self._url, "--shard-rows", 4, "--max-tokens", 8


def wait_for_end(job: JobDir) -> None:
    wait_for(lambda: job.is_complete, what=f"{job.path} is complete")


def assert_done_at_first_try(job: JobDir, *, worker: str) -> None:
    """By workers whose names begin so: no message went astray, and no shard waited for another's lease."""
    assert_every_row_once(job, ROWS)
    assert {info.shard: job.num_attempts(info.shard) for info in job.manifest.shards} == {
        info.shard: 1 for info in job.manifest.shards
    }
    assert all(row["worker"].startswith(worker) for row in result_rows(job))


def test_runs_and_a_worker_of_another_folder_leave_each_others_shards_alone(
    family: Family, model: Path, redis_url: str
) -> None:
    """Each took the other's messages and dropped them, again and again."""
    fleet = Fleet(family, model, redis_url)
    standing = start_worker(family, redis_url, model, "standing")
    wait_until_ready(standing)

    for number in range(TIMES):
        running = fleet.run(family.folder / f"out-{number}")
        job = fleet.submit(family.folder / "jobs", f"job-{number}")
        assert running.wait() == 0, running.stderr
        wait_for_end(job)
        assert_done_at_first_try(job, worker="standing")
        assert {row["worker"] for row in result_rows(JobDir(family.folder / f"out-{number}"))} != {"standing"}
        assert_every_row_once(JobDir(family.folder / f"out-{number}"), ROWS)
        assert "dropped" not in running.stderr

    assert "dropped" not in standing.stderr


def test_jobs_of_one_name_in_two_folders_do_not_wait_for_each_other(
    family: Family, model: Path, redis_url: str
) -> None:
    fleet = Fleet(family, model, redis_url)
    outs = [family.folder / name / "out" for name in ("ada", "bob", "eve")]

    runs = [fleet.run(out) for out in outs]

    for out, running in zip(outs, runs, strict=True):
        assert running.wait() == 0, running.stderr
        assert_done_at_first_try(JobDir(out), worker="")


def test_workers_of_two_folders_each_do_their_own(family: Family, model: Path, redis_url: str) -> None:
    fleet = Fleet(family, model, redis_url)
    folders = {name: family.folder / name for name in ("ada", "bob")}
    workers = [start_worker(family, redis_url, model, name, "--jobs-dir", folder) for name, folder in folders.items()]
    wait_until_ready(*workers)

    jobs = {name: fleet.submit(folder, "job") for name, folder in folders.items()}

    for name, job in jobs.items():
        wait_for_end(job)
        assert_done_at_first_try(job, worker=name)
    assert all("dropped" not in worker.stderr for worker in workers)


def test_folder_that_is_elsewhere_for_others_is_the_same_folder(family: Family, model: Path, redis_url: str) -> None:
    """As where containers mount one volume at several paths: here by its own path, by a link, and by a new path."""
    fleet = Fleet(family, model, redis_url)
    (family.folder / "jobs").mkdir()
    (family.folder / "link").symlink_to(family.folder / "jobs")
    first = fleet.submit(family.folder / "link", "first")
    shutil.move(family.folder / "jobs", family.folder / "mounted")

    worker = start_worker(family, redis_url, model, "w1", "--jobs-dir", family.folder / "mounted")
    job = JobDir(family.folder / "mounted" / first.job_id)
    wait_for_end(job)

    assert_done_at_first_try(job, worker="w1")
    assert "dropped" not in worker.stderr


def test_run_within_the_folder_of_a_standing_worker_ends_with_every_row_once(
    family: Family, model: Path, redis_url: str
) -> None:
    """Both may work on it: the lease is the job's, whoever holds it."""
    fleet = Fleet(family, model, redis_url)
    wait_until_ready(start_worker(family, redis_url, model, "standing"))

    running = fleet.run(family.folder / "jobs" / "out")

    assert running.wait() == 0, running.stderr
    assert_done_at_first_try(JobDir(family.folder / "jobs" / "out"), worker="")


def test_every_key_at_the_broker_is_one_that_is_documented(family: Family, model: Path, redis_url: str) -> None:
    fleet = Fleet(family, model, redis_url)
    patterns = documented_keys()
    found: set[str] = set()
    start_worker(family, redis_url, model, "standing")
    job = fleet.submit(family.folder / "jobs", "job")
    running = fleet.run(family.folder / "out")
    with redis.Redis.from_url(redis_url) as client:

        def is_over() -> bool:
            found.update(key.decode() for key in client.keys("*"))
            return running.process.poll() is not None and job.is_complete

        wait_for(is_over, what="both jobs are complete")

    assert {key for key in found if not any(pattern.fullmatch(key) for pattern in patterns)} == set()
    assert any(key.startswith(f"{KEY_PREFIX}claimed:") for key in found)


def documented_keys() -> list[re.Pattern[str]]:
    """The keys in the docstring of the module that makes their names."""
    text = batcher.broker.client.__doc__ or ""
    keys = [key for line in re.findall(rf"^    ({KEY_PREFIX}.*?)  +", text, re.MULTILINE) for key in line.split(", ")]
    return [re.compile(re.sub(r"<\w+>|\\\*", "[^:]*", re.escape(key))) for key in keys]
