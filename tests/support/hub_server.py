"""A hub on this machine: as much of huggingface.co's protocol as its client speaks to look up and fetch files.

`HubServer` serves what `repositories` has, and misbehaves as `faults` says. Facts of the protocol are from the client:
`huggingface_hub/hf_api.py` (model_info), `file_download.py` (get_hf_file_metadata, http_get), `utils/_http.py`.
"""

import contextlib
import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """`files` by name. `token` opens one that is gated, or `is_private`, in which case nobody else knows of it."""

    files: dict[str, bytes]
    token: str | None = None
    is_private: bool = False
    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision, by its name or its commit."""
        every = {"main": self.files, **self.revisions}
        commits = {name: _commit(name, files) for name, files in every.items()}
        return next(
            ((commits[name], files) for name, files in every.items() if revision in (name, commits[name])), None
        )


@dataclass
class Faults:
    """What goes wrong. `cut_after`: bytes after which the next so many answers end, one each. `damaged`: files that
    come with a byte changed. `stall_after`: bytes after which each answer waits until it is `released`. `status`: what
    every request is answered with. `told`: what is told of each file in place of what is true."""

    cut_after: list[int] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    stall_after: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    told: dict[str, object] = field(default_factory=dict)


@dataclass
class HubServer:
    url: str
    repositories: dict[str, Repository]
    faults: Faults = field(default_factory=Faults)
    #: Method, path and range of each request.
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    def fetched(self, name: str) -> list[str | None]:
        """The ranges of the requests for the content of a file."""
        return [ranges for method, path, ranges in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def hub_server(repositories: dict[str, Repository]) -> Iterator[HubServer]:
    """A hub on a free port of the loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = HubServer(f"http://127.0.0.1:{server.server_address[1]}", repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class calls it so)
        """Says nothing."""

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def _answer(self, *, has_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.faults.status is not None:
            self._refuse(self.hub.faults.status, "")
        elif match := _INFO.fullmatch(path):
            self._info(match[1], match[2] or "main")
        elif match := _FILE.fullmatch(path):
            self._file(match[1], match[2], match[3], has_body=has_body)
        else:
            self._refuse(404, "")

    def _open(self, name: str) -> Repository | None:
        """The repository, if who asks may know of it."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.is_private and not self._may(repository)):
            # The hub does not say whether there is one.
            self._refuse(401 if self.headers.get("Authorization") is None else 404, "RepoNotFound")
            return None
        return repository

    def _may(self, repository: Repository) -> bool:
        return repository.token is None or self.headers.get("Authorization") == f"Bearer {repository.token}"

    def _info(self, name: str, revision: str) -> None:
        repository = self._open(name)
        if repository is None:
            return
        found = repository.at(revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        commit, files = found
        siblings = [
            {
                "rfilename": file,
                "size": len(content),
                "blobId": git_sha1(content),
                "lfs": {"sha256": _sha256(content), "size": len(content), "pointerSize": 130},
            }
            for file, content in files.items()
        ]
        for sibling in siblings:
            if not str(sibling["rfilename"]).endswith(".gguf"):
                del sibling["lfs"]
            sibling |= self.hub.faults.told
        body = {"id": name, "modelId": name, "sha": commit, "private": repository.is_private, "siblings": siblings}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, name: str, revision: str, file: str, *, has_body: bool) -> None:
        repository = self._open(name)
        if repository is None:
            return
        if not self._may(repository):
            self._refuse(401 if self.headers.get("Authorization") is None else 403, "GatedRepo")
            return
        found = repository.at(revision)
        if found is None or file not in found[1]:
            self._refuse(404, "RevisionNotFound" if found is None else "EntryNotFound")
            return
        commit, files = found
        content = files[file]
        etag = _sha256(content) if file.endswith(".gguf") else git_sha1(content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
        headers |= {"X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        if file in self.hub.faults.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._send(206 if begin else 200, headers, content[begin:], has_body=has_body)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, {"X-Error-Code": code} if code else {}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, has_body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if not has_body or self.command == "HEAD":
            return
        cuts = self.hub.faults.cut_after
        if cuts and "/resolve/" in self.path:
            self.wfile.write(body[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        stall_after = self.hub.faults.stall_after
        if stall_after is not None and "/resolve/" in self.path:
            self.wfile.write(body[:stall_after])
            self.wfile.flush()
            self.hub.faults.released.wait()
            body = body[stall_after:]
        with contextlib.suppress(ConnectionError):  # who asked has been stopped
            self.wfile.write(body)


@functools.lru_cache
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.lru_cache
def git_sha1(content: bytes) -> str:
    """The name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _commit(name: str, files: dict[str, bytes]) -> str:
    content = repr((name, sorted((file, _sha256(content)) for file, content in files.items())))
    return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
