"""`batcher doctor` on machines that are really broken: it names what is wrong, with its value and the remedy."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

import batcher
from batcher.broker.client import connect
from tests.faults.conftest import Prefix
from tests.support.family import Family, start_worker, wait_until_ready
from tests.support.redis_server import RedisServer
from tests.support.wall_clock import WallClock

#: Seconds in which doctor must have found that a broker hangs, and ended.
HANG_LIMIT_S = 15.0

#: Numbers of the system calls that make a hard link: `link`, where there is one, and `linkat`.
_LINK_CALLS = {"x86_64": (86, 265), "aarch64": (37,)}

# The kernel refuses these calls with EPERM, as it does on file systems without hard links, to the command that follows
# and its children. See seccomp(2): load the number of the call; where it equals one of ours jump to the refusal.
_WITHOUT_LINKS = textwrap.dedent("""
    import ctypes, os, struct, sys
    calls = [int(number) for number in sys.argv[1].split(",")]
    load, equals, give, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | 1
    steps = [(load, 0, 0, 0)]
    steps += [(equals, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    steps += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if prctl(no_new_privileges, 1, 0, 0, 0) or prctl(set_seccomp, filter_mode, ctypes.addressof(program), 0, 0):
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[2], sys.argv[2:])
""")


@dataclass(frozen=True)
class Finding:
    """A line of `doctor --json`."""

    name: str
    level: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """What doctor said, and how it ended."""

    code: int
    findings: Mapping[str, Finding]

    def bad(self) -> dict[str, str]:
        """The levels of those that are not ok."""
        return {finding.name: finding.level for finding in self.findings.values() if finding.level != "ok"}


#: Runs `batcher doctor` with these options, in the test's folder and on its jobs root.
Doctor = Callable[..., Report]


@pytest.fixture
def doctor(family: Family, model: Path) -> Doctor:
    def run(
        *options: object,
        broker: str | None = None,
        models: Sequence[Path] = (model,),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[object] = (),
    ) -> Report:
        (family.folder / "jobs").mkdir(exist_ok=True)
        chosen = [word for path in models for word in ("--model", path)]
        command = family.run(
            *("doctor", "--json", "--jobs-dir", family.folder / "jobs", *chosen, *options),
            # A password would be refused on the command line.
            env={**({"BATCHER_BROKER": broker} if broker else {}), **(env or {})},
            prefix=prefix,
        )
        assert command.stderr == ""
        findings = [Finding(**json.loads(line)) for line in command.stdout.splitlines()]
        assert all(finding.remedy for finding in findings if finding.level != "ok")
        return Report(command.wait(), {finding.name: finding for finding in findings})

    return run


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """Of a server that keeps what it is given."""
    client = connect(redis_server.url)
    client.config_set("appendonly", "yes")
    yield client
    client.close()


def skip_unless_possible(prefix: Prefix) -> Prefix:
    """Skips the test where this user may not do what the prefix does."""
    tried = subprocess.run([*map(str, prefix), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"not possible for this user: {tried.stderr.strip()}")
    return prefix


def test_sound_machine_is_found_sound(
    doctor: Doctor, client: redis.Redis, redis_url: str, family: Family, model: Path
) -> None:
    worker = start_worker(family, redis_url, model, "w1")
    wait_until_ready(worker)

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (0, {})
    assert f"1 alive under {family.folder / 'jobs'}" in report.findings["workers"].message
    assert client.keys("batcher:doctor*") == []
    assert [path.name for path in (family.folder / "jobs").iterdir()] == [".workers"]


# -- broker -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "name", "message", "remedy"),
    [
        (
            {"maxmemory-policy": "allkeys-lru", "maxmemory": "100mb"},
            "broker memory",
            r"maxmemory-policy allkeys-lru with maxmemory 100\.0 MiB: queues and leases may be evicted",
            r"redis-cli -h 127\.0\.0\.1 -p \d+ CONFIG SET maxmemory-policy noeviction",
        ),
        (
            {"maxmemory-policy": "volatile-ttl"},
            "broker memory",
            r"maxmemory-policy volatile-ttl with no maxmemory: .* are evicted once it has one",
            r"CONFIG SET maxmemory-policy noeviction",
        ),
        (
            {"appendonly": "no", "save": ""},
            "broker persistence",
            r"appendonly is off and save is empty: a restart forgets all queued shards",
            r"redis-cli -h 127\.0\.0\.1 -p \d+ CONFIG SET appendonly yes",
        ),
        (
            {"appendonly": "no", "save": "3600 1 300 100"},
            "broker persistence",
            r"only snapshots are taken \(save 3600 1 300 100\)",
            r"CONFIG SET appendonly yes",
        ),
    ],
)
def test_broker_that_may_lose_its_queue_is_a_warning(
    doctor: Doctor,
    client: redis.Redis,
    redis_url: str,
    settings: dict[str, str],
    name: str,
    message: str,
    remedy: str,
) -> None:
    for key, value in settings.items():
        client.config_set(key, value)

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (0, {name: "warn"})
    assert re.search(message, report.findings[name].message)
    assert re.search(remedy, report.findings[name].remedy)


def test_following_the_remedies_mends_the_broker(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    for key, value in (("maxmemory-policy", "allkeys-lru"), ("maxmemory", "100mb"), ("appendonly", "no")):
        client.config_set(key, value)
    broken = doctor(broker=redis_url)
    for finding in broken.findings.values():
        if finding.level == "warn":
            words = finding.remedy.partition(",")[0].split()
            assert words[:1] == ["redis-cli"]
            client.config_set(*words[words.index("SET") + 1 :])

    mended = doctor(broker=redis_url)

    assert broken.bad() == {"broker persistence": "warn", "broker memory": "warn"}
    assert mended.bad() == {}


def test_broker_that_is_nearly_full_is_a_warning(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    # Far more than connections take, of which some come and go, and in small pieces: a large one is counted twice while
    # the connection's buffer holds it.
    for number in range(500):
        client.set(f"others:{number}", b"x" * 100_000)
    used = client.info()["used_memory"]
    client.config_set("maxmemory", int(used * 1.05))

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (0, {"broker memory": "warn"})
    assert re.search(r"[\d.]+ MiB of maxmemory [\d.]+ MiB are used", report.findings["broker memory"].message)
    assert "CONFIG SET maxmemory" in report.findings["broker memory"].remedy


def test_broker_that_is_full_fails(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    client.set("others", b"x" * 1_000_000)
    client.config_set("maxmemory", 1_000_000)

    report = doctor(broker=redis_url)

    assert report.code == 1
    assert report.bad() == {"broker memory": "warn", "broker writes": "fail"}
    assert "maxmemory" in report.findings["broker writes"].message
    assert "CONFIG SET maxmemory" in report.findings["broker writes"].remedy


def test_broker_that_is_a_replica_fails(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    client.replicaof("127.0.0.1", "1")

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (1, {"broker writes": "fail"})
    assert "read only" in report.findings["broker writes"].message
    assert "primary" in report.findings["broker writes"].remedy


@pytest.mark.parametrize("rules", [["batcher:*", "+@all", "-@scripting"], ["other:*", "+@all"]])
def test_broker_whose_user_may_not_do_what_we_do_fails(
    doctor: Doctor, client: redis.Redis, redis_url: str, rules: list[str]
) -> None:
    keys, *commands = rules
    client.acl_setuser("poor", enabled=True, passwords=["+secret"], keys=[keys], commands=commands)

    report = doctor(broker=redis_url.replace("//", "//poor:secret@"))

    assert (report.code, report.bad()) == (1, {"broker writes": "fail"})
    assert "permission" in report.findings["broker writes"].message
    assert "ACL" in report.findings["broker writes"].remedy


def test_broker_whose_user_may_do_no_more_than_we_need_is_ok(
    doctor: Doctor, client: redis.Redis, redis_url: str
) -> None:
    categories = ["-@all", "+@read", "+@write", "+@transaction", "+@connection", "-@dangerous"]
    commands = [*categories, "+evalsha", "+script|load", "+info", "+time"]
    client.acl_setuser("least", enabled=True, passwords=["+secret"], keys=["batcher:*"], commands=commands)

    report = doctor(broker=redis_url.replace("//", "//least:secret@"))

    assert (report.code, report.bad()) == (0, {})


@pytest.mark.parametrize("login", ["", ":wr0ng@"])
def test_broker_with_another_password_fails(doctor: Doctor, client: redis.Redis, redis_url: str, login: str) -> None:
    client.config_set("requirepass", "right")

    report = doctor(broker=redis_url.replace("//", f"//{login}"))

    assert (report.code, report.bad()) == (1, {"broker": "fail"})
    assert "wrong or missing password" in report.findings["broker"].message
    assert "redis://:PASSWORD@" in report.findings["broker"].remedy
    assert "wr0ng" not in repr(report)


def test_broker_that_is_gone_fails(doctor: Doctor, redis_server: RedisServer) -> None:
    redis_server.kill()

    report = doctor(broker=redis_server.url)

    assert (report.code, report.bad()) == (1, {"broker": "fail"})
    assert redis_server.url in report.findings["broker"].message
    assert "Connection refused" in report.findings["broker"].message


def test_broker_that_hangs_is_found_within_15_seconds(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    pid = client.info()["process_id"]
    os.kill(pid, signal.SIGSTOP)
    started_at = time.monotonic()

    report = doctor(broker=redis_url)

    assert time.monotonic() - started_at < HANG_LIMIT_S
    assert (report.code, report.bad()) == (1, {"broker": "fail"})
    assert f"{redis_url}: no answer within 5 s" in report.findings["broker"].message
    assert "stopped" in report.findings["broker"].remedy
    os.kill(pid, signal.SIGCONT)


def test_address_where_something_else_answers_fails(doctor: Doctor, family: Family) -> None:
    # It reads on, and never says a word of the protocol.
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", family.folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        found = re.search(r"port (\d+)", server.stdout.readline())
        assert found is not None
        try:
            report = doctor(broker=f"redis://127.0.0.1:{found[1]}/0")
        finally:
            server.kill()

    assert (report.code, report.bad()) == (1, {"broker": "fail"})


# -- jobs folder --------------------------------------------------------------------------------------------------


def test_jobs_folder_that_is_mounted_read_only_fails(doctor: Doctor, family: Family) -> None:
    # In a mount namespace of its own, which ends with the command.
    jobs = family.folder / "jobs"
    jobs.mkdir()
    mount = f'mount -t tmpfs -o ro tmpfs {jobs} && exec "$@"'
    prefix = skip_unless_possible(("unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"))

    report = doctor(prefix=prefix)

    assert (report.code, report.bad()) == (1, {"jobs folder": "fail"})
    assert report.findings["jobs folder"].message == f"{jobs}: cannot write: Read-only file system"
    assert "mount -o remount,rw" in report.findings["jobs folder"].remedy


def test_jobs_folder_of_another_fails(doctor: Doctor, family: Family) -> None:
    jobs = family.folder / "jobs"
    jobs.mkdir()
    jobs.chmod(0o555)
    # Root may write everywhere, unless that is taken from it.
    prefix: Prefix = ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ()

    report = doctor(prefix=skip_unless_possible(prefix) if prefix else ())

    assert (report.code, report.bad()) == (1, {"jobs folder": "fail"})
    assert "Permission denied" in report.findings["jobs folder"].message
    assert "chown" in report.findings["jobs folder"].remedy


def test_jobs_folder_that_is_full_fails(doctor: Doctor, family: Family) -> None:
    jobs = family.folder / "jobs"
    jobs.mkdir()
    # One inode, which is that of the folder.
    mount = f'mount -t tmpfs -o nr_inodes=1 tmpfs {jobs} && exec "$@"'
    prefix = skip_unless_possible(("unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"))

    report = doctor(prefix=prefix)

    assert (report.code, report.bad()) == (1, {"jobs folder": "fail"})
    assert "No space left on device" in report.findings["jobs folder"].message
    assert "inodes" in report.findings["jobs folder"].remedy


@pytest.mark.skipif(platform.machine() not in _LINK_CALLS, reason="system calls of this processor are not known here")
def test_jobs_folder_without_hard_links_fails(doctor: Doctor, family: Family) -> None:
    calls = ",".join(map(str, _LINK_CALLS[platform.machine()]))
    prefix = skip_unless_possible((sys.executable, "-c", _WITHOUT_LINKS, calls))

    report = doctor(prefix=prefix)

    assert (report.code, report.bad()) == (1, {"jobs folder": "fail"})
    assert "Operation not permitted" in report.findings["jobs folder"].message
    assert "hard links" in report.findings["jobs folder"].remedy
    assert list((family.folder / "jobs").iterdir()) == []


# -- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "skew"), [("+60s", r"(59\.\d|60\.[0-4]) s behind"), ("-1d", r"86,(399\.\d|400\.[0-4]) s ahead of")]
)
def test_clock_that_is_off_is_a_warning(
    doctor: Doctor, client: redis.Redis, redis_url: str, clock: WallClock, offset: str, skew: str
) -> None:
    clock.set(offset)

    report = doctor(broker=redis_url, env=clock.env)

    assert (report.code, report.bad()) == (0, {"broker clock": "warn", "jobs folder clock": "warn"})
    for name in report.bad():
        assert re.search(rf"{skew} this machine's", report.findings[name].message)
        assert "NTP" in report.findings[name].remedy


# -- models -------------------------------------------------------------------------------------------------------


def test_models_that_are_missing_or_broken_are_named(doctor: Doctor, family: Family, model: Path) -> None:
    whole = model.read_bytes()
    contents = {
        "magic": b"GGML" + whole[4:],
        "version": whole[:4] + (99).to_bytes(4, "little") + whole[8:],
        "header": whole[:3000],
        "weights": whole[:-1000],
        "empty": b"",
    }
    paths = {name: family.folder / f"{name}.gguf" for name in contents}
    for name, content in contents.items():
        paths[name].write_bytes(content)
    missing = family.folder / "missing.gguf"

    report = doctor(models=[model, missing, *paths.values()])

    assert report.code == 1
    assert {name.removeprefix("model ") for name in report.bad()} == {
        *("version", "header", "weights"),
        # Named as they were given.
        *map(str, (missing, paths["magic"], paths["empty"])),
    }
    assert set(report.bad().values()) == {"fail"}
    messages = {name.removeprefix("model "): finding.message for name, finding in report.findings.items()}
    assert f"{missing}: no such model file" in messages[str(missing)]
    assert "does not begin with 'GGUF'" in messages[str(paths["magic"])]
    assert re.search(rf"{paths['version']}: [\d,]+ bytes, .*version 99", messages["version"])
    assert "failed to read" in messages["header"]
    assert "not within the file bounds, model is corrupted or incomplete" in messages["weights"]
    assert report.findings["model tiny"].level == "ok"


def test_slots_that_a_containers_memory_has_no_room_for_fail(
    doctor: Doctor, memory_limit: Callable[[int], Prefix]
) -> None:
    wishes = ("--slots", 256, "--ctx", 8192)

    free, limited = doctor(*wishes), doctor(*wishes, prefix=memory_limit(500 * 2**20))

    assert (free.code, free.bad()) == (0, {})
    assert (limited.code, limited.bad()) == (1, {"memory for tiny": "fail"})
    assert re.search(r"of 500\.0 MiB memory available", limited.findings["machine"].message)
    assert re.search(
        r"takes 1\.0 GiB .*256 slots x 8,192 tokens.* has 500\.0 MiB for it",
        limited.findings["memory for tiny"].message,
    )
    found = re.search(r"use --slots (\d+)", limited.findings["memory for tiny"].remedy)
    assert found is not None
    assert 0 < int(found[1]) < 256


# -- workers ------------------------------------------------------------------------------------------------------


def test_worker_of_another_version_is_named(
    doctor: Doctor, client: redis.Redis, redis_url: str, family: Family, model: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "sitecustomize.py").write_text("import batcher; batcher.__version__ = '0.0.9'")
    workers = [
        start_worker(family, redis_url, model, "new-one"),
        start_worker(family, redis_url, model, "old-one", env={"PYTHONPATH": str(old)}),
    ]
    wait_until_ready(*workers)

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (0, {"workers": "warn"})
    message, host = report.findings["workers"].message, platform.node()
    assert f"{batcher.__version__} here; 0.0.9 by old-one on {host}; {batcher.__version__} by new-one on" in message
    assert f"install {batcher.__version__} everywhere" in report.findings["workers"].remedy
