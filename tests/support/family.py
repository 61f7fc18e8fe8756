"""Real commands in real processes: a real broker, real workers, a tiny random model.

Every process that a test starts carries a mark in its environment, which its children inherit. So the tests find the
whole family, wherever it went, and nothing of it outlives a test.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batcher.broker.embedded import folder_for
from batcher.jobdir.attempts import AttemptEnd, read_ends
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from tests.support.job_files import result_rows
from tests.support.waiting import PATIENCE_S, wait_for

_MARK = "BATCHER_TEST_MARK"


@dataclass
class Command:
    """A running `batcher`, its output in files."""

    process: subprocess.Popen[bytes]
    stdout_path: Path
    stderr_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"pid {self.pid} still runs; it said:\n{self.stdout}\n{self.stderr}") from None


@dataclass
class Family:
    """All processes that a test starts, and theirs."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    jobs: list[Path] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a process has in its environment that is to be one of the family."""
        return {_MARK: self.mark}

    def start(self, *arguments: object, env: Mapping[str, str] | None = None, prefix: Sequence[object] = ()) -> Command:
        """Start `batcher` with these arguments, in the test's folder and in a session of its own.

        `prefix` is a command that goes on as the one it is given behind its own words: `("nice", "-n", 5)`.
        """
        command = [*map(str, prefix), str(Path(sys.executable).with_name("batcher")), *map(str, arguments)]
        return self._start(command, env=env)

    def start_script(self, script: str, *arguments: object, env: Mapping[str, str] | None = None) -> Command:
        """Start a Python program, likewise."""
        path = self.folder / "script.py"
        path.write_text(script)
        return self._start([sys.executable, str(path), *map(str, arguments)], env=env)

    def _start(self, words: Sequence[str], *, env: Mapping[str, str] | None) -> Command:
        number = len(list(self.folder.glob("*.stdout")))
        stdout, stderr = (self.folder / f"{number}.{name}" for name in ("stdout", "stderr"))
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env={**os.environ, **self.environment, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        command = Command(process, stdout, stderr)
        self.commands.append(command)
        return command

    def run(
        self,
        *arguments: object,
        code: int | None = None,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[object] = (),
    ) -> Command:
        """Run `batcher` to its end. Where a `code` is given it must exit with it, and show no traceback."""
        command = self.start(*arguments, env=env, prefix=prefix)
        found = command.wait()
        if code is not None:
            assert found == code, f"exit code {found}:\n{command.stderr}"
            assert "Traceback" not in command.stderr
        return command

    def pids(self, *, text: str = "") -> list[int]:
        """The living processes of the family whose command line holds `text`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                if text.encode() in command and self._is_ours((entry / "environ").read_bytes(), command):
                    found.append(int(entry.name))
        return found

    def child_of(self, command: Command) -> int | None:
        """The worker's child that a command has now, if it has one."""
        for pid in self.pids(text="workers.child"):
            with contextlib.suppress(OSError):
                # After the name, which is in brackets and can hold anything: state, parent.
                if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == command.pid:
                    return pid
        return None

    def _is_ours(self, environ: bytes, command: bytes) -> bool:
        # The server writes its title over its environment; in the title is its socket.
        return f"{_MARK}={self.mark}".encode() in environ or any(
            os.fsencode(folder_for(job)) in command for job in self.jobs
        )

    def kill_all(self) -> None:
        """SIGKILL to everything at once; returns when it is gone."""
        deadline = time.monotonic() + PATIENCE_S
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline
            time.sleep(0.02)


def children_of(parent: int, text: str) -> list[int]:
    """The living children of a process whose command line holds `text`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = status.read_text().rpartition(")")[2].split()[:2]
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue  # ended meanwhile
        if int(ppid) == parent and state != "Z" and text.encode() in command:
            found.append(int(status.parent.name))
    return found


def write_prompts(path: Path, number: int) -> Path:
    """A file of `number` short prompts."""
    path.write_text("".join(f'{{"prompt": "hello {i}", "note": "n{i}"}}\n' for i in range(number)))
    return path


def chunk_rows(job: JobDir) -> dict[int, dict[str, Any]]:
    """The rows that whole chunks hold, by number."""
    chunks = [chunk for info in job.manifest.shards for chunk in job.chunks(info.shard)]
    return {row["row"]: row for chunk in chunks for row in read_file(chunk.path).to_pylist()}


def attempt_ends(job: JobDir) -> list[AttemptEnd]:
    """What is written of attempts that did not end in good order: one for each shard that a crash interrupted."""
    return [end for info in job.manifest.shards for end in read_ends(job, info.shard)]


def has_chunks(job: JobDir) -> bool:
    """Whether rows of an unfinished shard were saved."""
    return any(job.path.glob("chunks/*/*.parquet"))


def submit(family: Family, redis_url: str, *, rows: int, shard_rows: int, options: Sequence[object] = ()) -> JobDir:
    """Submit a job of `rows` prompts for the model `tiny`; long ones (480 tokens), unless `options` say otherwise."""
    prompts = write_prompts(family.folder / "prompts.jsonl", rows)
    jobs = family.folder / "jobs"
    command = family.run(
        *("submit", prompts, "--broker", redis_url, "--jobs-dir", jobs, "--model", "tiny"),
        *("--max-tokens", 480, "--shard-rows", shard_rows, *options),
    )
    assert command.process.returncode in {0, 1}, command.stderr
    return JobDir(jobs / command.stdout.splitlines()[0])


def start_worker(
    family: Family,
    redis_url: str,
    model: Path,
    name: str,
    *options: object,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[object] = (),
) -> Command:
    """Start a worker of one thread for the model `tiny`."""
    return family.start(
        *("worker", "--broker", redis_url, "--jobs-dir", family.folder / "jobs", "--model", f"tiny={model}"),
        *("--name", name, "--threads", 1, *options),
        env=env,
        prefix=prefix,
    )


def wait_until_ready(*workers: Command) -> None:
    """Wait until the models are loaded and the workers wait for shards."""
    wait_for(lambda: all("is ready" in worker.stdout for worker in workers), what="the workers are ready")


def assert_every_row_once(job: JobDir, rows: int, *, errors: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
    """The audit: input rows = result rows, each once and in order, all ok but `errors` (row to error code)."""
    found = result_rows(job)
    assert [row["row"] for row in found] == list(range(rows))
    assert {row["row"]: row["error_code"] for row in found if row["status"] != "ok"} == dict(errors or {})
    assert job.success_path.exists()
    return found
