"""What a job directory holds, for tests that look at the outcome."""

from typing import Any

from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file


def result_rows(job: JobDir) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    tables = [read_file(job.part_path(shard)) for shard in sorted(job.committed_shards())]
    return [row for table in tables for row in table.to_pylist()]
