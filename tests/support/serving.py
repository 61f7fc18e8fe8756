"""`batcher serve` as a process, for tests that talk to it over HTTP."""

import contextlib
import re
import signal
from collections.abc import Iterator, Mapping, Sequence

from tests.support.family import Command, Family
from tests.support.waiting import wait_for

#: Seconds in which a model is loaded on a busy machine.
START_S = 120


class Server:
    """A server that listens and has loaded its models."""

    def __init__(self, command: Command, base_url: str) -> None:
        self._command = command
        #: Ends in `/v1`, as the SDK wants it.
        self.base_url = base_url

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")

    @property
    def port(self) -> int:
        return int(self.root_url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self._command.pid

    @property
    def stderr(self) -> str:
        return self._command.stderr

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, and wait; returns its exit code."""
        self._command.process.send_signal(number)
        return self._command.wait()


@contextlib.contextmanager
def serve(
    family: Family, *options: object, env: Mapping[str, str] | None = None, prefix: Sequence[object] = ()
) -> Iterator[Server]:
    """A server on a free port of the loopback, with its jobs in the folder of `family`. Gone afterwards.

    `env` and `prefix` as for `Family.start`.
    """
    jobs = family.folder / "jobs"
    command = family.start("serve", "--port", 0, "--jobs-dir", jobs, *options, env=env, prefix=prefix)
    try:
        wait_for(
            lambda: "Serving" in command.stdout or command.process.poll() is not None,
            what="the server is ready",
            timeout_s=START_S,
        )
        found = re.search(r"http://\S+/v1", command.stdout)
        assert found, command.stderr
        yield Server(command, found[0])
    finally:
        family.kill_all()
        command.wait()
