"""The job that most tests of this room begin with."""

from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from tests.support.job_files import complete_job


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    """Every part of it is there, two of its rows failed, and nobody has finalized it."""
    return complete_job(tmp_path / "job")
