"""A real server of the Redis protocol, for tests with a broker that many share."""

import socket
import subprocess
from pathlib import Path

from batcher.broker import connect, find_server
from batcher.errors import BrokerError
from tests.waiting import wait_for


class RedisServer:
    """A server on a free port of the loopback, which keeps nothing over a restart."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {"--port": self._port, "--bind": "127.0.0.1", "--save": "", "--dir": self._folder}
        arguments = [str(text) for pair in options.items() for text in pair]
        self._process = subprocess.Popen([find_server(), *arguments], stdout=subprocess.DEVNULL)
        wait_for(self._answers, what="the server answers", timeout_s=10)

    def kill(self) -> None:
        """SIGKILL, and wait for it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            connect(self.url).close()
        except BrokerError:
            return False
        return True
