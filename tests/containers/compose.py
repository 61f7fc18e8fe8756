"""docker and docker compose, as the trial calls them: one project of its own, ended with all that it kept."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = "batcher-trial"
#: Seconds. A machine that does other things, too.
PATIENCE_S = 900.0


class TrialError(Exception):
    """Something that must hold does not."""


def check(holds: bool, what: str) -> None:
    """Raise TrialError unless it holds."""
    if not holds:
        raise TrialError(what)


def docker(*words: str, env: Mapping[str, str] | None = None, may_fail: bool = False) -> str:
    """What a docker command prints, stderr included. Raises TrialError where it fails, unless it may."""
    done = subprocess.run(
        ["docker", *words],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    check(may_fail or done.returncode == 0, f"docker {' '.join(words)}: exit code {done.returncode}: {done.stdout}")
    return done.stdout


def wait_until(is_so: Callable[[], bool], *, what: str, timeout_s: float = PATIENCE_S) -> float:
    """Ask every second until it is so; returns the seconds that took. Raises TrialError after `timeout_s`."""
    started_at = time.monotonic()
    while not is_so():
        check(time.monotonic() - started_at < timeout_s, f"not within {timeout_s:.0f} s: {what}")
        time.sleep(1.0)
    return time.monotonic() - started_at


@dataclass
class Compose:
    """docker-compose.yml as a project, with settings in `env`; `override` is merged over it, as JSON in `folder`."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    override: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Not that of this clone, which Docker would make.
        self.env.setdefault("MODELS", str(self.folder / "no-models"))

    def __enter__(self) -> "Compose":
        self.end()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def __call__(self, *words: str, may_fail: bool = False) -> str:
        """`docker compose`."""
        override = self.folder / "override.json"
        override.write_text(json.dumps(self.override or {"services": {}}))
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(override))
        return docker("compose", "-p", PROJECT, *files, *words, env=self.env, may_fail=may_fail)

    def end(self) -> None:
        """Remove containers, networks and volumes."""
        self("--profile", "server", "down", "--volumes", "--timeout", "15", "--remove-orphans")

    def ids(self, service: str = "worker", *, all_of_them: bool = False) -> list[str]:
        """The running containers of a service, the oldest first; or also those that have ended."""
        return self("ps", "-q", *(["-a"] if all_of_them else []), service).split()

    def run(self, *words: str, mount: Path | None = None, may_fail: bool = False) -> str:
        """A command in a container of its own beside the workers."""
        mounts = ("-v", f"{mount}:/data:ro") if mount else ()
        return self("run", "--rm", "-T", "--no-deps", *mounts, "worker", *words, may_fail=may_fail)

    def submit(self, prompts: Path, job_id: str, *options: str) -> None:
        """Submit a file of the folder `prompts` lies in."""
        self.run("submit", f"/data/{prompts.name}", "--job-id", job_id, *options, mount=prompts.parent)

    def status(self, job_id: str) -> dict[str, Any]:
        """`batcher status --json`."""
        return dict(json.loads(self.run("status", job_id, "--json").strip().splitlines()[-1]))

    def wait_for_rows(self, job_id: str, number: int) -> float:
        """Wait until so many rows are done; returns the seconds."""
        return wait_until(lambda: int(self.status(job_id)["num_done"]) >= number, what=f"{number} rows of {job_id}")

    def logs(self, service: str = "worker") -> str:
        return self("logs", "--no-color", service)


def inspect(container: str) -> dict[str, Any]:
    """What the engine knows of a container."""
    return dict(json.loads(docker("inspect", container))[0])


def health(container: str) -> str:
    """`starting`, `healthy` or `unhealthy`."""
    return str(inspect(container)["State"]["Health"]["Status"])


def probes(container: str) -> Sequence[dict[str, Any]]:
    """The last five health checks of a container."""
    return list(inspect(container)["State"]["Health"]["Log"])
