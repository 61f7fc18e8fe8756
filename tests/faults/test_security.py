"""What a stranger at the broker, a wrong certificate, a link or another model file can't do to real processes."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socketserver
import ssl
import subprocess
import threading
import uuid
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from batcher.broker.client import connect, queue_key
from batcher.broker.messages import RUN_SHARD
from batcher.broker.ping import ping
from batcher.broker.sender import Sender
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.scope import scope_of
from tests.support.family import Command, Family, assert_every_row_once, wait_until_ready, write_prompts
from tests.support.job_files import make_job
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for
from workers.queue.app import make_celery

#: With what a URL must encode, a log might quote, and a shell expand.
PASSWORD, ENCODED = "ge/heim'$;x", "ge%2Fheim%27%24%3Bx"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


class Fleet:
    """Commands that all get the broker by the environment, as a URL with a password must be given."""

    def __init__(self, family: Family, url: str, model: Path) -> None:
        self.family = family
        self.jobs = family.folder / "jobs"
        self._env = {"BATCHER_BROKER": url, "BATCHER_JOBS_DIR": str(self.jobs), "BATCHER_LEASE_TTL": "2"}
        self._model = model

    def submit(self, job_id: str, *, rows: int, shard_rows: int, max_tokens: int) -> JobDir:
        prompts = write_prompts(self.family.folder / f"{job_id}.jsonl", rows)
        command = self.run(
            *("submit", prompts, "--model", "tiny", "--job-id", job_id),
            *("--shard-rows", shard_rows, "--max-tokens", max_tokens),
        )
        assert command.process.returncode == 0, command.stderr
        return JobDir(self.jobs / job_id)

    def run(self, *arguments: object) -> Command:
        return self.family.run(*arguments, env=self._env)

    def start_worker(self, name: str, *options: object) -> Command:
        return self.family.start(
            *("worker", "--model", f"tiny={self._model}", "--threads", 1, "--name", name, *options), env=self._env
        )


# -- the broker's user ------------------------------------------------------------------------------------------------


def allow(admin: redis.Redis, password: str) -> None:
    """Give the server the user that docs/operations.md tells to make."""
    (rule,) = re.findall(r"ACL SETUSER (batcher .*)", OPERATIONS.read_text())
    words = rule.replace("PASSWORD", password).split()
    assert admin.execute_command("ACL", "SETUSER", *words)  # type: ignore[no-untyped-call]


def test_user_that_readme_tells_to_make_may_do_what_a_job_needs_and_no_more(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    url = redis_server.url.replace("redis://", f"redis://batcher:{ENCODED}@")
    with redis_server.client() as admin:
        allow(admin, PASSWORD)
        fleet = Fleet(family, url, model)
        job = fleet.submit("long", rows=120, shard_rows=30, max_tokens=480)

        # Stopped with shards in flight, killed with shards in flight, and completed.
        stopped = fleet.start_worker("stopped")
        wait_for(lambda: admin.keys("batcher:lease:*"), what="a lease")
        os.kill(stopped.pid, signal.SIGTERM)
        assert stopped.wait() == 0
        killed = fleet.start_worker("killed")
        wait_for(lambda: admin.keys("batcher:lease:*"), what="a lease")
        family.kill_all()
        killed.wait()
        fleet.start_worker("last")
        wait_for(lambda: job.is_complete, what="the job is complete")
        refused = admin.acl_log()
        doctor = fleet.run("doctor")

        assert refused == []
        assert_every_row_once(job, 120)
        assert "won't tell" not in doctor.stdout
        assert "FAIL  broker" not in doctor.stdout
        admin.set("other", "application")

    user = connect(url)
    script = user.script_load("return redis.call('GET', 'other')")
    # fmt: off
    for command in (
        ("GET", "other"), ("SET", "other", "x"), ("EVALSHA", script, "0"), ("KEYS", "*"), ("FLUSHALL",), ("SHUTDOWN",),
        ("CONFIG", "GET", "*"), ("CONFIG", "SET", "dir", "/"), ("ACL", "LIST"), ("MONITOR",), ("PUBLISH", "news", "x"),
        ("REPLICAOF", "host", "1"), ("SCRIPT", "FLUSH"), ("CLIENT", "KILL", "ID", "1"),
    ):
        # fmt: on
        with pytest.raises(redis.ResponseError, match=r"(?i)no permission|can't access"):
            user.execute_command(*command)  # type: ignore[no-untyped-call]
    user.close()


def test_password_is_shown_nowhere(family: Family, model: Path, redis_server: RedisServer) -> None:
    url = redis_server.url.replace("redis://", f"redis://batcher:{ENCODED}@")
    (family.folder / "broker").write_text(f"{url}\n")
    (family.folder / "broker").chmod(0o600)
    with redis_server.client() as admin:
        allow(admin, PASSWORD)
    fleet = Fleet(family, url, model)
    job = fleet.submit("job", rows=60, shard_rows=30, max_tokens=480)

    worker = fleet.start_worker("w1", "--broker-file", family.folder / "broker")
    wait_until_ready(worker)
    command_lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in family.pids()]
    # The user is disabled, then the server is away: two ways for the libraries to complain.
    with redis_server.client() as admin:
        admin.acl_setuser("batcher", enabled=False)
        admin.client_kill_filter(user="batcher")
        wait_for(lambda: "wrong or missing password" in worker.stderr, what="the worker is refused")
        redis_server.kill()
    wait_for(lambda: "Connection refused" in worker.stderr, what="the worker finds nobody")
    redis_server.start()
    with redis_server.client() as admin:
        allow(admin, PASSWORD)
    wait_for(lambda: job.is_complete, what="the job is complete")
    for arguments in (["status", "job", "--json"], ["list"], ["doctor"], ["retry", "job"], ["resume", "job"]):
        fleet.run(*arguments)
    refused = family.run("submit", family.folder / "job.jsonl", "--broker", url)

    assert any("workers.child" in line for line in command_lines)
    assert refused.process.returncode == 2
    assert "BATCHER_BROKER" in refused.stderr
    written = [*family.folder.glob("*.std*"), *(path for path in fleet.jobs.rglob("*") if path.is_file())]
    texts = {str(path): path.read_bytes().decode(errors="replace") for path in written}
    for where, text in {**texts, **{f"command line {line}": line for line in command_lines}}.items():
        assert PASSWORD not in text, where
        assert ENCODED not in text, where
        assert "Traceback" not in text, where


class _Answering(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while self.request.recv(1000):
                self.request.sendall(self.server.line)  # type: ignore[attr-defined]


@contextlib.contextmanager
def answering(line: bytes) -> Iterator[int]:
    """A server on a port of the loopback that says the same to everything."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Answering) as server:
        server.line = line  # type: ignore[attr-defined]
        # Connections that a client keeps open are not waited for.
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, name="answering")
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_password_that_an_old_server_repeats_is_not_shown(tmp_path: Path) -> None:
    # As Redis 5 has it.
    answer = b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `geheim`, \r\n"
    job = make_job(tmp_path / "job", (1,))

    with answering(answer) as port:
        url = f"redis://:geheim@127.0.0.1:{port}/0"
        with pytest.raises(BrokerError, match="older than Redis 6") as on_connecting:
            connect(url)
        with pytest.raises(BrokerError, match="could not be queued") as on_sending:
            Sender(url, scope="here")(job, job.pending_shards())

    assert "geheim" not in f"{on_connecting.value} {on_sending.value}"


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost`, signed by itself, and its key in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("certificates are made by the program openssl, which is not on PATH")
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    # fmt: off
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", path.with_name("cert.pem")],
        check=True, capture_output=True,
    )
    # fmt: on
    key = path.read_text()
    path.write_text(path.with_name("cert.pem").read_text())
    path.with_name("key.pem").write_text(key)
    return path


class TlsEndpoint:
    """Speaks TLS on a port of the loopback and passes on to a server that does not."""

    def __init__(self, target_port: int, certificate: Path) -> None:
        self._target_port = target_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_name("key.pem"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tls")
        self._is_up = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def __enter__(self) -> "TlsEndpoint":
        self._thread.start()
        assert self._is_up.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            with contextlib.closing(inner_writer):
                ways = [asyncio.create_task(_pass_on(*way)) for way in ((reader, inner_writer), (inner_reader, writer))]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        self._tasks.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
def tls(redis_server: RedisServer, certificate: Path) -> Iterator[TlsEndpoint]:
    with TlsEndpoint(redis_server.port, certificate) as endpoint:
        yield endpoint


def reach_with_celery(url: str) -> None:
    app = make_celery(url)
    with contextlib.closing(app.connection_for_write()) as connection:
        connection.ensure_connection(max_retries=1, timeout=10)
        connection.default_channel.client.ping()


def test_broker_with_an_unknown_certificate_is_refused_by_both_libraries(tls: TlsEndpoint) -> None:
    url = f"rediss://:geheim@localhost:{tls.port}/0"

    with pytest.raises(
        BrokerError, match=r"certificate is refused: self.signed certificate; .*ssl_ca_certs="
    ) as caught:
        connect(url)
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        reach_with_celery(url)

    assert "geheim" not in str(caught.value)


def test_health_check_trusts_the_same_certificates(tls: TlsEndpoint, certificate: Path) -> None:
    ping(f"rediss://localhost:{tls.port}/0?ssl_ca_certs={certificate}", timeout_s=10)

    with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
        ping(f"rediss://localhost:{tls.port}/0", timeout_s=10)
    with pytest.raises(BrokerError, match=r"not valid for '127.0.0.1'"):
        ping(f"rediss://127.0.0.1:{tls.port}/0?ssl_ca_certs={certificate}", timeout_s=10)


def test_certificate_of_another_host_is_refused_by_both_libraries(tls: TlsEndpoint, certificate: Path) -> None:
    url = f"rediss://127.0.0.1:{tls.port}/0?ssl_ca_certs={certificate}"

    with pytest.raises(BrokerError, match=r"not valid for '127.0.0.1'.*by the name in the certificate"):
        connect(url)
    with pytest.raises(OperationalError, match=r"not valid for '127.0.0.1'"):
        reach_with_celery(url)


def test_files_that_a_tls_url_names_must_be_there(tls: TlsEndpoint, tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"ssl_ca_certs=.*none.pem: cannot read the file"):
        connect(f"rediss://localhost:{tls.port}/0?ssl_ca_certs={tmp_path / 'none.pem'}")


def test_server_without_tls_is_named() -> None:
    with answering(b"-ERR unknown command\r\n") as port, pytest.raises(BrokerError, match="port where it speaks TLS"):
        connect(f"rediss://localhost:{port}/0")


def test_server_that_waits_for_more_than_tls_is_named(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batcher.broker.client.SOCKET_TIMEOUT_S", 0.5)

    with pytest.raises(BrokerError, match=r"cannot reach it: Timeout.*or give the port where it speaks TLS"):
        connect(f"rediss://localhost:{redis_server.port}/0")


def test_whole_job_goes_through_tls(family: Family, model: Path, tls: TlsEndpoint, certificate: Path) -> None:
    url = f"rediss://localhost:{tls.port}/0?ssl_ca_certs={certificate}"
    reach_with_celery(url)
    fleet = Fleet(family, url, model)
    worker = fleet.start_worker("w1")
    job = fleet.submit("job", rows=40, shard_rows=10, max_tokens=16)

    wait_for(lambda: job.is_complete, what="the job is complete")

    assert_every_row_once(job, 40)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.stderr
    assert "insecure" not in worker.stderr


# -- messages ---------------------------------------------------------------------------------------------------------


def envelope(values: Any, **headers: Any) -> str:
    """A message as kombu writes it to Redis."""
    # fmt: off
    return json.dumps({
        "body": b64encode(json.dumps(values).encode()).decode(),
        "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": RUN_SHARD, "id": str(uuid.uuid4()), **headers},
        "properties": {
            "delivery_tag": str(uuid.uuid4()), "body_encoding": "base64", "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": "batcher.tiny"},
        },
    })
    # fmt: on


def test_worker_survives_every_message_and_leaves_the_jobs_root_never(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    fleet = Fleet(family, redis_server.url, model)
    outside = make_job(family.folder / "outside", (1,))
    fleet.jobs.mkdir()
    (fleet.jobs / "link").symlink_to(outside.path)
    worker = fleet.start_worker("w1")
    wait_until_ready(worker)
    child = family.child_of(worker)
    messages: list[str | bytes] = [
        envelope([[], {"job_id": "link", "shard": 0}, {}]),
        envelope([[], {"job_id": "../outside", "shard": 0}, {}]),
        envelope([[], {"job_id": "none", "shard": 0}, {}], eta="2099-01-01T00:00:00+00:00", timelimit="x", expires=[1]),
        envelope([[], {"job_id": "none", "shard": 0, "path": "/etc/passwd"}, {}]),
        envelope([["none", 0, 0], {}, {}]),
        # A body of another shape than Celery's ended the worker, went back to the queue, and ended the next one.
        envelope({"job_id": "none"}),
        envelope(5),
        envelope([[], {"job_id": "none", "shard": 0}, {"callbacks": [{"task": "celery.map"}]}]),
        envelope([[{"task": RUN_SHARD}, [1]], {}, {}], task="celery.map"),
        envelope([[], {}, {}], task="os.system", id={"a": 1}),
        envelope([[], {"job_id": "x\nFORGED", "shard": 10**30}, {}]),
        # What kombu can't parse ended the worker, too.
        b"\xff\x00\nFORGED",
        b"[" * 5000,
        b"x" * (16 << 20),
        envelope([[], {"job_id": "none", "shard": 0}, {}], compression="bzip2").replace("base64", "rot13"),
        "{}",
    ]

    queue = queue_key("tiny", scope=scope_of(fleet.jobs))
    with redis_server.client() as client:
        client.rpush(queue, *messages)
        # Messages that nobody acknowledged for a day, which kombu would queue again.
        client.zadd("batcher:unacked_index", {"no message": 0, "none at all": 1})
        client.hset("batcher:unacked", "no message", b"\xff[")
        job = fleet.submit("job", rows=5, shard_rows=5, max_tokens=4)
        wait_for(lambda: job.is_complete, what="the job is complete")
        wait_for(lambda: worker.stderr.count("a message is dropped") >= len(messages), what="all are dropped")

        # The job's own message is acknowledged a moment after the job is complete.
        wait_for(lambda: client.hlen("batcher:unacked") == 0, what="none is held")
        wait_for(lambda: client.zcard("batcher:unacked_index") == 0, what="those of the dead are forgotten")
        assert client.llen(queue) == 0

    lines = worker.stderr.splitlines()
    assert sum("a message is dropped" in line for line in lines) == len(messages)
    assert "Traceback" not in worker.stderr
    assert not any(line.startswith("FORGED") for line in lines)
    assert family.child_of(worker) == child
    assert outside.num_attempts(0) == 0
    assert not outside.committed_shards()


def test_link_out_of_the_jobs_folder_is_no_job_of_the_command_line(
    family: Family, redis_url: str, tmp_path: Path
) -> None:
    outside = make_job(tmp_path / "outside", (1,))
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "link").symlink_to(outside.path)

    status = family.run("status", "link", "--jobs-dir", jobs)
    deleted = family.run("delete", "link", "--jobs-dir", jobs, "--yes")
    submitted = family.run(
        *("submit", write_prompts(tmp_path / "prompts.jsonl", 1), "--job-id", "link", "--model", "tiny"),
        *("--broker", redis_url, "--jobs-dir", jobs),
    )
    by_path = family.run("status", jobs / "link")
    listed = family.run("list", "--jobs-dir", jobs)

    assert [command.process.returncode for command in (status, deleted, submitted, by_path)] == [2, 2, 2, 0]
    assert "leads out of the jobs folder" in submitted.stderr
    assert "leads out of the jobs folder" in status.stderr
    assert "No jobs" in listed.stderr
    assert outside.exists()


# -- the model's file -------------------------------------------------------------------------------------------------


def test_model_file_of_another_digest_is_not_loaded(family: Family, model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    command = ("run", prompts, "-o", tmp_path / "out", "--model", f"tiny={model}", "--max-tokens", 4)
    family.jobs.append(tmp_path / "out")

    refused = family.run(*command, "--model-sha256", "0" * 64)
    mistyped = family.run(*command, "--model-sha256", f"other={digest}")
    done = family.run(*command, "--model-sha256", f"tiny={digest}")

    assert [command.process.returncode for command in (refused, mistyped, done)] == [2, 2, 0], refused.stderr
    assert f"{model}: its SHA-256 is {digest}, not {'0' * 64}" in refused.stderr
    assert "no model other is served here" in mistyped.stderr
    assert_every_row_once(JobDir(tmp_path / "out"), 3)
