"""A job in the hands of a Python program: found, looked at, waited for, retried, cancelled, exported."""

import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import batcher
from batcher.api.engines import model_specs
from batcher.api.work import find_broker
from batcher.errors import BrokerError, InputError, JobCancelledError, JobError
from batcher.jobdir.folder import JobDir
from batcher.manage.finish import finalize
from batcher.manage.status import StatusReader
from tests.support.job_files import failed, finished_job, make_job, ok, write_chunk, write_part
from tests.support.waiting import wait_for
from tests.unit.conftest import Run


@pytest.fixture
def finished(workplace: Path) -> JobDir:
    return finished_job(workplace / "batcher-jobs" / "job-1")


def test_job_is_found_by_id_and_by_path(finished: JobDir, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (
        batcher.open("job-1"),
        batcher.open("batcher-jobs/job-1"),
        batcher.open(finished.path),
        batcher.open("job-1", jobs_dir=workplace / "batcher-jobs"),
    ):
        assert (found.id, found.path) == ("job-1", finished.path)
    monkeypatch.setenv("BATCHER_JOBS_DIR", str(workplace / "other"))
    with pytest.raises(JobError, match="no job here"):
        batcher.open("job-1")


def test_job_says_how_far_it_is(finished: JobDir, tmp_path: Path) -> None:
    job = batcher.open(finished.path)

    assert repr(job) == "<Job 'job-1': complete, 6 of 6 rows, 2 errors>"
    assert job.is_complete
    assert (job.status().num_ok, job.summary().num_errors) == (4, 2)
    assert job.status().state is batcher.JobState.COMPLETE

    running = make_job(tmp_path / "<b>" / "job", (2, 1))
    write_chunk(running, 0, [ok(0)])
    found = batcher.open(running.path)
    assert not found.is_complete
    assert repr(found) == "<Job 'job': waiting, 1 of 3 rows>"
    assert "job: waiting, 1 of 3 rows" in found._repr_html_()
    assert "&lt;b&gt;/job" in found._repr_html_()
    with pytest.raises(JobError, match="no summary yet"):
        found.summary()


def test_job_that_was_deleted_says_so_and_can_still_be_shown(finished: JobDir) -> None:
    job = batcher.open(finished.path)

    batcher.open(finished.path).delete()

    assert "no job here" in repr(batcher.Job(JobDir(finished.path)))
    with pytest.raises(JobError, match="no job here"):
        batcher.open(finished.path)
    with pytest.raises(JobError):
        job.delete()


def test_job_whose_folder_has_gone_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    job = batcher.open(make_job(tmp_path / "job", (2,)).path)
    assert job.status().num_rows == 2
    job.path.rename(tmp_path / "elsewhere")

    for use in (
        job.status,
        job.wait,
        job.summary,
        job.errors,
        job.retry,
        job.pause,
        job.cancel,
        lambda: job.is_complete,
    ):
        with pytest.raises(JobError, match="no job here any more"):
            use()
    assert not job.path.exists()

    make_job(job.path, (3,))
    with pytest.raises(JobError, match="made anew"):
        job.status()
    assert batcher.open(job.path).status().num_rows == 3


def test_waiting_ends_where_the_folder_goes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = batcher.open(make_job(tmp_path / "job", (2,)).path)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            job.wait(progress=True)
        except JobError as exc:
            raised.append(exc)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    wait_for(lambda: ": waiting, " in capfd.readouterr().err, what="a line of progress")
    job.path.rename(tmp_path / "elsewhere")

    thread.join(30)
    assert not thread.is_alive()
    assert "any more" in str(raised[0])


def test_waiting_for_a_complete_job_ends_at_once_and_prints_nothing(
    finished: JobDir, capfd: pytest.CaptureFixture[str]
) -> None:
    job = batcher.open(finished.path)

    assert job.wait() is job
    assert capfd.readouterr() == ("", "")


def test_waiting_ends_with_the_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_job(tmp_path / "job", (2,))
    job = batcher.open(folder.path)
    thread = threading.Thread(target=job.wait, kwargs={"progress": True})
    thread.start()
    wait_for(lambda: ": waiting, " in capfd.readouterr().err, what="a line of progress")

    write_part(folder, 0, [ok(0), failed(1)])
    thread.join(30)

    assert not thread.is_alive()
    # Whoever waits finishes what the last worker could not.
    assert job.summary().num_errors == 1
    assert ": complete, 100%, 2 of 2 rows" in capfd.readouterr().err


def test_waiting_has_an_end_that_the_caller_sets(tmp_path: Path) -> None:
    make_job(tmp_path / "job", (2,))

    with pytest.raises(TimeoutError, match=r"not complete after 0 s \(0 of 2 rows\)"):
        batcher.open(tmp_path / "job").wait(timeout=0)


def test_waiting_for_a_job_that_nobody_can_do_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_job(tmp_path / "job", (2,))

    with pytest.raises(TimeoutError):
        batcher.open(tmp_path / "job").wait(timeout=0)

    assert "2 rows wait for the model tiny, and no worker is alive that has it" in caplog.text


def test_cancelled_job_ends_the_waiting(tmp_path: Path) -> None:
    make_job(tmp_path / "job", (2,))
    job = batcher.open(tmp_path / "job")

    assert job.cancel()
    assert job.cancel()

    with pytest.raises(JobCancelledError, match=r"the job was cancelled; resume\(\) takes it up again"):
        job.wait()


def test_pause_is_waited_out(tmp_path: Path) -> None:
    job = batcher.open(make_job(tmp_path / "job", (1,)).path)
    assert job.pause()
    assert job.pause()

    with pytest.raises(TimeoutError):
        job.wait(timeout=0)

    assert job.status().state.value == "paused"


def test_place_among_others_is_changed_by_name_number_and_time(tmp_path: Path) -> None:
    job = batcher.open(make_job(tmp_path / "job", (1,)).path)

    job.set_priority("urgent")
    job.set_finish_by(timedelta(hours=2))

    status = job.status()
    assert status.priority == 9
    assert status.finish_by is not None
    assert timedelta(minutes=119) < status.finish_by - datetime.now(UTC) < timedelta(minutes=121)
    job.set_priority(3)
    job.set_finish_by(None)
    assert (job.status().priority, job.status().finish_by) == (3, None)
    with pytest.raises(InputError, match="priority is 10"):
        job.set_priority(10)


def test_complete_job_can_be_neither_cancelled_nor_paused(finished: JobDir) -> None:
    job = batcher.open(finished.path)
    assert not job.cancel()
    assert not job.pause()
    assert batcher.open(finished.path).is_complete


def test_failed_rows_are_opened_again(finished: JobDir) -> None:
    job = batcher.open(finished.path)

    assert job.retry(error_code="timeout") == 1
    assert job.retry("status = 'error'", custom_id="id-0") == 0
    assert not job.is_complete
    assert repr(job) == "<Job 'job-1': running, 5 of 6 rows, 1 error>"
    with pytest.raises(InputError, match="error_code=nonsense: no such code"):
        job.retry(error_code="nonsense")


def test_any_rows_are_opened_again_with_other_parameters(finished: JobDir) -> None:
    job = batcher.open(finished.path)

    assert job.retry(["status = 'ok'", "row < 3"], set={"max_tokens": 64, "stop": ["END"]}) == 2
    with pytest.raises(InputError, match="max_tokens is 0"):
        job.retry(set={"max_tokens": 0})
    assert [finished.open_retries(shard) for shard in range(3)] == [[2], [2], []]


def test_rows_that_another_attempt_cannot_help_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_job(tmp_path / "job", (1, 1), models=("tiny", None))
    write_part(folder, 0, [failed(0)])
    write_part(folder, 1, [failed(1)])
    finalize(folder)

    with caplog.at_level("INFO", logger="batcher"):
        assert batcher.open(folder.path).retry(row=1) == 0

    assert "left out: 1 row that was refused at submit, 0 rows whose error does not go away" in caplog.text


def test_export_writes_what_the_command_does(finished: JobDir, workplace: Path, run: Run) -> None:
    job = batcher.open(finished.path)
    for name, format_ in (("a.parquet", "rows"), ("a.csv", "rows"), ("a.jsonl", "rows"), ("b.jsonl", "openai")):
        assert run(f"export job-1 -o {name} --format {format_}")[0] == 0

        number = job.export(workplace / f"py-{name}", format=format_)  # type: ignore[arg-type]

        assert number == (6 if name.endswith("jsonl") else 7)
        assert (workplace / f"py-{name}").read_bytes() == (workplace / name).read_bytes()
    with pytest.raises(InputError, match="exists"):
        job.export(workplace / "a.csv")
    assert job.export(workplace / "a.csv", force=True) == 7


def test_broker_comes_from_the_call_or_the_environment(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_broker(None) is None
    (workplace / "url").write_text("redis://file/0\n")
    monkeypatch.setenv("BATCHER_BROKER_FILE", str(workplace / "url"))
    assert find_broker(None) == "redis://file/0"
    assert find_broker("redis://call/0") == "redis://call/0"
    monkeypatch.setenv("BATCHER_BROKER", "redis://environment/0")
    with pytest.raises(InputError, match="both given"):
        find_broker(None)
    monkeypatch.delenv("BATCHER_BROKER_FILE")
    assert find_broker(None) == "redis://environment/0"


def test_submit_without_a_broker_makes_no_job(workplace: Path) -> None:
    with pytest.raises(InputError, match=r"submit needs a broker: .* run\(\) needs none"):
        batcher.submit([{"prompt": "a"}], model="tiny")

    assert list(workplace.iterdir()) == []


def test_run_says_what_is_wrong_before_there_is_a_job(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": "a"}]
    with pytest.raises(InputError, match="workers is 0"):
        batcher.run(rows, "out", workers=0)
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        batcher.run(rows, "out", max_token=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="name of the job directory"):
        batcher.run(rows, "my job", model="x.gguf")
    for out in ("", "a\0b"):
        with pytest.raises(InputError, match="is no path; name a file or folder"):
            batcher.run(rows, out, model="x.gguf")
    with pytest.raises(InputError, match="a path is of type int"):
        batcher.open(5)  # type: ignore[arg-type]
    monkeypatch.setattr("sys.path", [str(workplace), *sys.path])
    (workplace / "workers.py").touch()
    monkeypatch.delitem(sys.modules, "workers", raising=False)
    with pytest.raises(batcher.errors.MissingPackageError, match=r"hidden by .*workers.py; rename that"):
        batcher.run(rows, "out")

    assert [path.name for path in workplace.iterdir()] == ["workers.py"]


def test_home_is_known_in_all_paths(finished: JobDir, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workplace))

    job = batcher.open("~/batcher-jobs/job-1")
    job.export("~/a.jsonl")

    assert (workplace / "a.jsonl").is_file()
    assert batcher.open("job-1", jobs_dir="~/batcher-jobs").path == finished.path
    with pytest.raises(InputError, match="the home folder of ~nobody-here is not known"):
        batcher.run([{"prompt": "a"}], "~nobody-here/out", model="x.gguf")
    assert not list(workplace.glob("~*"))


def test_job_that_was_opened_knows_the_broker_of_the_environment(
    finished: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHER_BROKER", "redis://127.0.0.1:1/0")

    with pytest.raises(BrokerError):
        batcher.open("job-1").retry(error_code="timeout")
    with pytest.raises(BrokerError):
        batcher.open("job-1").resume()


def test_waiting_leaves_the_reader_to_those_who_ask_for_the_status(
    finished: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[StatusReader] = []
    read = StatusReader.read

    def noted(reader: StatusReader) -> batcher.Status:
        readers.append(reader)
        return read(reader)

    monkeypatch.setattr(StatusReader, "read", noted)
    job = batcher.open("job-1")
    job.status()
    job.wait()

    assert readers.count(readers[0]) == 1 < len(readers)


def test_values_of_another_kind_are_told(finished: JobDir, workplace: Path) -> None:
    with pytest.raises(InputError, match="format is 'OpenAI'; use one of rows, openai"):
        batcher.open("job-1").export("a.jsonl", format="OpenAI")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="workers is '2': give a whole number"):
        batcher.run([{"prompt": "a"}], "out", workers="2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="model is of type int; give NAME"):
        model_specs(5)  # type: ignore[arg-type]


def test_model_may_be_a_path(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workplace))

    assert model_specs(Path("a=b.gguf")) == ["./a=b.gguf"]
    assert model_specs(["tiny", Path("~/x.gguf")]) == ["tiny", f"{workplace}/x.gguf"]
