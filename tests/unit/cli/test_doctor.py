"""The checks of a machine, one by one: each finds what it is there for, and says what to do.

Those of a broken machine as a whole, with real servers, mounts and clocks, are in tests/faults/test_doctor.py.
"""

import errno
import os
import re
import socket
import socketserver
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest

import batcher
from batcher.broker.client import connect
from batcher.broker.embedded import embedded_broker
from batcher.cli import doctor
from batcher.cli.doctor import Check, Level
from batcher.cli.doctor import broker as broker_checks
from batcher.cli.doctor import jobs_folder as folder_checks
from batcher.cli.doctor import models as model_checks
from batcher.cli.doctor import software as software_checks
from batcher.installation import install_extras
from batcher.jobdir.heartbeats import WorkerHeartbeat, heartbeat_path, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.machine import Memory
from batcher.model_files import ModelRef
from batcher.types import EngineConfig
from tests.support.tiny_gguf import Shape, write_tiny_gguf
from workers.engines.llama import loader
from workers.engines.llama.model import Model

GIB = 2**30


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_every_finding_but_ok_has_a_remedy(tmp_path: Path) -> None:
    checks = list(
        doctor.run_checks(
            jobs_dir=tmp_path,
            broker="redis://127.0.0.1:1/0",
            models=[],
            wishes=EngineConfig(),
            is_one_worker=False,
        )
    )

    assert {check.level for check in checks} == {Level.OK, Level.WARN, Level.FAIL}
    assert [check for check in checks if (check.level is Level.OK) != (check.remedy == "")] == []


# -- software -----------------------------------------------------------------------------------------------------


def test_declared_packages_are_checked_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["celery>=5.7", "redis>=999", "no-such-thing-here", "numpy>=999; extra == 'worker'", "x; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: declared)

    checks = by_name(software_checks.check_packages())

    assert {name: check.level for name, check in checks.items()} == {
        "python": Level.OK,
        "celery": Level.OK,
        "redis": Level.FAIL,
        "no-such-thing-here": Level.FAIL,
        "numpy": Level.FAIL,
    }
    assert checks["redis"].remedy.endswith(" -m pip install 'redis>=999'")


@pytest.mark.parametrize(
    ("script", "message", "remedy"),
    [
        ("import os; os.kill(os.getpid(), 4)", "died of signal SIGILL", "rebuild llama-cpp-python"),
        ("import no_such_library", "No module named 'no_such_library'", re.escape(install_extras("worker"))),
        ("import time; time.sleep(60)", "not loaded after 0 s", "check the disk"),
    ],
)
def test_library_that_does_not_load_is_told_apart_from_one_that_kills(
    monkeypatch: pytest.MonkeyPatch, script: str, message: str, remedy: str
) -> None:
    monkeypatch.setattr(software_checks, "_PROBE_LLAMA", script)
    if "sleep" in script:
        monkeypatch.setattr(software_checks, "IMPORT_TIMEOUT_S", 0.2)

    check = software_checks.check_llama()

    assert check.level is (Level.WARN if "sleep" in script else Level.FAIL)
    assert message in check.message
    assert re.search(remedy, check.remedy)


def test_build_for_gpus_that_sees_none_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "_PROBE_LLAMA", 'print(\'["0.3", false, ["cuda"]]\')')

    check = software_checks.check_llama()

    assert check.level is Level.WARN
    assert "built for GPUs (cuda), but sees none" in check.message
    assert "--gpu-layers 0" in check.remedy


# -- jobs folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_file_system_without_hard_links_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(source: Path, target: Path) -> None:
        # As the real one does, with both names.
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refuse)

    (check,) = folder_checks.check_jobs_dir(tmp_path / "new" / "jobs")

    assert check.level is Level.FAIL
    assert os.strerror(number) in check.message
    assert "hard links" in check.remedy
    assert list(tmp_path.iterdir()) == []


def test_file_system_whose_link_replaces_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda source, target: Path(target).write_bytes(Path(source).read_bytes()))

    (check,) = folder_checks.check_jobs_dir(tmp_path)

    assert (check.level, check.message) == (Level.FAIL, f"{tmp_path}: creating a file that exists does not fail")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EROFS, "mount -o remount,rw"),
        (errno.EACCES, "install -d"),
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "give a folder you may write to"),
    ],
)
def test_remedy_fits_the_reason_why_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)

    (check,) = folder_checks.check_jobs_dir(tmp_path)

    assert check.level is Level.FAIL
    assert check.message.startswith(str(tmp_path))
    assert os.strerror(number) in check.message
    assert remedy in check.remedy


