"""Bad clients attack a real `batcher serve`: a good one is served meanwhile, and SIGTERM is obeyed."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest

from batcher.openai.parameters import CHAT_URL, COMPLETIONS_URL
from tests.support.bombs import write_gzip, write_zstd
from tests.support.family import Family
from tests.support.serving import Server, serve
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.waiting import PATIENCE_S, wait_for

KEY, OTHER_KEY = "sk-0123456789abcdef", "sk-fedcba9876543210"
MAX_OPEN_FILES = 512
#: Of the server's process, through every attack.
MAX_RSS_BYTES = 600 << 20
#: Seconds that requests have when the server is told to stop, and what a busy machine may take beyond.
GRACE_S = 1
SLACK_S = 10


@pytest.fixture
def server(family: Family, model: Path) -> Iterator[Server]:
    """A server with a key, and few open files."""
    limited = ("sh", "-c", f'ulimit -n {MAX_OPEN_FILES} && exec "$@"', "sh")
    with serve(
        family, "--model", f"tiny={model}", "--threads", 1, env={"BATCHER_API_KEYS": KEY}, prefix=limited
    ) as server:
        yield server
        assert peak_rss(server.pid) < MAX_RSS_BYTES
        assert server.stop() == 0, server.stderr
    assert family.pids() == []


def peak_rss(pid: int) -> int:
    """The most memory that a process had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def num_open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextlib.contextmanager
def good_client(server: Server, key: str = KEY) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=server.base_url, headers=headers, timeout=PATIENCE_S) as client:
        yield client


def check_served(server: Server) -> None:
    """A live request is answered and a batch is finished, each on connections of its own."""
    with good_client(server) as client:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        assert client.post("/completions", json=body).status_code == 200
        assert finish_batch(client, [body] * 20, COMPLETIONS_URL)["completed"] == 20


