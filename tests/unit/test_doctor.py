"""The checks of a machine: each finds what it is there for, and says what to do."""

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from batcher import doctor
from batcher.broker import connect, embedded_broker
from batcher.doctor import Check, Level
from batcher.models import ModelRef


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_every_finding_but_ok_has_a_remedy(tmp_path: Path) -> None:
    checks = list(doctor.run_checks(jobs_dir=tmp_path, broker="redis://127.0.0.1:1/0", models=[]))

    assert {check.level for check in checks} == {Level.OK, Level.WARN, Level.FAIL}
    assert [check for check in checks if (check.level is Level.OK) != (check.remedy == "")] == []


def test_declared_packages_are_checked_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["celery>=5.7", "redis>=999", "no-such-thing-here", "numpy>=999; extra == 'worker'", "x; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: declared)

    checks = by_name(doctor.check_packages())

    assert {name: check.level for name, check in checks.items()} == {
        "python": Level.OK,
        "celery": Level.OK,
        "redis": Level.FAIL,
        "no-such-thing-here": Level.FAIL,
        "numpy": Level.WARN,  # this machine can still submit
    }
    assert checks["redis"].remedy == "pip install 'redis>=999'"


@pytest.mark.parametrize(
    ("script", "message", "remedy"),
    [
        ("import os; os.kill(os.getpid(), 4)", "died of SIGILL", "rebuild llama-cpp-python"),
        ("import no_such_library", "No module named 'no_such_library'", "pip install 'batcher\\[worker\\]'"),
        ("import time; time.sleep(60)", "not loaded after 0 s", "check the disk"),
    ],
)
def test_library_that_does_not_load_is_told_apart_from_one_that_kills(
    monkeypatch: pytest.MonkeyPatch, script: str, message: str, remedy: str
) -> None:
    monkeypatch.setattr(doctor, "_PROBE_LLAMA", script)
    if "sleep" in script:
        monkeypatch.setattr(doctor, "IMPORT_TIMEOUT_S", 0.2)

    check = doctor.check_llama()

    assert check.level is Level.WARN
    assert message in check.message
    assert re.search(remedy, check.remedy)


def test_file_system_without_hard_links_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)

    (check,) = doctor.check_jobs_dir(tmp_path / "new" / "jobs")

    assert check.level is Level.FAIL
    assert "Operation not permitted" in check.message
    assert "hard links" in check.remedy
    assert list(tmp_path.iterdir()) == []


def test_file_system_whose_link_replaces_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()))

    (check,) = doctor.check_jobs_dir(tmp_path)

    assert (check.level, check.message) == (Level.FAIL, f"{tmp_path}: creating a file that exists does not fail")


def test_disk_that_is_almost_full_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 60)

    checks = by_name(doctor.check_jobs_dir(tmp_path))

    assert (checks["jobs folder"].level, checks["disk"].level) == (Level.OK, Level.WARN)
    assert list(tmp_path.iterdir()) == []


def test_broker_that_keeps_its_queue_is_ok_and_one_that_may_not_is_a_warning(tmp_path: Path) -> None:
    with embedded_broker(tmp_path) as url:
        safe = by_name(doctor.check_broker(url))
        client = connect(url)
        client.config_set("appendonly", "no")
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", "100mb")
        client.close()
        unsafe = by_name(doctor.check_broker(url))

    assert {check.level for check in safe.values()} == {Level.OK}
    assert set(safe) == {"broker", "broker persistence", "broker memory", "clock"}
    assert {name for name, check in unsafe.items() if check.level is Level.WARN} == {
        "broker persistence",
        "broker memory",
    }
    assert "CONFIG SET maxmemory-policy noeviction" in unsafe["broker memory"].remedy


def test_broker_that_forbids_questions_is_a_warning(tmp_path: Path) -> None:
    with embedded_broker(tmp_path) as url:
        client = connect(url)
        client.acl_setuser("default", enabled=True, nopass=True, commands=["-info"])
        client.close()
        (check,) = doctor.check_broker(url)

    assert check.level is Level.WARN
    assert "won't tell about itself" in check.message


def test_clock_that_is_off_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)

    with embedded_broker(tmp_path) as url:
        check = by_name(doctor.check_broker(url))["clock"]

    assert check.level is Level.WARN
    assert "60.0 s behind" in check.message or "59.9 s behind" in check.message


def test_password_of_a_broker_is_never_shown() -> None:
    checks = list(doctor.check_broker("redis://:secret@127.0.0.1:1/0"))

    assert "secret" not in repr(checks)


def test_models_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.gguf").write_bytes(b"GGUF" + b"\0" * 1000)
    (tmp_path / "bad.gguf").write_bytes(b"nope")
    refs = [ModelRef(name, tmp_path / f"{name}.gguf") for name in ("good", "bad", "gone")]

    levels = [check.level for check in doctor.check_models(refs)]
    monkeypatch.setattr(doctor, "available_memory", lambda: 500)
    (tight,) = doctor.check_models(refs[:1])
    (none,) = doctor.check_models([])

    assert levels == [Level.OK, Level.FAIL, Level.FAIL]
    assert tight.level is Level.WARN
    assert "more than the memory available" in tight.message
    assert none.level is Level.WARN


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_known_on_linux() -> None:
    memory = doctor.available_memory()

    assert memory is not None
    assert 0 < memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
