"""Which job a message means: one directly under the jobs root, or none."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.job_files import make_job
from tests.unit.workers.test_messages import json_values
from workers.queue.tasks import OpenJobs, _resolve

#: Never called: no shard is run here.
MODELS = ("tiny",)

NAMES = ["job", "out", "alias", "loop", "damaged", "empty", "file", ".", "..", "../outside", "job/", "job\n", "jöb", ""]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jobs root, itself a link, with a job, links to it, to a job outside and to themselves, and what is no job."""
    folder = tmp_path_factory.mktemp("tasks")
    root = folder / "jobs"
    make_job(root / "job", (1, 1), models=["tiny", "other"])
    make_job(folder / "outside", (1,))
    (root / "out").symlink_to("../outside")
    (root / "alias").symlink_to("job")
    (root / "loop").symlink_to("loop")
    (root / "empty").mkdir()
    (root / "damaged").mkdir()
    (root / "damaged" / "manifest.json").write_text("{")
    (root / "file").touch()
    (folder / "link").symlink_to("jobs")
    return folder / "link"


def test_message_means_a_job_under_the_root(root: Path) -> None:
    found = _resolve("job", 0, jobs=OpenJobs(root), models=MODELS)

    assert found is not None
    assert (found[0].path, found[1]) == (root.resolve() / "job", 0)


def test_link_to_another_job_of_the_root_is_worked_on_under_its_own_name(root: Path) -> None:
    # Under two names it would have two leases, and be worked on twice.
    found = _resolve("alias", 0, jobs=OpenJobs(root), models=MODELS)

    assert found is not None
    assert found[0].job_id == "job"


@pytest.mark.parametrize(
    ("job_id", "shard", "reason"),
    [
        ("out", 0, "leads out of the jobs folder"),
        ("loop", 0, "no job here|cannot read"),
        ("empty", 0, "no job here"),
        ("file", 0, "no job here"),
        ("damaged", 0, "damaged"),
        ("../outside", 0, "no id of ours"),
        ("job", 2, "no shard 2 for the models here"),
        ("job", 1, "no shard 1 for the models here"),
        ("job", True, "no number of ours"),
    ],
)
def test_message_for_anything_else_is_dropped_with_a_line(
    root: Path, job_id: str, shard: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert _resolve(job_id, shard, jobs=OpenJobs(root), models=MODELS) is None

    (record,) = caplog.records
    assert record.getMessage().startswith("a message is dropped: ")
    assert record.exc_info is None
    assert re.search(reason, record.getMessage())


@given(st.sampled_from(NAMES) | json_values, st.integers(-1, 3) | json_values)
@example("out", 0)
@example("job", 0)
def test_no_json_values_mean_anything_outside_the_root(root: Path, job_id: Any, shard: Any) -> None:
    found = _resolve(job_id, shard, jobs=OpenJobs(root), models=MODELS)

    if found is not None:
        assert found[0].path == root.resolve() / "job"
        assert (job_id, shard) in {("job", 0), ("alias", 0)}
