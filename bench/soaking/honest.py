"""Clients that do what docs/serving.md says, and check each answer.

They bear what that page tells clients to bear and no more: 429 and 503 that say when to come again, and a connection
that ends before a word of the answer, which every SDK tries again. All else is a failure.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.soaking.bombs import MODEL, batch_lines

#: Seconds that an answer may take; far more than any takes, also on a busy machine.
PATIENCE_S = 300.0
#: Tries of a request whose connection ended before a word of the answer.
MAX_TRIES = 4
#: Times that one request may be told to come again, and the longest wait (seconds) that is believed.
MAX_REFUSALS = 200
_LONGEST_WAIT_S = 10.0
_POLL_INTERVAL_S = 0.3
_ENDED_EARLY = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_REFUSALS = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class AnswerError(Exception):
    """An answer that no honest client should get."""


@dataclass
class Tally:
    """What came of the work of one kind; of all threads that do it. For all threads."""

    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note_done(self, kind: str) -> None:
        with self._lock:
            self.done[kind] += 1

    def note_refused(self, kind: str) -> None:
        with self._lock:
            self.refused[kind] += 1

    def note_retried(self, kind: str) -> None:
        with self._lock:
            self.retried[kind] += 1

    def note_failure(self, kind: str, exc: Exception) -> None:
        with self._lock:
            self.failures.append(f"{kind}: {type(exc).__name__}: {exc}"[:500])


class HonestClient:
    """One client, on connections of its own; does one kind of work after another. `base_url` ends in `/v1`."""

    def __init__(self, base_url: str, key: str, *, rng: random.Random, tally: Tally, stopping: threading.Event) -> None:
        self._rng = rng
        self._tally = tally
        self._stopping = stopping
        self._kind = ""
        headers = {"authorization": f"Bearer {key}"}
        self._client = httpx.Client(base_url=base_url, headers=headers, timeout=PATIENCE_S)

    def run(self, kind: str) -> None:
        """Do the work of `kind`, one of KINDS, until told to stop; what has begun is brought to its end."""
        self._kind = kind
        with self._client:
            while not self._stopping.is_set():
                try:
                    KINDS[kind](self)
                    self._tally.note_done(kind)
                except (AnswerError, httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
                    self._tally.note_failure(kind, exc)
                self._stopping.wait(self._rng.uniform(0, 0.2))

    def complete(self) -> None:
        """A live completion, of one or several prompts."""
        num_prompts, n, max_tokens = self._rng.choice([1, 1, 1, 3]), self._rng.choice([1, 1, 2]), self._max_tokens()
        prompts = [f"hello {self._rng.random()}" for _ in range(num_prompts)]
        body = {"model": MODEL, "prompt": prompts, "n": n, "max_tokens": max_tokens}
        answer = self._send("POST", "/completions", json=body).json()
        _check(len(answer["choices"]) == num_prompts * n, "choices", answer)
        _check(0 < answer["usage"]["completion_tokens"] <= num_prompts * n * max_tokens, "tokens", answer)

    def chat(self) -> None:
        """A live chat."""
        messages = [{"role": "user", "content": f"hello {self._rng.random()}"}]
        body = {"model": MODEL, "messages": messages, "max_tokens": self._max_tokens()}
        answer = self._send("POST", "/chat/completions", json=body).json()
        _check(answer["choices"][0]["message"]["role"] == "assistant", "message", answer)

    def stream(self) -> None:
        """A completion as it is made, to its end."""
        max_tokens = self._max_tokens() * 2
        options = {"stream": True, "stream_options": {"include_usage": True}}
        body = {"model": MODEL, "prompt": f"hello {self._rng.random()}", "max_tokens": max_tokens, **options}
        lines = self._send("POST", "/completions", json=body).text.splitlines()
        events = [line for line in lines if line.startswith("data: ")]
        _check(events[-1:] == ["data: [DONE]"], "the end of a stream", events[-3:])
        usage = json.loads(events[-2].removeprefix("data: "))["usage"]
        _check(0 < usage["completion_tokens"] <= max_tokens, "tokens", usage)

    def upload(self) -> None:
        """A file that is stored, found, read back as it was, and deleted."""
        content = batch_lines(self._rng.randrange(1, 2000))
        uploaded = self._upload(content)
        _check(uploaded["bytes"] == len(content), "bytes", uploaded)
        listed = self._send("GET", "/files", params={"limit": 5}).json()
        _check(len(listed["data"]) > 0, "files", listed)
        found = self._send("GET", f"/files/{uploaded['id']}/content").content
        _check(found == content, "the content of a file", f"{len(found)} bytes of {len(content)}")
        self._delete(uploaded["id"])

    def batch(self) -> None:
        """A batch that is completed, each row once."""
        number = self._rng.randrange(1, 40)
        uploaded = self._upload(batch_lines(number, max_tokens=self._max_tokens()))
        batch = self._wait_for_end(self._create(uploaded["id"]))
        _check(batch["status"] == "completed", "the status of a batch", batch)
        lines = self._send("GET", f"/files/{batch['output_file_id']}/content").text.splitlines()
        results = [json.loads(line) for line in lines]
        _check(sorted(int(each["custom_id"]) for each in results) == list(range(number)), "rows", lines[:3])
        _check(all(each["response"]["status_code"] == httpx.codes.OK for each in results), "codes", lines[:3])
        self._delete(batch["output_file_id"])
        self._delete(uploaded["id"])

    def cancel(self) -> None:
        """A batch that is cancelled somewhere on its way."""
        uploaded = self._upload(batch_lines(400, max_tokens=64))
        batch = self._create(uploaded["id"])
        time.sleep(self._rng.uniform(0, 1))
        self._send("POST", f"/batches/{batch['id']}/cancel")
        batch = self._wait_for_end(batch)
        _check(batch["status"] == "cancelled", "the status of a cancelled batch", batch)
        self._delete(uploaded["id"])

    def _max_tokens(self) -> int:
        return self._rng.choice([1, 4, 8, 16])

    def _upload(self, content: bytes) -> Any:
        files = {"file": ("rows.jsonl", content)}
        return self._send("POST", "/files", files=files, data={"purpose": "batch"}).json()

    def _create(self, file_id: str) -> Any:
        body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
        return self._send("POST", "/batches", json=body).json()

    def _wait_for_end(self, batch: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while batch["status"] not in ("completed", "failed", "cancelled", "expired"):
            if time.monotonic() > deadline:
                raise AnswerError(f"a batch does not end: {batch}")
            time.sleep(_POLL_INTERVAL_S)
            batch = self._send("GET", f"/batches/{batch['id']}").json()
        return batch

    def _delete(self, file_id: str) -> None:
        answer = self._send("DELETE", f"/files/{file_id}").json()
        _check(answer["deleted"] is True, "a deleted file", answer)

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """The whole answer of a request that was not refused. Raises AnswerError for any other than 200."""
        for response in self._answers(method, path, content):
            if response.status_code != httpx.codes.OK:
                raise AnswerError(f"{method} {path}: {response.status_code}: {response.text[:300]}")
            return response
        raise AnswerError(f"{method} {path}: refused {MAX_REFUSALS} times")

    def _answers(self, method: str, path: str, content: dict[str, Any]) -> Iterator[httpx.Response]:
        """One that is no refusal, if one comes."""
        for _ in range(MAX_REFUSALS):
            response = self._answer(method, path, content)
            if response.status_code not in _REFUSALS:
                yield response
                return
            if "retry-after" not in response.headers:
                raise AnswerError(f"{response.status_code} without retry-after: {response.text[:300]}")
            self._tally.note_refused(self._kind)
            time.sleep(min(_LONGEST_WAIT_S, float(response.headers["retry-after"])))

    def _answer(self, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        for number in range(MAX_TRIES):
            try:
                with self._client.stream(method, path, **content) as response:
                    self._read(response, f"{method} {path}")
                return response
            except _ENDED_EARLY:
                if number == MAX_TRIES - 1:
                    raise
                self._tally.note_retried(self._kind)
                time.sleep(0.1 * 2**number)
        raise AssertionError("not reached")

    def _read(self, response: httpx.Response, what: str) -> None:
        try:
            response.read()
        except _ENDED_EARLY as exc:
            raise AnswerError(f"{what}: {response.status_code}, and then the answer broke off: {exc!r}") from exc


KINDS: dict[str, Callable[[HonestClient], None]] = {
    "completion": HonestClient.complete,
    "chat": HonestClient.chat,
    "stream": HonestClient.stream,
    "upload": HonestClient.upload,
    "batch": HonestClient.batch,
    "cancel": HonestClient.cancel,
}


def _check(is_right: bool, what: str, answer: object) -> None:
    if not is_right:
        raise AnswerError(f"{what}: {str(answer)[:300]}")
