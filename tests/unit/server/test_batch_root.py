"""Batches among the other things of a jobs root: their files, jobs of the command line, the commands."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batcher.jobdir.folder import JobDir
from batcher.manage import retry
from batcher.manage.delete import delete_job
from batcher.manage.finish import finalize
from batcher.server.batches.records import Batch, BatchStatus
from batcher.server.batches.requests import NoSuchThingError
from tests.support import job_files
from tests.support.batch_bench import TIMEOUT, BatchBench, line, lines, output_lines, work
from tests.unit.conftest import Run

GOOD = lines(line("a"), line("b"), line("c"))


def test_retried_batch_is_in_progress_again_and_its_files_are_made_anew(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    job = bench.job(batch.id)
    work(job, answer=lambda request: TIMEOUT if request.custom_id == "b" else "old")
    bench.keeper.make_round()
    before = bench.get(batch.id)
    assert len(output_lines(bench, before.output_file_id)) == 2

    retry.retry(JobDir.open(job.path))
    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS
    assert bench.get(batch.id).output_file_id is None
    assert before.output_file_id is not None
    assert bench.batches.output_file(before.output_file_id) is None
    work(job, answer=lambda request: "new")
    finalize(job)

    after = bench.get(batch.id)
    assert (after.counts.completed, after.error_file_id) == (3, None)
    assert len(output_lines(bench, after.output_file_id)) == 3
    assert len(list(job.batch_dir.glob("*.jsonl"))) == 1


def test_deleted_output_file_is_gone_until_the_results_change(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    work(bench.job(batch.id), answer=lambda request: TIMEOUT if request.custom_id == "b" else "text")
    bench.keeper.make_round()
    file_id = bench.get(batch.id).output_file_id
    assert file_id is not None
    assert bench.batches.output_files() == []
    assert bench.batches.output_file(file_id) is not None
    assert [file.id for file in bench.batches.output_files()] == [file_id, f"file-errors-{batch.id}"]

    assert bench.batches.delete_output(file_id)

    assert bench.get(batch.id).output_file_id is None
    assert bench.batches.open_output(file_id) is None
    assert not bench.batches.delete_output(file_id)
    assert [file.id for file in bench.batches.output_files()] == [f"file-errors-{batch.id}"]


def test_output_files_expire_as_asked(bench: BatchBench) -> None:
    batch = bench.started(GOOD, output_expires_s=3600)
    work(bench.job(batch.id))
    bench.keeper.make_round()
    file_id = bench.get(batch.id).output_file_id
    assert file_id is not None
    file = bench.batches.output_file(file_id)
    assert file is not None
    assert file.expires_at == file.created_at + 3600

    bench.clock.now += 3700

    assert bench.get(batch.id).output_file_id is None
    assert bench.batches.output_file(file_id) is None


def test_job_of_the_command_line_is_listed_as_a_batch(bench: BatchBench) -> None:
    job_files.complete_job(bench.root / "nightly")
    finalize(JobDir(bench.root / "nightly"))
    job_files.make_job(bench.root / "waiting", (2,))

    page = bench.batches.list_page()
    assert {batch.id for batch in page.batches} == {"nightly", "waiting"}
    done = bench.get("nightly")
    assert (done.status, done.counts.total, done.expires_at) == (BatchStatus.COMPLETED, 6, None)
    assert (done.input_file_id, done.completion_window) == ("file-input-nightly", "24h")
    assert len(output_lines(bench, done.output_file_id)) == 4

    bench.batches.cancel("waiting")
    assert bench.get("waiting").status is BatchStatus.CANCELLED


def test_pages_go_from_the_newest_to_the_oldest(bench: BatchBench) -> None:
    ids = []
    for _ in range(5):
        ids.append(bench.create(GOOD).id)
        bench.clock.now += 10

    first = bench.batches.list_page(limit=2)
    second = bench.batches.list_page(limit=2, after=first.batches[-1].id)
    last = bench.batches.list_page(limit=2, after=second.batches[-1].id)

    assert [batch.id for page in (first, second, last) for batch in page.batches] == ids[::-1]
    assert [page.has_more for page in (first, second, last)] == [True, True, False]
    with pytest.raises(NoSuchThingError):
        bench.batches.list_page(after="batch_none")


def test_damaged_batch_does_not_hide_the_others(bench: BatchBench, caplog: pytest.LogCaptureFixture) -> None:
    damaged, sound = bench.create(GOOD), bench.create(GOOD)
    bench.job(damaged.id).batch_path.write_text("{")

    with caplog.at_level(logging.WARNING):
        page = bench.server().batches.list_page()

    assert [batch.id for batch in page.batches] == [sound.id]
    assert damaged.id in caplog.text


@pytest.mark.parametrize("batch_id", ["../x", ".files", "", "none", "a/b", "x" * 200])
def test_id_that_is_none_is_no_batch(bench: BatchBench, batch_id: str) -> None:
    bench.upload(GOOD)

    assert bench.batches.get(batch_id) is None
    assert bench.batches.cancel(batch_id) is None
    assert bench.batches.output_file(f"file-output-{batch_id}") is None


def test_link_out_of_the_root_is_no_batch(bench: BatchBench, tmp_path: Path) -> None:
    job_files.make_job(tmp_path / "elsewhere", (2,))
    bench.root.mkdir(exist_ok=True)
    (bench.root / "link").symlink_to(tmp_path / "elsewhere")

    assert bench.batches.get("link") is None
    assert bench.batches.list_page().batches == ()


def test_completed_batch_is_not_read_again(bench: BatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = bench.started(GOOD)
    work(bench.job(batch.id))
    bench.keeper.make_round()
    done = bench.get(batch.id)
    read: list[Path] = []
    real = Path.open

    def spy(path: Path, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)

    assert bench.get(batch.id) == done
    assert [path for path in read if path.exists()] == []


def deleted_states(bench: BatchBench) -> Iterator[Batch]:
    yield bench.create(GOOD)
    yield bench.started(b"nothing")
    done = bench.started(GOOD)
    work(bench.job(done.id))
    bench.keeper.make_round()
    output_lines(bench, bench.get(done.id).output_file_id)
    yield bench.get(done.id)


def test_delete_leaves_nothing_of_a_batch_in_any_state(bench: BatchBench) -> None:
    for batch in list(deleted_states(bench)):
        assert delete_job(bench.job(batch.id)) == []

        assert bench.batches.get(batch.id) is None
        assert not bench.job(batch.id).path.exists()
    assert bench.batches.list_page().batches == ()


def test_batch_whose_deletion_was_interrupted_is_no_batch(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    job = bench.job(batch.id)
    job.manifest_path.rename(job.deleted_path)

    assert bench.batches.get(batch.id) is None
    bench.keeper.make_round()

    assert not job.exists()


def test_commands_work_on_a_batch(run: Run, workplace: Path) -> None:
    bench = BatchBench(workplace / "jobs")
    batch, failed = bench.started(GOOD), bench.started(b"nothing")
    work(bench.job(batch.id), answer=lambda request: TIMEOUT if request.custom_id == "b" else "text")
    bench.keeper.make_round()
    there = "--jobs-dir jobs"

    assert batch.id in run(f"list {there}")[1]
    assert json.loads(run(f"status {batch.id} --json {there}")[1])["num_rows"] == 3
    assert run(f"results {batch.id} --json {there}")[1].count("\n") == 3
    assert run(f"export {batch.id} -o out.jsonl --format openai {there}")[0] == 0
    assert "nothing to cancel" in run(f"cancel {batch.id} {there}")[1]
    assert "Reopened 1 row in" in run(f"retry {batch.id} {there}")[1]
    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS
    assert "Cancelled" in run(f"cancel {batch.id} {there}")[1]
    assert bench.get(batch.id).status is BatchStatus.CANCELLING
    for one in (batch, failed):
        assert run(f"delete {one.id} --yes {there}")[0] == 0
        assert bench.batches.get(one.id) is None