def test_disk_that_is_almost_full_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_checks, "LOW_DISK", 1 << 60)

    checks = by_name(folder_checks.check_jobs_dir(tmp_path))

    assert {name: check.level for name, check in checks.items()} == {
        "jobs folder": Level.OK,
        "disk": Level.WARN,
        "jobs folder clock": Level.OK,
    }
    assert list(tmp_path.iterdir()) == []


def beat(folder: Path, name: str, version: str) -> None:
    now = datetime.now(UTC)
    state, models = WorkerState.IDLE, ("tiny",)
    write_heartbeat(folder, WorkerHeartbeat(name, f"host-of-{name}", 1, version, models, now, now, state, 5.0))


@pytest.mark.parametrize(("state", "is_loaded"), [(WorkerState.IDLE, True), (WorkerState.LOADING, False)])
def test_model_of_a_worker_of_this_machine_is_in_memory_already(
    tmp_path: Path, state: WorkerState, is_loaded: bool
) -> None:
    now = datetime.now(UTC)
    here = WorkerHeartbeat("w0", socket.gethostname(), 1, "0.9.0", ("tiny",), now, now, state, 5.0)
    write_heartbeat(tmp_path, here)
    beat(tmp_path, "w1", "0.9.0")  # of another machine

    assert folder_checks.loaded_models(tmp_path) == ({"tiny": "w0"} if is_loaded else {})


def test_memory_is_not_asked_for_twice(tiny: ModelRef) -> None:
    model = tiny

    (_, memory) = model_checks.check_models([model], EngineConfig(num_slots=10**6), is_one_worker=True)
    (_, loaded) = model_checks.check_models(
        [model], EngineConfig(num_slots=10**6), is_one_worker=True, loaded={"tiny": "w0"}
    )

    assert memory.level is Level.FAIL
    assert (loaded.level, loaded.message) == (Level.OK, "the worker w0 of this machine has it loaded")


def test_memory_that_a_worker_may_take_bounds_what_is_there(tiny: ModelRef) -> None:
    (_, usual) = model_checks.check_models([tiny], EngineConfig(), is_one_worker=True)
    (_, small) = model_checks.check_models([tiny], EngineConfig(memory=4 << 20), is_one_worker=True)
    (_, none) = model_checks.check_models([tiny], EngineConfig(memory=1000), is_one_worker=True)

    assert usual.level is Level.OK
    assert small.level is Level.WARN
    assert "of 4.0 MiB available" in small.message
    assert none.level is Level.FAIL
    assert "but --memory has 1,000 bytes for it" in none.message


def test_workers_of_our_version_are_counted(tmp_path: Path) -> None:
    for number, words in enumerate(("none alive", "1 alive", "2 alive")):
        check = folder_checks.check_workers(tmp_path)
        beat(tmp_path, f"w{number}", batcher.__version__)

        assert check.level is Level.OK
        assert words in check.message


def test_workers_of_other_versions_are_named_with_their_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "__version__", "0.9.0")
    for name, version in (("a", "0.9.0"), ("b", "0.10.0"), ("c", "0.10.0"), ("d", "odd")):
        beat(tmp_path, name, version)

    check = folder_checks.check_workers(tmp_path)

    assert check.level is Level.WARN
    assert check.message == (
        f"mixed versions of batcher under {tmp_path}: 0.9.0 here; odd by d on host-of-d; 0.9.0 by a on host-of-a; "
        "0.10.0 by b on host-of-b, c on host-of-c"
    )
    assert check.remedy.startswith("install 0.10.0 everywhere")


def test_workers_that_agree_with_each_other_but_not_with_us_are_a_warning(tmp_path: Path) -> None:
    for number in range(7):
        beat(tmp_path, f"w{number}", "99.0")

    check = folder_checks.check_workers(tmp_path)

    assert check.level is Level.WARN
    assert re.search(
        f"{batcher.__version__} here; 99.0 by w0 on host-of-w0.* w4 on host-of-w4 and 2 more$", check.message
    )


