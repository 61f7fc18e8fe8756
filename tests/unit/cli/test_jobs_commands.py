"""The commands on jobs: what they print, what they change, how they end."""

import errno
import io
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive
from batcher.jobdir.standing import USUAL, Standing, read_standing
from batcher.manage.finish import finalize
from tests.support.job_files import complete_job, finished_job, make_job, ok, write_chunk, write_part
from tests.support.waiting import PATIENCE_S
from tests.unit.conftest import Run

#: The installed program.
BATCHER = Path(sys.executable).parent / "batcher"


@pytest.fixture
def finished(workplace: Path) -> JobDir:
    return finished_job(workplace / "batcher-jobs" / "demo")


def test_variable_stands_for_an_option(run: Run, finished: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHER_JOBS_DIR", str(finished.path.parent))
    monkeypatch.setenv("BATCHER_JSON", "1")
    monkeypatch.chdir("/")

    code, out, _ = run("status demo")

    assert code == 0
    assert json.loads(out)["job_id"] == "demo"


# -- status and list ----------------------------------------------------------------------------------------------


def test_status_of_a_complete_job_with_errors_succeeds_and_shows_them(run: Run, finished: JobDir) -> None:
    code, out, err = run("status demo")

    assert (code, err) == (0, "")
    assert re.search(r"^Job +demo: complete$", out, re.M)
    assert re.search(r"^Rows +6 of 6 done \(100%\): 4 ok, 2 errors$", out, re.M)
    assert re.search(r"^Errors +context_length_exceeded 1: row 4: .+\n +timeout 1: row 1: timeout$", out, re.M)
    assert re.search(r"^Where +batcher-jobs/demo$", out, re.M)


def test_status_takes_an_id_a_path_and_another_root(run: Run, finished: JobDir) -> None:
    for line in ("status demo", f"status {finished.path}", "status batcher-jobs/demo"):
        assert run(line)[0] == 0
    assert run("status demo --jobs-dir elsewhere")[0] == 2
    assert run("status demo --jobs-dir batcher-jobs")[0] == 0


def test_status_json_is_one_line_with_stable_keys(run: Run, finished: JobDir) -> None:
    _, out, _ = run("status demo --json")

    (line,) = out.splitlines()
    found = json.loads(line)
    assert list(found) == [
        "job_id", "state", "num_rows", "num_done", "num_ok", "num_errors", "num_choices", "prompt_tokens",
        "completion_tokens", "cached_tokens", "error_codes", "num_shards", "num_committed", "num_claimed",
        "num_waiting", "num_attempts", "num_crashes", "num_quarantined", "tokens_per_s", "rows_per_s", "eta_s",
        "created_at", "started_at", "elapsed_s", "workers", "failures",
        "unserved_models", "served_models", "models", "progress", "tokens_in_flight", "error_reasons",
        "priority", "finish_by", "late_s",
    ]  # fmt: skip
    assert (found["state"], found["num_done"]) == ("complete", 6)
    assert found["created_at"] == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize("is_json", [True, False])
def test_watched_job_ends_when_it_is_complete(tmp_path: Path, is_json: bool) -> None:
    job = make_job(tmp_path / "job", (2,))
    job.claim_attempt(0, worker="w")
    write_chunk(job, 0, [ok(0)])
    command = ["timeout", str(PATIENCE_S), str(BATCHER), "status", "job", "--watch", *(["--json"] if is_json else [])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) as watcher:
        try:
            shown = watcher.stdout if is_json else watcher.stderr
            assert shown is not None
            first = shown.readline()

            write_part(job, 0, [ok(0), ok(1)])
            finalize(job)
            out, err = watcher.communicate(timeout=60)
        finally:
            watcher.kill()

    assert watcher.returncode == 0
    if is_json:
        assert json.loads(first)["num_done"] == 1
        assert [json.loads(line)["state"] for line in out.splitlines()][-1:] == ["complete"]
        assert out.count("complete") == 1
        assert err == ""
    else:
        assert first.startswith("job: running, 50%, 1 of 2 rows")
        assert err == ""
        assert "job: complete" in out


def test_watching_a_complete_job_returns_at_once(run: Run, finished: JobDir) -> None:
    code, out, err = run("status demo --watch --json")

    assert (code, err) == (0, "")
    assert json.loads(out)["state"] == "complete"


def test_reader_that_has_enough_ends_the_watching(tmp_path: Path) -> None:
    """Given a job on which nobody works, when `head` has its line, then the command doesn't stay for more."""
    make_job(tmp_path / "job", (2,))

    done = subprocess.run(
        ["bash", "-c", f"{BATCHER} status job --watch --json | head -1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )

    assert json.loads(done.stdout)["state"] == "waiting"
    assert done.stderr == ""


def test_list_shows_all_jobs_and_warns_of_a_damaged_one(run: Run, finished: JobDir) -> None:
    make_job(finished.path.parent / "waiting", (3,))
    damaged = make_job(finished.path.parent / "damaged", (1,))
    damaged.manifest_path.write_text("{")

    code, out, err = run("list")

    assert code == 0
    header, *lines = out.splitlines()
    assert header.split() == ["JOB", "STATE", "DONE", "ROWS", "ERRORS", "TOK/S", "ETA", "MODEL", "CREATED"]
    demo, waiting = sorted(lines)
    assert float(demo.split()[5].replace(",", "")) > 0
    assert [[*line.split()[:5], *line.split()[6:]] for line in (demo, waiting)] == [
        ["demo", "complete", "100%", "6", "2", "-", "tiny", "2026-01-01", "00:00:00", "UTC"],
        ["waiting", "waiting", "0%", "3", "0", "-", "tiny", "2026-01-01", "00:00:00", "UTC"],
    ]
    assert "damaged/manifest.json: damaged" in err
    assert [json.loads(line)["job_id"] for line in run("list --json")[1].splitlines()] == ["demo", "waiting"]


def test_job_whose_folder_was_renamed_has_the_name_by_which_commands_find_it(run: Run, finished: JobDir) -> None:
    finished.path.rename(finished.path.parent / "renamed")

    assert run("list")[1].splitlines()[1].split()[:2] == ["renamed", "complete"]
    assert "Job       renamed: complete\n" in run("status renamed")[1]


def test_list_of_nothing_says_where_it_looked(run: Run) -> None:
    assert run("list --jobs-dir nowhere") == (0, "", "No jobs under nowhere.\n")


# -- cancel, pause, delete ----------------------------------------------------------------------------------------


def test_cancel_is_said_once(run: Run, tmp_path: Path, finished: JobDir) -> None:
    job = make_job(tmp_path / "my job", (1,))

    assert "take it up again with: batcher resume 'my job'" in run("cancel 'my job'")[1]
    assert job.is_cancelled
    assert run("cancel 'my job'") == (0, "The job was cancelled already.\n", "")
    assert "nothing to cancel" in run("cancel demo")[1]
    assert not finished.is_cancelled


def test_pause_is_said_once_and_never_of_what_is_over(run: Run, tmp_path: Path, finished: JobDir) -> None:
    job = make_job(tmp_path / "my job", (1,))

    assert run("pause 'my job'")[1].endswith("have it go on with: batcher resume 'my job'\n")
    assert job.is_paused
    assert run("pause 'my job'")[1].startswith("The job is paused already; have it go on with: batcher resume")
    assert ": paused\n" in run("status 'my job'")[1]
    job.cancel()
    assert run("pause 'my job'")[1].startswith("The job is cancelled: nobody works on it")
    assert run("pause demo") == (0, "The job is complete; there is nothing to pause.\n", "")
    assert not finished.is_paused


def test_priority_is_shown_changed_and_refused(run: Run, tmp_path: Path, finished: JobDir) -> None:
    job = make_job(tmp_path / "my job", (1,))

    assert run("priority 'my job'") == (0, "Priority 5 (normal).\n", "")
    assert run("priority 'my job' low") == (0, "Priority 0 (low).\n", "")
    assert "Priority  0 (low)\n" in run("status 'my job'")[1]
    assert run("priority 'my job' 7 --finish-by 2999-01-31T18:00Z")[1] == (
        "Priority 7, to be finished by 2999-01-31 18:00:00 UTC.\n"
    )
    assert read_standing(job) == Standing(7, datetime(2999, 1, 31, 18, tzinfo=UTC))
    assert "2999-01-31 18:00:00 UTC\n" in run("status 'my job'")[1]
    assert run("priority 'my job' --finish-by none")[1] == "Priority 7.\n"
    for line, reason in (("11", "priority is '11': give 0 to 9"), ("--finish-by 2020-01-01", "which is over")):
        code, _, err = run(f"priority 'my job' {line}")
        assert code == 2
        assert reason in err
    assert run("priority demo 9") == (0, "The job is complete; it needs no priority any more.\n", "")
    assert read_standing(finished) == USUAL


def test_cancellation_that_comes_too_late_says_so(run: Run, tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")  # its last worker has not finalized it yet

    assert run("cancel job") == (0, "The job is complete; there is nothing to cancel.\n", "")
    assert not job.is_cancelled
    assert job.is_complete


@pytest.mark.parametrize("line", ["retry demo", "delete demo --yes"])
def test_command_that_changes_the_job_waits_for_no_other(run: Run, finished: JobDir, line: str) -> None:
    with exclusive(finished):
        code, _, err = run(line)

    assert code == 2
    assert "another command (submit, retry or delete) is changing this job; wait until it is done" in err
    assert finished.is_complete


def test_delete_asks_or_wants_yes(run: Run, finished: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, _, err = run("delete demo")
    assert code == 2
    assert "give --yes" in err
    assert finished.exists()

    assert run("delete demo --yes") == (0, f"Deleted {finished.path}\n", "")
    assert not finished.path.exists()


@pytest.mark.parametrize(("answer", "is_deleted"), [("y", True), ("n", False), ("", False)])
def test_delete_does_what_the_answer_says(
    run: Run, finished: JobDir, monkeypatch: pytest.MonkeyPatch, answer: str, is_deleted: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))

    code, out, _ = run("delete demo")

    assert "(complete, 6 finished rows)? [y/N]" in out
    assert (code == 0) is is_deleted
    assert finished.path.exists() is not is_deleted


def test_delete_leaves_what_is_not_the_jobs_own(run: Run, finished: JobDir) -> None:
    (finished.path / "notes.txt").write_text("mine")

    code, out, _ = run("delete demo --yes")

    assert code == 0
    assert out.endswith("left there: notes.txt\n")
    assert [path.name for path in finished.path.iterdir()] == ["notes.txt"]


def test_deletion_that_was_interrupted_can_be_repeated(
    run: Run, finished: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", fail)
        code, _, err = run("delete demo --yes")
    assert code == 3
    assert "cannot delete: Input/output error; run the command again" in err
    assert not finished.exists()  # workers stop meanwhile
    assert run("status demo")[0] == 2

    assert run("delete demo --yes") == (0, f"Deleted {finished.path}\n", "")
    assert not finished.path.exists()


# -- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["status", "results", "export -o x.csv", "retry", "pause", "cancel", "delete --yes"])
@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("unknown", "unknown: no job here"),
        ("../outside", "../outside: no job here"),
        ("'a b'", "job id 'a b' is not usable"),
        ("damaged", "manifest.json: damaged"),
    ],
)
def test_job_that_cannot_be_opened_is_one_line_without_a_traceback(
    run: Run, tmp_path: Path, name: str, job: str, message: str
) -> None:
    make_job(tmp_path / "batcher-jobs" / "damaged").manifest_path.write_text('{"job_id":')

    code, out, err = run(f"{name} {job}")

    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_torn_part_is_named_by_whoever_reads_it(run: Run, finished: JobDir) -> None:
    finished.part_path(1).write_bytes(b"torn")

    for line in ("status demo", "results demo", "export demo -o x.csv", "retry demo"):
        code, _, err = run(line)
        assert code == 3
        assert "part-00001.parquet" in err
        assert "Traceback" not in err


def test_command_line_works_as_a_program(finished: JobDir) -> None:
    done = subprocess.run([BATCHER, "status", "unknown"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
