"""`batcher doctor` on machines that are really broken: it names what is wrong, with its value and the remedy."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from batcher.broker.client import connect
from batcher.cli.doctor import Check
from tests.faults.conftest import Prefix
from tests.support.family import Family, start_worker, wait_until_ready
from tests.support.redis_server import RedisServer
from tests.support.wall_clock import WallClock

#: Seconds that doctor may take longer than it does with a sound broker to find that one hangs, and end.
HANG_LIMIT_S = 10.0

#: Name, message and remedy where the broker's user may not do what we do, and where its password is another.
FORBIDDEN = ("broker writes", "permission", "ACL")
LOCKED = ("broker", "wrong or missing password", "redis://:PASSWORD@")


@dataclass(frozen=True)
class Report:
    """What `doctor --json` said, and how it ended."""

    code: int
    findings: Mapping[str, Check]

    def bad(self) -> dict[str, str]:
        """The levels of those that are not ok."""
        return {finding.name: finding.level for finding in self.findings.values() if finding.level != "ok"}

    def says(self, name: str, message: str, remedy: str = "") -> None:
        """Assert that these patterns are in what it says of `name`."""
        assert re.search(message, self.findings[name].message)
        assert re.search(remedy, self.findings[name].remedy)


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
        findings = [Check(**json.loads(line)) for line in command.stdout.splitlines()]
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


def test_sound_machine_is_found_sound(
    doctor: Doctor, client: redis.Redis, redis_url: str, family: Family, model: Path
) -> None:
    worker = start_worker(family, redis_url, model, "w1")
    wait_until_ready(worker)

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (0, {})
    assert f"1 alive under {family.folder / 'jobs'}" in report.findings["workers"].message
    assert client.keys("batcher:doctor*") == []
    assert {path.name for path in (family.folder / "jobs").iterdir()} == {".workers", ".scope"}


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
    report.says(name, message, remedy)


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
    report.says("broker memory", r"[\d.]+ MiB of maxmemory [\d.]+ MiB are used", "CONFIG SET maxmemory")


def test_broker_that_is_full_fails(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    client.set("others", b"x" * 1_000_000)
    client.config_set("maxmemory", 1_000_000)

    report = doctor(broker=redis_url)

    assert (report.code, report.bad()) == (1, {"broker memory": "warn", "broker writes": "fail"})
    report.says("broker writes", "maxmemory", "CONFIG SET maxmemory")


def make_poor(client: redis.Redis, keys: str, *commands: str) -> None:
    client.acl_setuser("poor", enabled=True, passwords=["+secret"], keys=[keys], commands=commands)


@pytest.mark.parametrize(
    ("harm", "login", "name", "message", "remedy"),
    [
        (lambda client: client.replicaof("127.0.0.1", "1"), "", "broker writes", "read only", "primary"),
        (lambda client: make_poor(client, "batcher:*", "+@all", "-@scripting"), "poor:secret@", *FORBIDDEN),
        (lambda client: make_poor(client, "other:*", "+@all"), "poor:secret@", *FORBIDDEN),
        (lambda client: client.config_set("requirepass", "right"), "", *LOCKED),
        (lambda client: client.config_set("requirepass", "right"), ":wr0ng@", *LOCKED),
    ],
    ids=["replica", "no scripts", "other keys", "no password", "wrong password"],
)
def test_broker_that_refuses_what_we_do_fails(
    doctor: Doctor,
    client: redis.Redis,
    redis_url: str,
    harm: Callable[[redis.Redis], object],
    login: str,
    name: str,
    message: str,
    remedy: str,
) -> None:
    harm(client)

    report = doctor(broker=redis_url.replace("//", f"//{login}"))

    assert (report.code, report.bad()) == (1, {name: "fail"})
    report.says(name, message, remedy)
    assert "wr0ng" not in repr(report)


def test_broker_whose_user_may_do_no_more_than_we_need_is_ok(
    doctor: Doctor, client: redis.Redis, redis_url: str
) -> None:
    categories = ["-@all", "+@read", "+@write", "+@transaction", "+@connection", "-@dangerous"]
    commands = [*categories, "+evalsha", "+script|load", "+info", "+time"]
    client.acl_setuser("least", enabled=True, passwords=["+secret"], keys=["batcher:*"], commands=commands)

    report = doctor(broker=redis_url.replace("//", "//least:secret@"))

    assert (report.code, report.bad()) == (0, {})


def test_broker_that_is_gone_fails(doctor: Doctor, redis_server: RedisServer) -> None:
    redis_server.kill()

    report = doctor(broker=redis_server.url)

    assert (report.code, report.bad()) == (1, {"broker": "fail"})
    report.says("broker", f"{redis_server.url}.*Connection refused")


def test_broker_that_hangs_costs_at_most_10_seconds(doctor: Doctor, client: redis.Redis, redis_url: str) -> None:
    pid = client.info()["process_id"]
    started_at = time.monotonic()
    assert doctor(broker=redis_url).code == 0
    sound_s = time.monotonic() - started_at
    os.kill(pid, signal.SIGSTOP)
    started_at = time.monotonic()

    report = doctor(broker=redis_url)

    assert time.monotonic() - started_at - sound_s < HANG_LIMIT_S
    assert (report.code, report.bad()) == (1, {"broker": "fail"})
    report.says("broker", f"{redis_url}: no answer within 5 s", "stopped")
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


def mounting(options: str) -> Callable[[Path], Prefix]:
    """A tmpfs on the folder, in a mount namespace of the command's own, which ends with it."""
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    return lambda jobs: ("unshare", "--mount", "--map-root-user", "sh", "-c", mount, jobs)


def of_another(jobs: Path) -> Prefix:
    jobs.chmod(0o555)
    # Root may write everywhere, unless that is taken from it.
    return ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ("env",)


@pytest.mark.parametrize(
    ("harm", "reason", "remedy"),
    [
        (mounting("ro"), "cannot write: Read-only file system$", "mount -o remount,rw"),
        # One inode, which is that of the folder.
        (mounting("nr_inodes=1"), "No space left on device", "inodes"),
        (of_another, "Permission denied", "is of user .*, mode 555.*as its owner"),
    ],
    ids=["mounted read-only", "full", "of another"],
)
def test_jobs_folder_that_can_not_be_written_fails(
    doctor: Doctor, family: Family, harm: Callable[[Path], Prefix], reason: str, remedy: str
) -> None:
    jobs = family.folder / "jobs"
    jobs.mkdir()
    prefix = harm(jobs)
    tried = subprocess.run([*map(str, prefix), "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"not possible for this user: {tried.stderr.strip()}")

    report = doctor(prefix=prefix)

    assert (report.code, report.bad()) == (1, {"jobs folder": "fail"})
    report.says("jobs folder", f"^{jobs}: .*{reason}", remedy)


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
        report.says(name, f"{skew} this machine's", "NTP")


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
    limited.says("machine", r"of 500\.0 MiB memory available")
    limited.says("memory for tiny", r"takes 1\.0 GiB .*256 slots x 8,192 tokens.* has 500\.0 MiB for it")
    found = re.search(r"use --slots (\d+)", limited.findings["memory for tiny"].remedy)
    assert found is not None
    assert 0 < int(found[1]) < 256