def test_worker_that_is_gone_says_nothing_of_versions(tmp_path: Path) -> None:
    beat(tmp_path, "old", "0.0.1")
    an_hour_ago = datetime.now(UTC).timestamp() - 3600
    os.utime(heartbeat_path(tmp_path, "old"), (an_hour_ago, an_hour_ago))

    assert folder_checks.check_workers(tmp_path).level is Level.OK


# -- broker -------------------------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with embedded_broker(tmp_path) as url:
        yield url


def test_broker_that_keeps_its_queue_is_ok(url: str) -> None:
    checks = by_name(broker_checks.check_broker(url))

    assert list(checks) == ["broker", "broker persistence", "broker memory", "broker writes", "broker clock"]
    assert {check.level for check in checks.values()} == {Level.OK}


def test_broker_that_forbids_questions_is_still_tried(url: str) -> None:
    with connect(url) as client:
        client.acl_setuser("default", enabled=True, nopass=True, commands=["-info", "-time"])

    checks = by_name(broker_checks.check_broker(url))

    assert {name: check.level for name, check in checks.items()} == {"broker": Level.WARN, "broker writes": Level.OK}
    assert "won't tell about itself" in checks["broker"].message


def test_broker_that_can_not_write_its_file_is_a_warning(url: str) -> None:
    with connect(url) as client:
        check = broker_checks._check_persistence(client, {**client.info(), "aof_last_write_status": "err"}, url)

    assert check.level is Level.WARN
    assert "aof_last_write_status err" in check.message


