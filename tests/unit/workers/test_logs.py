"""The log of a process: text and JSON, and what else comes to stderr."""

import json
import logging
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from workers.process.logs import JsonFormatter, _add_fields, about

URL = 'redis://:ge%2F"heim@host:6379/0'


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("batcher.test").makeRecord(
        *("batcher.test", logging.WARNING, "file.py", 1, message, args, exc_info), extra=extra or None
    )
    _add_fields(made)
    return made


def line_of(made: logging.LogRecord, url: str = URL) -> dict[str, Any]:
    text = JsonFormatter("w1", url).format(made)
    assert "\n" not in text
    return dict(json.loads(text))


def test_line_has_time_level_logger_message_and_worker() -> None:
    line = line_of(record("shard %d\nof %s", 3, "ü"))

    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": "batcher.test",
        "message": "shard 3\nof ü",
        "worker": "w1",
    }


def test_fields_of_a_record_and_of_what_its_thread_is_about_are_its_own() -> None:
    with about(job="tickets", shard=3):
        inside = line_of(record("x", rows=64, tokens=4210, tokens_per_s=512.0, foreign="no"))
        with about(shard=4):
            nested = line_of(record("x", job="other"))
    outside = line_of(record("x"))

    assert (inside["job"], inside["shard"], inside["rows"], inside["tokens"]) == ("tickets", 3, 64, 4210)
    assert "foreign" not in inside
    assert (nested["job"], nested["shard"]) == ("other", 4)
    assert "job" not in outside


def test_traceback_is_a_field() -> None:
    try:
        raise ValueError(f"no {URL}")
    except ValueError:
        line = line_of(record("it failed", exc_info=sys.exc_info()))

    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ValueError" in line["traceback"]
    assert "heim" not in json.dumps(line)


@pytest.mark.parametrize("message", ["at %s", "at '%s'"])
def test_password_is_in_no_line(message: str) -> None:
    assert "heim" not in json.dumps(line_of(record(message, URL)))


SCRIPT = r"""
    import logging, os, subprocess, sys, threading, warnings
    from workers.process.logs import LogFormat, LogStyle, json_stderr, set_up_logging
    with json_stderr() as stream:
        set_up_logging("w1", LogStyle(LogFormat.JSON), broker_url="", stream=stream)
        logging.getLogger("batcher.x").info("ours")
        logging.getLogger("celery.x").warning("Celery's")
        logging.getLogger("uvicorn.x").info("too little to be said")
        print("Error: as commands end", file=sys.stderr)
        os.write(2, b"of a library in C\n\n")
        subprocess.run(["sh", "-c", "echo '{\"time\": 1, \"level\": 2, \"message\": \"a child logs so\"}' >&2"])
        os.write(2, b'{"message": "of another program"}\n')
        warnings.warn("deprecated")
        thread = threading.Thread(target=lambda: 1 / 0, name="worker-thread")
        thread.start()
        thread.join()
    os.write(2, b"raw again\n")
"""


def test_all_that_comes_to_stderr_is_a_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=60, check=True
    )

    *lines, last = done.stderr.splitlines()
    assert last == "raw again"
    found = {line["message"].partition("\n")[0]: line for line in map(json.loads, lines)}
    assert found["ours"]["level"] == "INFO"
    assert found["Celery's"]["logger"] == "celery.x"
    assert "too little to be said" not in found
    assert found["Error: as commands end"]["level"] == "ERROR"
    assert found["of a library in C"]["logger"] == "batcher.stderr"
    assert found["a child logs so"] == {"time": 1, "level": 2, "message": "a child logs so"}
    assert found['{"message": "of another program"}']["logger"] == "batcher.stderr"
    assert any("deprecated" in message for message in found)
    (died,) = [line for line in found.values() if "worker-thread" in line["message"]]
    assert "ZeroDivisionError" in died["traceback"]
