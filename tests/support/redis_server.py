"""A real server of the Redis protocol, for tests with a broker that many share; and a way to it that can be cut."""

import contextlib
import random
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import redis

from batcher.broker.client import open_client
from batcher.broker.embedded import find_server
from tests.support.waiting import wait_for

#: Below the ports that the kernel gives to outgoing connections: while the server is down, one of those could take its
#: port, or a client that tries to reach it could reach itself.
_PORTS = range(20_000, 32_000)


class RedisServer:
    """A server on a free port of the loopback. `is_persistent`: it keeps over a restart what it was told.

    `program` is what a user of this machine would get, unless given; `settings` are further ones of the server's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_persistent: bool = False,
        program: Path | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self._folder = folder
        #: Those of the next start.
        self.settings = dict(settings or {})
        self._program = program or find_server()
        self._is_persistent = is_persistent
        self._port = free_port()
        self._has_run = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def port(self) -> int:
        return self._port

    def start(self) -> None:
        """Start it and wait until it answers. The first time, it takes another port where its own was taken."""
        wait_for(self._try_to_start, what="the server answers", timeout_s=30)

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    close = kill

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is answered. `thaw` or `kill` ends it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        client = open_client(self.url)
        try:
            yield client
        finally:
            client.close()

    def _try_to_start(self) -> bool:
        # fmt: off
        options = {
            "--port": self._port, "--bind": "127.0.0.1", "--dir": self._folder, "--save": "",
            "--appendonly": "yes" if self._is_persistent else "no",
            **{f"--{name}": value for name, value in self.settings.items()},
        }
        # fmt: on
        arguments = [str(text) for pair in options.items() for text in pair]
        self._process = subprocess.Popen([self._program, *arguments], stdout=subprocess.DEVNULL)
        wait_for(lambda: self._has_ended() or self._answers(), what="the server answers", timeout_s=10)
        if not self._has_ended():
            self._has_run = True
            return True
        assert not self._has_run, f"port {self._port} was taken while the server was down"
        self._process = None
        self._port = free_port()
        return False

    def _has_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    def _answers(self) -> bool:
        assert self._process is not None
        with self.client() as client:
            try:
                # Not somebody else's, who was faster to take the port.
                return bool(client.info("server")["process_id"] == self._process.pid)
            except redis.RedisError:
                return False


class Proxy:
    """A way to a server that can be cut without either end noticing: what a dead router or a lost virtual machine does.

    `url` leads to the server while it is open. After `cut`, the connections stay up and nothing passes, in either
    direction; new ones are taken and get nowhere. After `mend`, what is new passes; the old ones stay dead.
    """

    def __init__(self, server: RedisServer) -> None:
        self._target = ("127.0.0.1", server.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._is_cut = False
        self._is_closing = False
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._dead: list[socket.socket] = []
        self._woken, self._wake = socket.socketpair()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_closing = True
        self._wake.send(b"x")
        self._thread.join()
        for connection in (*self._pairs, *self._dead, self._listener, self._wake, self._woken):
            connection.close()

    def cut(self) -> None:
        """Let nothing pass any more; nobody is told."""
        with self._lock:
            self._is_cut = True
            self._dead += self._pairs
            self._pairs.clear()
        self._wake.send(b"x")

    def mend(self) -> None:
        """Let new connections pass."""
        with self._lock:
            self._is_cut = False

    def _run(self) -> None:
        while not self._is_closing:
            with self._lock:
                sources = [self._listener, self._woken, *self._pairs]
            readable, _, _ = select.select(sources, [], [])
            with self._lock:
                for source in readable:
                    if source is self._listener:
                        self._take()
                    elif source is self._woken:
                        source.recv(100)
                    elif source in self._pairs:
                        self._pass_on(source)

    def _take(self) -> None:
        client, _ = self._listener.accept()
        if self._is_cut:
            self._dead.append(client)
            return
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self._pairs[client], self._pairs[server] = server, client

    def _pass_on(self, source: socket.socket) -> None:
        other = self._pairs[source]
        try:
            data = source.recv(65_536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for end in (source, other):
            del self._pairs[end]
            end.close()


def free_port() -> int:
    for port in random.Random().sample(_PORTS, 100):
        with socket.socket() as probe:
            # As servers do: a port that was used a minute ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise AssertionError("no free port")