@pytest.fixture
def loading_server() -> Iterator[str]:
    """Answers everything as a server that reads its data."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.request.recv(4096):
                self.request.sendall(b"-LOADING the dataset is read into memory\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()
        thread.join()


def test_broker_that_reads_its_data_is_waited_for(loading_server: str) -> None:
    (check,) = broker_checks.check_broker(loading_server)

    assert check.level is Level.FAIL
    assert "still reads its data" in check.message
    assert check.remedy == "wait until it has"


def test_password_of_a_broker_is_never_shown() -> None:
    checks = list(broker_checks.check_broker("redis://:secret@127.0.0.1:1/0"))

    assert "secret" not in repr(checks)


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("redis://queue:7000/0", "redis-cli -h queue -p 7000"),
        ("redis://queue/0", "redis-cli -h queue -p 6379"),
        ("rediss://user:secret@queue:7000/0", "redis-cli -h queue -p 7000 --tls --askpass"),
        ("redis+socket:///run/redis.sock", "redis-cli -s /run/redis.sock"),
    ],
)
def test_remedy_has_the_command_line_of_this_broker(url: str, command: str) -> None:
    assert broker_checks._redis_cli(url) == command


def test_server_for_runs_is_really_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = broker_checks.check_embedded_broker()
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\nexit 5\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    broken = broker_checks.check_embedded_broker()

    assert sound.level is Level.OK
    assert broken.level is Level.WARN
    assert f"{server} did not start (exit code 5)" in broken.message
    assert "--broker URL" in broken.remedy


# -- models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return ModelRef("tiny", write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", shape=Shape(hidden=96)))


def check_memory(tiny: ModelRef, wishes: EngineConfig) -> Check:
    return by_name(model_checks.check_models([tiny], wishes, is_one_worker=True))["memory for tiny"]


def test_outline_is_what_a_worker_finds_when_it_loads_the_model(tiny: ModelRef) -> None:
    outline = model_checks._outline(tiny.path)
    model = Model(tiny.path, num_gpu_layers=0)

    assert outline is not None
    assert (outline.num_bytes, outline.description) == (model.num_bytes, model.description)
    assert (outline.token_bytes, outline.state_bytes) == (model.cache_need.token, model.cache_need.state)
    model.close()


@pytest.mark.parametrize("free", [10**5, 10**7, 4 * 10**7, 10**9])
def test_slots_are_reckoned_as_a_worker_does(tiny: ModelRef, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    outline = model_checks._outline(tiny.path)
    assert outline is not None
    # The worker asks once the weights are loaded.
    monkeypatch.setattr(loader, "available_memory", lambda *, on_gpu: free)
    model = Model(tiny.path, num_gpu_layers=0)
    for wishes in (EngineConfig(), EngineConfig(context_length=4000), EngineConfig(num_slots=7)):
        config = EngineConfig(num_slots=wishes.num_slots, context_length=wishes.context_length)
        settings = loader.choose(model, config)

        need = model_checks._reckon(outline, wishes, Memory(GIB, free + outline.num_bytes))

        assert (need.num_slots, need.context_length) == (settings.num_slots.value, settings.context_length.value)
    model.close()


def test_none_known_is_a_warning() -> None:
    (check,) = model_checks.check_models([], EngineConfig(), is_one_worker=False)

    assert check.level is Level.WARN


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", "llama.cpp ended with signal SIGABRT"),
        ("import time; time.sleep(60)", "could not be read within"),
    ],
)
def test_model_that_llama_cpp_does_not_survive_fails(
    tiny: ModelRef, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(model_checks, "_OUTLINE_SCRIPT", script)
    if "sleep" in script:
        monkeypatch.setattr(model_checks, "OUTLINE_TIMEOUT_S", 0.2)

    (check,) = model_checks.check_models([tiny], EngineConfig(), is_one_worker=True)

    assert check.level is Level.FAIL
    assert message in check.message


def test_without_llama_cpp_the_first_bytes_are_looked_at(
    tiny: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('not on this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    (check,) = model_checks.check_models([tiny], EngineConfig(), is_one_worker=True)

    assert check.level is Level.OK
    assert "begins as a GGUF file" in check.message


@pytest.mark.parametrize(
    ("memory", "wishes", "level", "message", "remedy"),
    [
        (Memory(GIB, GIB), EngineConfig(), Level.OK, "KV cache of 32 slots x 512 tokens 8.0 MiB", ""),
        (Memory(GIB, 10 * 2**20), EngineConfig(), Level.WARN, "room for 19 slots instead of 32", "smaller --ctx"),
        (Memory(GIB, 2**19), EngineConfig(), Level.WARN, "512.0 KiB|524,288 bytes are available now", "quantization"),
        (Memory(2**19, 2**19), EngineConfig(), Level.FAIL, "has 524,288 bytes for it", "quantization"),
        (Memory(GIB, 2**24), EngineConfig(200), Level.WARN, "16.0 MiB are available now", "use --slots 62, or use"),
        (Memory(2**25, 2**24), EngineConfig(200), Level.FAIL, "has 32.0 MiB for it", "use --slots 62, or use"),
        (
            Memory(GIB, GIB),
            EngineConfig(num_slots=200, context_length=1000),
            Level.OK,
            "KV cache of 200 slots x 1,000 tokens",
            "",
        ),
        (Memory(GIB, GIB), EngineConfig(1), Level.OK, "KV cache of 1 slot x 512 tokens", ""),
    ],
)
def test_memory_is_set_against_weights_and_slots(
    tiny: ModelRef,
    monkeypatch: pytest.MonkeyPatch,
    memory: Memory,
    wishes: EngineConfig,
    level: Level,
    message: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(model_checks, "read_memory", lambda: memory)

    check = check_memory(tiny, wishes)

    assert check.level is level, check
    assert re.search(message, check.message), check
    assert remedy in check.remedy


def test_models_of_one_worker_share_the_memory(tiny: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "read_memory", lambda: Memory(2**24, 2**24))
    models = [tiny, ModelRef("again", tiny.path)]
    wishes = EngineConfig(num_slots=40)

    alone = by_name(model_checks.check_models(models, wishes, is_one_worker=False))
    together = by_name(model_checks.check_models(models, wishes, is_one_worker=True))

    assert {check.level for check in alone.values()} == {Level.OK}
    assert together["memory for tiny"].level is Level.OK
    assert together["memory for again"].level is Level.FAIL


@pytest.mark.parametrize(("gpu_layers", "is_checked"), [(None, False), (10, False), (0, True)])
def test_memory_of_a_gpu_is_not_judged_by_the_machines(
    tiny: ModelRef, monkeypatch: pytest.MonkeyPatch, gpu_layers: int | None, is_checked: bool
) -> None:
    outline = model_checks._Outline("llama", 2 * GIB, 512, 0, 512, 32, 0.5, has_gpu=True)
    monkeypatch.setattr(model_checks, "_outline", lambda path: outline)
    monkeypatch.setattr(model_checks, "read_memory", lambda: Memory(GIB, GIB))

    check = check_memory(tiny, EngineConfig(num_gpu_layers=gpu_layers))

    assert (check.level is Level.FAIL) == is_checked
