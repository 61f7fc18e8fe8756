"""What run, submit, worker and resume refuse before anything is started."""

import contextlib
import errno
import os
import shlex
from pathlib import Path

import pytest

from batcher.cli import run_cli
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from tests.support.job_files import make_job
from tests.support.submitted import make_options
from tests.unit.conftest import Run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    return path


@pytest.mark.parametrize("command", ["submit", "worker"])
def test_commands_for_a_fleet_need_a_broker(
    command: str, prompts: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BATCHER_BROKER", raising=False)
    arguments = [str(prompts)] if command == "submit" else ["--model", str(model)]

    assert run_cli([command, *arguments]) == 2

    assert "--broker URL" in capsys.readouterr().err


def test_submit_to_a_broker_that_is_away_leaves_no_job(
    tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = tmp_path / "jobs"

    assert run_cli(["submit", str(prompts), "--broker", "redis://127.0.0.1:1/0", "--jobs-dir", str(jobs)]) == 3

    assert "cannot reach it" in capsys.readouterr().err
    assert not jobs.exists()


def test_two_models_of_one_name_are_refused(
    tmp_path: Path, prompts: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["--model", f"a={model}", "--model", f"a={model}"]

    assert run_cli(["run", str(prompts), "-o", str(tmp_path / "out"), *twice]) == 2

    assert "the same name" in capsys.readouterr().err


def test_output_whose_name_is_no_job_id_is_refused(
    tmp_path: Path, prompts: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(["run", str(prompts), "-o", str(tmp_path / "my out"), "--model", str(model)]) == 2

    assert "'my out'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--output", "out/batch", "--model", "tiny.gguf"],
        ["submit", "--broker", "redis://host", "--jobs-dir", "out", "--job-id", "batch"],
    ],
    ids=["run", "submit"],
)
def test_job_inside_another_is_refused_before_anything_is_written(
    run: Run, prompts: Path, model: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = make_job(prompts.parent / "out", (1,))
    monkeypatch.setattr("batcher.broker.sender.sending", lambda url: contextlib.nullcontext())
    before = sorted(outer.path.rglob("*"))

    code, _, err = run(shlex.join([*arguments, str(prompts)]))

    assert (code, sorted(outer.path.rglob("*"))) == (2, before)
    assert f"{outer.path / 'batch'}: lies inside the job {outer.path}" in err


@pytest.mark.parametrize("line", ["run prompts.jsonl -o out", "worker --broker redis://127.0.0.1:1/0"])
def test_memory_that_the_weights_alone_exceed_is_refused_before_anything_is_written(
    run: Run, prompts: Path, tiny: Path, line: str
) -> None:
    code, _, err = run(f"{line} --model {tiny} --memory 1")

    assert code == 2
    assert "the weights of tiny alone take" in err
    assert not (prompts.parent / "out").exists()


def test_rows_that_are_all_refused_wait_for_nobody(run: Run, tmp_path: Path, redis_url: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x", "top_p": 2}\n')

    code, out, _ = run(f"submit bad.jsonl --model m --job-id bad --allow-bad-rows --broker {redis_url}")

    assert (code, out) == (0, "bad\n")
    assert JobDir(tmp_path / "batcher-jobs" / "bad").is_complete


def test_resume_without_the_model_of_the_job_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path / "job", (1,), models=["rare"])

    assert run_cli(["resume", str(job.path)]) == 2

    assert "--model rare=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("interrupted", "told"),
    [
        (
            "batcher.api.order.submit",
            "nothing was submitted. Start again with:",
        ),
        ("batcher.api.order.resume", "Stopped. Go on with:"),
    ],
)
def test_run_that_is_stopped_before_its_workers_start_says_what_is_there(
    run: Run, prompts: Path, model: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str, told: str
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    options = make_options(default_model="tiny", allow_bad_rows=False, chat_max_tokens=None)
    if interrupted.endswith("resume"):
        submit(JobDir(model.parent / "out"), [str(prompts)], options)
    monkeypatch.setattr(interrupted, interrupt)
    line = f"run prompts.jsonl -o out --model {model}"
    monkeypatch.setattr("sys.argv", ["batcher", *line.split()])

    code, _, err = run(line)

    assert code == 130
    assert f"{told}\n  batcher {line}\n" in err


def test_empty_name_of_the_job_directory_is_not_this_folder(run: Run, prompts: Path, model: Path) -> None:
    code, _, err = run(f"run prompts.jsonl -o '' --model {model}")

    assert code == 2
    assert "'' is no path; name a file or folder" in err


@pytest.mark.parametrize("command", ["worker --broker redis://127.0.0.1:1/0", "serve --no-auth --port 0"])
def test_folder_that_takes_no_jobs_is_told_before_a_model_is_loaded(
    run: Run, tmp_path: Path, model: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)

    code, _, err = run(f"{command} --model {model} --jobs-dir {tmp_path / 'jobs'}")

    assert code == 2
    assert "Error: --jobs-dir " in err
    assert "hard links" in err
    assert not (tmp_path / "jobs").exists()
