"""Strangers and a client with a key that attack a server, one attack after another, as a seed gives them.

What an attack is answered with does not matter here, and no attack may last: each gives up after PATIENCE_S. That
honest clients are served meanwhile, and that the server is as it was afterwards, is for `bench.soak` to see.
"""

import contextlib
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from bench.soaking.bombs import MODEL, batch_lines

#: Seconds that an attack waits for a word of the server.
PATIENCE_S = 5.0
#: Connections that a stranger opens at a time.
NUM_IDLE = 60
#: Batches that a storm of cancellations makes.
NUM_STORM = 8

_HOST = b"Host: localhost\r\n"
_POST = b"POST /v1/completions HTTP/1.1\r\n" + _HOST
_GET = b"GET /v1/models HTTP/1.1\r\n"
#: What strangers send and then wait.
_BEGINNINGS = (
    b"",
    b"GET / HTTP/1.1\r\nHost: loc",
    b"GET /health HTTP/1.1\r\n" + _HOST + b"\r\n",
    _POST + b"Content-Length: 1000\r\n\r\n{",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe",
    _POST + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
)
#: Heads that a server has to refuse, some of which another would read as two requests.
_BAD_HEADS = (
    _GET + b"\r\n",
    _GET + _HOST + b"Host: evil.example\r\n\r\n",
    _GET + b"Host: user@127.0.0.1\r\n\r\n",
    _GET + _HOST + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",
    _GET + _HOST + b"X: y\r\n" * 50_000 + b"\r\n",
    _GET + _HOST + b" folded: yes\r\n\r\n",
    _GET + _HOST + b"X : y\r\n\r\n",
    _POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + _GET + _HOST + b"\r\n",
    _POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    _POST + b"Content-Length: -1\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET / HTTP/9.9\r\n" + _HOST + b"\r\n",
    b"\x00" * 1000,
)
_OBJECTS = b"[" + b"{}," * 3_000_000 + b"{}]"


