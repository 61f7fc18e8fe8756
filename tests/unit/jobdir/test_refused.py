"""The parts of refused rows, which nobody computes."""

from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.refused import commit_refused
from batcher.jobdir.results import read_file
from batcher.submission.planner import submit
from tests.support.submitted import make_options, write_lines


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return JobDir(tmp_path / "job")


def test_lost_part_of_refused_rows_is_written_again_the_same(tmp_path: Path, job: JobDir) -> None:
    submit(job, [write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, b"bad")], make_options())
    part = job.part_path(1)
    before = read_file(part)
    assert commit_refused(job) == 0
    part.unlink()
    assert commit_refused(JobDir.open(job.path)) == 1
    assert read_file(part).equals(before)