def finish_batch(client: httpx.Client, bodies: Sequence[object], url: str) -> dict[str, int]:
    """Wait for the end of a batch of these requests. Returns its counts."""
    lines = [{"custom_id": str(at), "method": "POST", "url": url, "body": body} for at, body in enumerate(bodies)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    uploaded = client.post("/files", files={"file": data}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": uploaded["id"], "endpoint": url, "completion_window": "24h"}
    batch = client.post("/batches", json=asked).json()
    wait_for(lambda: client.get(f"/batches/{batch['id']}").json()["status"] == "completed", what="a batch is done")
    counts: dict[str, int] = client.get(f"/batches/{batch['id']}").json()["request_counts"]
    return counts


def connect(server: Server, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"

#: What strangers send and then wait.
IDLE = [
    b"",
    b"GET / HTTP/1.1\r\nhost: loc",
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
    POST + b"content-length: 1000\r\n\r\n{",
    POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhe",
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
]


def test_idle_connections_of_strangers_keep_nobody_out(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(3 * MAX_OPEN_FILES):
            stack.enter_context(connect(server, IDLE[number % len(IDLE)]))

        wait_for(lambda: num_open_files(server.pid) < MAX_OPEN_FILES * 3 // 4, what="the strangers give way")
        check_served(server)
        # And while more of them come.
        for number in range(MAX_OPEN_FILES):
            stack.enter_context(connect(server, IDLE[number % len(IDLE)]))
        check_served(server)
    assert "Too many open files" not in server.stderr


GET = b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
HOST = b"host: localhost\r\n"


#: Heads that a server has to refuse, and how.
BAD_HEADS = [
    (GET + b"\r\n", 400),
    (GET + HOST + b"host: evil.example\r\n\r\n", 400),
    (GET + b"host: user@127.0.0.1\r\n\r\n", 400),
    (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (POST + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400),
    (GET + HOST + b"x: " + b"y" * (1 << 20) + b"\r\n\r\n", 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
]


def test_bad_heads_are_refused_each_once_and_fill_no_log(server: Server) -> None:
    for data, expected in BAD_HEADS * 50:
        # With a good request behind it, which must not be answered: a proxy may have taken both for one.
        with connect(server, data + GET + HOST + b"\r\n") as connection:
            answer = read_all(connection)
        # A client that still sends may find its connection broken rather than the answer.
        assert not answer or (answer.count(b"content-length: "), int(answer.split()[1])) == (1, expected)

    check_served(server)
    assert len(server.stderr.splitlines()) < 50


def large_bodies() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Path, body and headers of requests that become many times as large where they are read."""
    json_ = {"content-type": "application/json"}
    objects = b"[" + b"{}," * (10_000_000 // 3 - 100) + b"{}]"
    yield "/completions", b'{"model": "tiny", "prompt": %s}' % objects, json_
    yield "/chat/completions", b'{"model": "tiny", "messages": %s}' % objects, json_
    yield "/completions", b'{"model": "tiny", "prompt": "a", "stop": %s}' % (b"[" * 5_000_000), json_
    yield "/batches", b'{"input_file_id": %s}' % objects[:1_000_000], json_
    form = {"content-type": "multipart/form-data; boundary=b"}
    yield "/files", b"--b\r\nContent-Disposition: form-data; name=" + b"x" * (4 << 20), form
    yield "/files", b"--b\r\n" + b"X: y\r\n" * 1_000_000, form


def test_bodies_that_become_large_are_read_one_at_a_time(server: Server) -> None:
    def send(request: tuple[str, bytes, dict[str, str]]) -> int:
        path, body, headers = request
        with good_client(server) as client:
            return client.post(path, content=body, headers=headers).status_code

    with ThreadPoolExecutor(24) as pool:
        sending = [pool.submit(send, request) for request in list(large_bodies()) * 4]
        check_served(server)
        assert {future.result() for future in sending} == {400}


def test_pipes_and_devices_in_the_place_of_files_are_left_out(server: Server, family: Family) -> None:
    check_served(server)
    jobs = family.folder / "jobs"
    [manifest] = jobs.glob("batch_*/manifest.json")
    for name in ("manifest.json", "batch.json", "summary.json", "CANCELLED"):
        for kind in ("pipe", "zero"):
            job = jobs / f"{kind}-{name}"
            job.mkdir()
            (job / "manifest.json").write_bytes(manifest.read_bytes())
            (job / name).unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(job / name)
            else:
                (job / name).symlink_to("/dev/zero")

    with good_client(server) as client:
        assert client.get("/batches").status_code == 200
        assert client.get(f"{server.root_url}/metrics").status_code == 200
    check_served(server)


def test_one_key_that_queues_long_work_does_not_keep_another_waiting(family: Family, model: Path) -> None:
    long = {"model": "tiny", "prompt": [f"prompt {n}" for n in range(5)], "max_tokens": 400, "ignore_eos": True}
    options = ("--model", f"tiny={model}", "--threads", 1, "--slots", 4, "--grace", GRACE_S)
    with serve(family, *options, env={"BATCHER_API_KEYS": f"{KEY},{OTHER_KEY}"}) as server:

        def ask(number: int) -> int:
            with good_client(server, OTHER_KEY) as client:
                return client.post("/completions", json={**long, "seed": number}).status_code

        with ThreadPoolExecutor(40) as pool, good_client(server) as client:
            queued = [pool.submit(ask, number) for number in range(40)]
            wait_for(lambda: 'queued{key="2"} 200' in client.get(f"{server.root_url}/metrics").text, what="all wait")

            body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
            assert client.post("/completions", json=body).status_code == 200

            # In the order of their coming it would have been all of them.
            assert sum(each.done() for each in queued) < len(queued) // 2
            assert server.stop() == 0, server.stderr


#: A template that would run for days.
NESTED_LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abcd") + "{% endfor %}" * 4


def test_model_with_an_endless_template_harms_no_other_model(family: Family, model: Path) -> None:
    bomb = write_tiny_gguf(family.folder / "bomb.gguf", chat_template=NESTED_LOOPS)
    unreadable = write_tiny_gguf(
        family.folder / "deep.gguf", chat_template="{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"
    )
    models = [f"--model={name}={path}" for name, path in (("tiny", model), ("bomb", bomb), ("deep", unreadable))]
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    with serve(family, *models, "--threads", 1, "--grace", GRACE_S, env={"BATCHER_API_KEYS": KEY}) as server:

        def ask(name: str) -> httpx.Response:
            with good_client(server) as client:
                return client.post("/chat/completions", json={**chat, "model": name})

        with ThreadPoolExecutor(30) as pool, good_client(server) as client:
            counts = finish_batch(client, [{**chat, "model": name} for name in ("bomb", "deep", "bomb")], CHAT_URL)
            assert (counts["failed"], counts["total"]) == (3, 3)
            attacks = [pool.submit(ask, "bomb") for _ in range(30)]
            wait_for(lambda: any(attack.done() for attack in attacks), what="one of them is answered")
            check_served(server)
            assert ask("tiny").status_code == 200
            assert client.get(f"{server.root_url}/health").status_code == 200
            refused = ask("deep")
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
            assert "chat template can't be read" in refused.json()["error"]["message"]
            assert not all(attack.done() for attack in attacks), "the attack was over too soon"

            began_at = time.monotonic()
            assert server.stop() == 0, server.stderr
            # Not until all of them have had their time.
            assert time.monotonic() - began_at < GRACE_S + 2 + SLACK_S

        answered = [attack.result() for attack in attacks if attack.exception() is None]
        messages = [answer.json()["error"]["message"] for answer in answered if answer.status_code == 400]
        assert messages
        assert all("the model's chat template takes longer than" in message for message in messages)
        assert {answer.status_code for answer in answered} <= {400, 503}
    assert family.pids() == []


def write_inputs(folder: Path) -> dict[str, Path]:
    """Inputs of batches that are small on the disk. Most hold more than anybody would wait for."""
    line = {"custom_id": "a", "method": "POST", "url": COMPLETIONS_URL, "body": {"model": "tiny", "prompt": ["PARTS"]}}
    objects = json.dumps(line).replace('"PARTS"', "{}," * 2_500_000 + "{}").encode() + b"\n"
    long = json.dumps(line).replace("PARTS", "x" * (9 << 20)).encode() + b"\n"
    pieces = {
        "newlines": (b"\n" * (16 << 20), 192),
        "line": (b"a" * (16 << 20), 80),
        "rows": (b"{}\n" * (5 << 20), 200),
        "objects": (objects, 100),
        "long": (long, 30),
    }
    for name, (piece, times) in pieces.items():
        write_gzip(folder / f"{name}.gz", [piece], times=times)
    write_zstd(folder / "line.zst", (b"a" * (1 << 20) for _ in range(1200)))
    write_zstd(folder / "newlines.zst", (b"\n" * (1 << 20) for _ in range(3000)))
    return {path.name: path for path in folder.iterdir()}


def test_inputs_that_unpack_to_much_hold_up_nobody(family: Family, model: Path, tmp_path: Path) -> None:
    (tmp_path / "bombs").mkdir()
    inputs = write_inputs(tmp_path / "bombs")
    assert sum(path.stat().st_size for path in inputs.values()) < 16 << 20
    options = ("--model", f"tiny={model}", "--threads", 1, "--grace", GRACE_S)
    batches: dict[str, str] = {}

    def has_status(name: str, expected: str) -> bool:
        return bool(client.get(f"/batches/{batches[name]}").json()["status"] == expected)

    with serve(family, *options, env={"BATCHER_API_KEYS": KEY}) as server, good_client(server) as client:
        for name, path in inputs.items():
            sent = {"file": (name, path.read_bytes())}
            uploaded = client.post("/files", files=sent, data={"purpose": "batch"}).json()
            asked = {"input_file_id": uploaded["id"], "endpoint": COMPLETIONS_URL, "completion_window": "24h"}
            batches[name] = client.post("/batches", json=asked).json()["id"]

        check_served(server)
        for name in ("newlines.gz", "newlines.zst", "line.gz", "line.zst"):
            wait_for(partial(has_status, name, "failed"), what=f"{name} is refused")
            [error] = client.get(f"/batches/{batches[name]}").json()["errors"]["data"]
            assert error["code"] == "invalid_input_file"
            assert ("blank, more than 32 MB" if "newlines" in name else "--max-ratio") in error["message"]
        # A thousand million rows: it is read until somebody ends that.
        assert has_status("rows.gz", "validating")
        client.post(f"/batches/{batches['rows.gz']}/cancel")
        wait_for(partial(has_status, "rows.gz", "cancelled"), what="the reading ends", timeout_s=2 + SLACK_S)

        asked["input_file_id"] = client.get(f"/batches/{batches['rows.gz']}").json()["input_file_id"]
        again = client.post("/batches", json=asked).json()["id"]
        wait_for(lambda: list((family.folder / "jobs" / again / "shards").glob("*")), what="it is read again")
        check_served(server)
        assert peak_rss(server.pid) < MAX_RSS_BYTES
        began_at = time.monotonic()
        assert server.stop() == 0, server.stderr
        assert time.monotonic() - began_at < GRACE_S + 2 + SLACK_S
    assert "Traceback" not in server.stderr
    # Nothing is left of what was read so far.
    assert not list((family.folder / "jobs" / again).glob("shards/*"))
    assert family.pids() == []
