"""Which folder a job id means, and that it lies under the jobs root."""

from pathlib import Path

import pytest

from batcher.errors import InputError, JobError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.root import check_place, find_job, list_batches, list_jobs, locate_job, place_job
from tests.support.job_files import make_job


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


def test_job_whose_deletion_was_interrupted_is_told_as_that(root: Path) -> None:
    job = make_job(root / "half", (1,))
    job.manifest_path.rename(job.deleted_path)

    for named in ("half", str(job.path)):
        with pytest.raises(JobError, match="deletion of a job here was interrupted; finish it with `batcher delete`"):
            find_job(named, root)


def test_job_that_cannot_be_read_hides_no_other(root: Path) -> None:
    make_job(root / "good", (1,))
    for name in ("bad", "lost+found", ".hidden"):
        (root / name).mkdir()
        (root / name / "manifest.json").symlink_to("manifest.json")

    assert [job.job_id for job in list_jobs(root)] == ["bad", "good"]
    assert [job.job_id for job in list_batches(root)] == ["bad", "good"]


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


@pytest.mark.parametrize("inside", ["batch", "results/deeper/job"])
def test_job_is_not_made_inside_another(tmp_path: Path, inside: str) -> None:
    outer = make_job(tmp_path / "out", (1,))
    message = f"{outer.path / inside}: lies inside the job {outer.path}, and would be deleted with it; choose a folder"

    with pytest.raises(JobError) as told:
        check_place(JobDir(outer.path / inside))
    assert str(told.value).startswith(message)

    # Nor in one whose deletion was interrupted, and will be finished.
    outer.manifest_path.rename(outer.deleted_path)
    with pytest.raises(JobError, match="lies inside the job"):
        check_place(JobDir(outer.path / inside))


def test_job_beside_another_or_in_a_folder_with_somebodys_manifest_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "of a web page"}')
    make_job(tmp_path / "out", (1,))

    check_place(JobDir(tmp_path / "out-2"))
    # What lies inside another already can be gone on with.
    check_place(make_job(tmp_path / "out" / "inner", (1,)))


def test_new_job_has_a_folder_that_nobody_else_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["20261130-aaaa", "20261130-aaaa", "20261130-bbbb"])
    monkeypatch.setattr("batcher.jobdir.root.new_job_id", lambda: next(drawn))

    with place_job(tmp_path / "jobs", None) as first, place_job(tmp_path / "jobs", None) as second:
        assert (first.job_id, second.job_id) == ("20261130-aaaa", "20261130-bbbb")
        make_job(second.path)

    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["20261130-bbbb"]


def test_job_that_has_an_id_is_placed_by_it(tmp_path: Path) -> None:
    with place_job(tmp_path, "demo") as job:
        assert job.path == tmp_path / "demo"

    assert not job.path.exists()
    with pytest.raises(InputError, match="job id"), place_job(tmp_path, "../demo"):
        pytest.fail("it was placed outside")