class Attacker:
    """One attacker, who may have a key. `bombs` are files by name, `port` is one of the loopback."""

    def __init__(
        self, port: int, key: str, *, rng: random.Random, bombs: dict[str, bytes], stopping: threading.Event
    ) -> None:
        self.done: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self._port = port
        self._headers = {"authorization": f"Bearer {key}"}
        self._rng = rng
        self._bombs = bombs
        self._stopping = stopping

    def run(self) -> None:
        """Attack until told to stop."""
        while not self._stopping.is_set():
            name = self._rng.choice(sorted(ATTACKS))
            # The server cuts them off, or says nothing; both are answers.
            with contextlib.suppress(OSError, httpx.HTTPError):
                ATTACKS[name](self)
            self.done[name] += 1
            self._stopping.wait(self._rng.uniform(0, 0.1))

    # -- strangers ---------------------------------------------------------------------------------------------------

    def idle(self) -> None:
        """Many connections that say little or nothing, for a while."""
        with contextlib.ExitStack() as stack:
            for _ in range(NUM_IDLE):
                stack.enter_context(self._connect(self._rng.choice(_BEGINNINGS)))
            self._stopping.wait(self._rng.uniform(0, PATIENCE_S))

    def drip(self) -> None:
        """A head or a body that comes byte by byte, and ends nowhere."""
        data = self._rng.choice([_GET + _HOST + b"X: ", _POST + b"Content-Length: 100000\r\n\r\n{"])
        with self._connect(data) as connection:
            for _ in range(self._rng.randrange(30)):
                connection.sendall(b"x")
                if self._stopping.wait(0.1):
                    break

    def bad_head(self) -> None:
        """What is no request, or two in one."""
        with self._connect(self._rng.choice(_BAD_HEADS)) as connection:
            while connection.recv(65536):
                pass

    def unasked(self) -> None:
        """Requests with a wrong key, or none, for what may be there."""
        paths = (
            "/v1/files",
            "/v1/batches",
            "/v1/files/../../etc/passwd",
            "/v1/files/%2e%2e",
            "/metrics",
            "/v1/x" * 500,
        )
        with self._client({"authorization": "Bearer no"}) as client:
            for path in paths:
                self._note(client.request(self._rng.choice(["GET", "POST", "DELETE", "TRACE"]), path))

    # -- with a key --------------------------------------------------------------------------------------------------

    def huge_json(self) -> None:
        """A body that becomes many times as large where it is parsed."""
        field = self._rng.choice(["prompt", "stop", "logit_bias", "messages", "metadata"])
        value = self._rng.choice([_OBJECTS, b"[" * 5_000_000, b'"' + b"x" * 9_000_000 + b'"', b"9" * 4_000_000])
        path = self._rng.choice(["/completions", "/chat/completions", "/batches"])
        body = b'{"model": "%s", "%s": %s}' % (MODEL.encode(), field.encode(), value)
        self._post(path, content=body, headers={"content-type": "application/json"})

    def many_completions(self) -> None:
        """Long completions of many prompts, which nobody waits for."""
        prompts = ["hello"] * self._rng.choice([1, 16, 64])
        n = self._rng.choice([1, 8, 32])
        self._post("/completions", json={"model": MODEL, "prompt": prompts, "n": n, "max_tokens": 400}, patience_s=1.0)

    def hostile_fields(self) -> None:
        """Fields that make each token dear, or are nonsense."""
        fields: dict[str, Any] = self._rng.choice(
            [
                {"stop": ["x" * 5000 + str(number) for number in range(4)]},
                {"stop": ["x"] * 100_000},
                {"logit_bias": {str(number): -100 for number in range(50_000)}},
                {"logit_bias": {"1e999": 1e999}},
                {"logprobs": 10**9, "top_logprobs": 10**9},
                {"n": 10**18, "best_of": -1},
                {"seed": 10**400},
                {"temperature": float("nan"), "top_p": float("-inf")},
                {"prompt": "x" * 1_000_000},
                {"prompt": [[10**12] * 1000]},
                {"prompt": "\ud800\x00\ufffe" * 1000},
                {"suffix": "x" * 100_000, "echo": True},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
                {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 50_000}]},
                {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}] * 1000},
            ]
        )
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 4, **fields}
        path = "/chat/completions" if "messages" in fields or "tools" in fields else "/completions"
        self._post(path, content=json.dumps(body), headers={"content-type": "application/json"})

    def abandoned_stream(self) -> None:
        """A stream that nobody reads to its end."""
        body = {"model": MODEL, "prompt": ["hello"] * 8, "max_tokens": 400, "stream": True}
        with self._client(self._headers) as client, client.stream("POST", "/v1/completions", json=body) as response:
            self._note(response)
            for number, _ in enumerate(response.iter_bytes()):
                if number > self._rng.randrange(20):
                    break

    def deaf_stream(self) -> None:
        """A stream of which not a byte is taken from the socket."""
        body = json.dumps({"model": MODEL, "prompt": ["hello"] * 32, "max_tokens": 400, "stream": True}).encode()
        head = _POST + b"Content-Type: application/json\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n"
        with self._connect(head % (self._headers["authorization"].encode(), len(body)) + body):
            self._stopping.wait(PATIENCE_S)

    def bomb(self) -> None:
        """A file that becomes large where it is read, as a batch; mostly deleted afterwards."""
        name = self._rng.choice(sorted(self._bombs))
        with self._client(self._headers) as client:
            batch = self._make_batch(client, self._bombs[name], name=name)
            if batch is not None and self._rng.random() < 0.5:
                self._note(client.post(f"/v1/batches/{batch['id']}/cancel"))
            if batch is not None:
                self._note(client.delete(f"/v1/files/{batch['input_file_id']}"))

    def bad_form(self) -> None:
        """Uploads that are no forms, or more than one."""
        disposition = b'--b\r\nContent-Disposition: form-data; name="'
        content = self._rng.choice(
            [
                disposition + b"x" * (4 << 20),
                b"--b\r\n" + b"X: y\r\n" * 500_000,
                (disposition + b'purpose"\r\n\r\nbatch\r\n') * 20_000 + b"--b--\r\n",
                disposition + b'file"; filename="' + b"../" * 2000 + b'x"\r\n\r\nhello\r\n--b--\r\n',
                disposition + b'file"; filename="x"\r\n\r\n' + b"y" * 1_000_000,
                b"--c\r\n\r\n--c--",
                b"",
            ]
        )
        self._post("/files", content=content, headers={"content-type": "multipart/form-data; boundary=b"})

    def cancel_storm(self) -> None:
        """Batches that are made and cancelled at once, several times each."""
        with self._client(self._headers) as client:
            for _ in range(NUM_STORM):
                batch = self._make_batch(client, batch_lines(200, max_tokens=400), name="rows.jsonl")
                for _ in range(3 if batch is not None else 0):
                    self._note(client.post(f"/v1/batches/{batch['id']}/cancel"))
                if batch is not None:
                    self._note(client.delete(f"/v1/files/{batch['input_file_id']}"))

    # -- how ---------------------------------------------------------------------------------------------------------

    def _connect(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S)
        with contextlib.suppress(OSError):
            connection.sendall(data)
        return connection

    def _client(self, headers: dict[str, str], *, patience_s: float = PATIENCE_S) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self._port}", headers=headers, timeout=patience_s)

    def _post(self, path: str, *, patience_s: float = PATIENCE_S, **content: Any) -> None:
        with self._client(self._headers, patience_s=patience_s) as client:
            self._note(client.post(f"/v1{path}", **content))

    def _make_batch(self, client: httpx.Client, content: bytes, *, name: str) -> Any:
        uploaded = client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "batch"})
        self._note(uploaded)
        if uploaded.status_code != httpx.codes.OK:
            return None
        file_id = uploaded.json()["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        made = client.post("/v1/batches", json=body)
        self._note(made)
        return made.json() if made.status_code == httpx.codes.OK else None

    def _note(self, response: httpx.Response) -> None:
        self.answers[response.status_code] += 1


ATTACKS: dict[str, Callable[[Attacker], None]] = {
    "idle connections": Attacker.idle,
    "dripping": Attacker.drip,
    "bad heads": Attacker.bad_head,
    "no key": Attacker.unasked,
    "huge JSON": Attacker.huge_json,
    "many completions": Attacker.many_completions,
    "hostile fields": Attacker.hostile_fields,
    "abandoned streams": Attacker.abandoned_stream,
    "deaf streams": Attacker.deaf_stream,
    "bombs": Attacker.bomb,
    "bad forms": Attacker.bad_form,
    "cancel storms": Attacker.cancel_storm,
}
