"""Command lines of the fault tests on storage and races, and jobs of a known course."""

from pathlib import Path

from batcher.jobdir.folder import JobDir
from tests.faults.interruption import Interruption
from tests.support.family import Family, write_prompts

#: Options of a job that is done at once, and of one that makes several chunks in a row: one every 256 rows.
SHORT = ("--max-tokens", 8, "--threads", 1)
MANY_ROWS = 1000
MANY = ("--max-tokens", 4, "--shard-rows", MANY_ROWS, "--threads", 1)


def prompts_of(family: Family, rows: int) -> Path:
    """The input file of a test, with so many prompts."""
    return write_prompts(family.folder / "prompts.jsonl", rows)


def run_line(family: Family, model: Path, job: JobDir, prompts: Path, *options: object) -> list[object]:
    """A run that makes `job`, which is known to the family then."""
    family.jobs.append(job.path)
    return ["run", prompts, "-o", job.path, "--model", f"tiny={model}", *options]


def submit_line(job: JobDir, redis_url: str, prompts: Path, *options: object) -> list[object]:
    """A submit that makes `job`."""
    where = ("--broker", redis_url, "--jobs-dir", job.path.parent, "--job-id", job.job_id)
    return ["submit", prompts, *where, "--model", "tiny", *options]


def resume_line(job: JobDir, model: Path) -> list[object]:
    return ["resume", job.path, "--model", f"tiny={model}", "--threads", 1]


def second_chunk(family: Family) -> Interruption:
    """The moment at which a worker is about to write its second chunk, and the first is saved."""
    return Interruption(
        family.folder / "moment", "batcher.jobdir.local_store:create_if_absent", "-0002.parquet", "workers.child"
    )


def temporary_files(job: JobDir) -> list[Path]:
    """What writers are about to give a name, or what killed ones left."""
    return sorted(job.path.rglob(".tmp-*"))
