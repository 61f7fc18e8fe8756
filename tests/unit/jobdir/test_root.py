"""Which folder a job id means, and that it lies under the jobs root."""

from pathlib import Path

import pytest

from batcher.errors import InputError, JobError
from batcher.jobdir.root import locate_job


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "jobs"
    root.mkdir()
    return root


def test_id_means_a_folder_of_the_root_whether_it_exists_or_not(root: Path) -> None:
    (root / "here").mkdir()

    assert locate_job(root, "here") == root / "here"
    assert locate_job(root, "not-yet") == root / "not-yet"


def test_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)

    assert locate_job(tmp_path / "link", "job") == root / "job"


def test_root_may_be_relative(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert locate_job(Path("jobs"), "job") == root / "job"


def test_link_to_another_job_of_the_root_means_that_job(root: Path) -> None:
    (root / "alias").symlink_to("job")

    assert locate_job(root, "alias") == root / "job"


def test_link_to_itself_means_a_folder_that_does_not_exist(root: Path) -> None:
    (root / "loop").symlink_to("loop")

    assert locate_job(root, "loop") == root / "loop"


@pytest.mark.parametrize("target", ["../elsewhere", "..", ".", "job/shards", "/etc"])
def test_link_out_of_the_root_is_refused(root: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(target)

    with pytest.raises(JobError, match=r"jobs/link: a link that leads out of the jobs folder, to /"):
        locate_job(root, "link")


@pytest.mark.parametrize("job_id", ["", ".", "..", "../jobs", "a/b", "a\0", "a\n", "x" * 129])
def test_what_is_no_id_is_refused(root: Path, job_id: str) -> None:
    with pytest.raises(InputError, match="job id"):
        locate_job(root, job_id)
