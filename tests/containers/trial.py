"""Runs the containers on a real engine: `python -m tests.containers.trial`. Takes half an hour and the build.

Needs docker with BuildKit and Compose v2; `tests/containers/engine.sh` starts one where there is none. An index and a
CA for the build are given in the environment, as compose takes them. Prints a line for each thing that must hold, and
ends with 1 if one does not.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from tests.containers.compose import (
    PROJECT,
    ROOT,
    Compose,
    TrialError,
    check,
    docker,
    health,
    inspect,
    probes,
    wait_until,
)

IMAGE = f"{PROJECT}-worker"
NUM_ROWS = 480
#: Of the issue that asked for a smaller image, in MB: /opt/batcher, and the image on the slim Python.
MAX_INSTALLED_MB, MAX_IMAGE_MB = 300, 450
#: As OpenShift gives them.
RANDOM_USER = "1000660000:0"

Trial = Callable[[Path], str]


def build(folder: Path) -> str:
    """The image builds, and is small."""
    started_at = time.monotonic()
    Compose(folder)("build", "worker")
    took_s = time.monotonic() - started_at
    image_mb = int(docker("image", "inspect", "-f", "{{.Size}}", IMAGE)) / 1e6
    installed_mb = int(docker("run", "--rm", "--entrypoint", "du", IMAGE, "-sm", "/opt/batcher").split()[0])
    check(image_mb < MAX_IMAGE_MB, f"the image has {image_mb:.0f} MB")
    check(installed_mb < MAX_INSTALLED_MB, f"/opt/batcher has {installed_mb} MB")
    return f"image {image_mb:.0f} MB, /opt/batcher {installed_mb} MB, built in {took_s:.0f} s (less what was cached)"


def three_commands(folder: Path) -> str:
    """The three commands of docs/containers.md."""
    with Compose(folder) as compose:
        compose("up", "-d", "--build", "--scale", "worker=2")
        file = "/data/jobs/completions/prompts.jsonl"
        compose("run", "--rm", "-T", "-v", f"{ROOT}:/data:ro", "worker", "submit", file, "--job-id", "first", "--wait")
        compose("cp", "worker:/jobs/first/results", str(folder / "results"))
        num_rows = pq.read_table(folder / "results").num_rows
        for container in compose.ids():
            wait_until(lambda: health(container) == "healthy", what="the worker is healthy", timeout_s=120)  # noqa: B023
        return f"{num_rows} rows, both workers healthy"


def faults_as_uid_1000(folder: Path) -> str:
    """A job through all that happens to containers, as compose has it: a read-only root, user 1000."""
    return _faults(folder, "1000:0")


def faults_as_random_uid(folder: Path) -> str:
    """The same as a user that no file knows, in group 0."""
    return _faults(folder, RANDOM_USER)


def bind_mount_that_is_missing(folder: Path) -> str:
    """A folder that Docker had to make, for root: told at the start, and mended as it says."""
    jobs = folder / "missing"
    with Compose(folder, {"JOBS": str(jobs)}) as compose:
        compose("up", "-d")
        wait_until(lambda: inspect(_one(compose))["RestartCount"] > 0, what="the worker has ended", timeout_s=120)
        said = compose.logs()
        check("Permission denied" in said and "install -d -o 1000" in said, f"no remedy in: {said}")
        check("is ready" not in said and "Traceback" not in said, f"not clear: {said}")
        compose("down", "--timeout", "15")
        jobs.rmdir()
        jobs.mkdir()
        shutil.chown(jobs, 1000)
        compose("up", "-d")
        compose.submit(_prompts(folder, 8), "small")
        compose.wait_for_rows("small", 8)
        _audit(compose, "small", 8)
    return "exit with the remedy, and then a job in the folder as the remedy makes it"


def little_memory(folder: Path) -> str:
    """300 MB, two slots, a check every 12 s: no kill, and each check passes."""
    with Compose(folder, {"MEMORY": "300m", "BATCHER_SLOTS": "2"}, _checked_every("12s")) as compose:
        compose("up", "-d")
        container = _one(compose)
        wait_until(lambda: health(container) == "healthy", what="the worker is healthy", timeout_s=180)
        compose.env["MEMORY"] = "0"  # for the commands beside it
        compose.submit(_prompts(folder, NUM_ROWS), "tight")
        exits = set[int]()
        took_s = wait_until(lambda: _note_probes(container, exits) and _is_complete(compose, "tight"), what="the job")
        state = inspect(container)
        _audit(compose, "tight", NUM_ROWS)
        status = compose.status("tight")
        check(exits == {0}, f"health checks ended with {sorted(exits)}: {probes(container)}")
        check(state["RestartCount"] == 0 and not state["State"]["OOMKilled"], f"killed: {state['State']}")
        check(status["num_crashes"] == 0, f"{status['num_crashes']} attempts crashed")
        return f"{NUM_ROWS} rows in {took_s:.0f} s, every health check passed, nothing was killed"


def too_little_memory(folder: Path) -> str:
    """200 MB: the worker says what is short, no row is blamed, and with more memory all are completed."""
    prompts = _prompts(folder, 48)
    with Compose(folder, {"MEMORY": "200m", "BATCHER_SLOTS": "2"}) as compose:
        compose("up", "-d")
        compose.env["MEMORY"] = "0"
        compose.submit(prompts, "short")
        wait_until(lambda: "memory" in compose.logs(), what="memory is named", timeout_s=300)
        time.sleep(30)  # so that a shard in its hands would be tried again
        said = [line for line in compose.logs().splitlines() if "memory" in line]
        status = compose.status("short")
        check(status["num_errors"] == 0 and status["num_quarantined"] == 0, f"rows were blamed: {status}")
        compose("up", "-d", "--force-recreate", "worker")
        compose.wait_for_rows("short", 48)
        _audit(compose, "short", 48)
        return f"says: {said[0].split('|')[-1].strip()[:160]}"


def read_only_without_tmp(folder: Path) -> str:
    """A read-only root without /tmp: works, or says what is missing."""
    file = _prompts(folder, 1)
    said = docker(
        *("run", "--rm", "--read-only", "-v", f"{file.parent}:/data:ro", "--tmpfs", "/jobs:uid=1000", IMAGE),
        *("run", "/data/prompts.jsonl", "-o", "/jobs/one"),
        may_fail=True,
    )
    check("Traceback" not in said and "--tmpfs /tmp" in said, f"not clear: {said}")
    with Compose(folder) as compose:
        compose("up", "-d", "redis")
        words = ("run", "-d", "--read-only", "--network", f"{PROJECT}_default", "--tmpfs", "/jobs:uid=1000")
        worker = docker(*words, "-e", "BATCHER_BROKER=redis://redis:6379/0", IMAGE).split()[-1]
        try:
            wait_until(
                lambda: "is ready" in (log := docker("logs", worker)) or "Error" in log, what="the worker speaks"
            )
            log = docker("logs", worker)
        finally:
            docker("rm", "-f", worker)
        check("Traceback" not in log, f"not clear: {log}")
    return f"`run` names the remedy; a worker says: {log.strip().splitlines()[-1][:100]}"


def models_of_somebody_else(folder: Path) -> str:
    """A models folder that the container's user may not read is called that, not missing."""
    models = folder / "models"
    models.mkdir(mode=0o700)
    (models / "mine.gguf").write_bytes(b"GGUF")
    with_broker = ("-e", "BATCHER_BROKER=redis://127.0.0.1:1/0")
    said = docker(
        "run", "--rm", *with_broker, "-v", f"{models}:/models:ro", IMAGE, "worker", "--model", "mine", may_fail=True
    )
    check("Permission denied" in said and "mode 700" in said, f"not clear: {said}")
    return said.strip().splitlines()[-1][:160]


def server(folder: Path) -> str:
    """The server's profile comes up and is healthy."""
    with Compose(folder, {"BATCHER_API_KEYS": "k" * 32}) as compose:
        compose("--profile", "server", "up", "-d", "server")
        (container,) = compose("--profile", "server", "ps", "-q", "server").split()
        took_s = wait_until(lambda: health(container) == "healthy", what="the server is healthy", timeout_s=180)
        return f"healthy after {took_s:.0f} s"


TRIALS: tuple[Trial, ...] = (
    build,
    three_commands,
    faults_as_uid_1000,
    faults_as_random_uid,
    bind_mount_that_is_missing,
    little_memory,
    too_little_memory,
    read_only_without_tmp,
    models_of_somebody_else,
    server,
)


def main() -> int:
    """Run the trials, or those named; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [trial.__name__ for trial in TRIALS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)} (default: all)")
    chosen = set(parser.parse_args().names or names)
    if unknown := chosen - set(names):
        parser.error(f"no such trial: {', '.join(sorted(unknown))}")
    num_failed = 0
    for trial in TRIALS:
        if trial.__name__ not in chosen:
            continue
        started_at = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="batcher-trial-"))
        folder.chmod(0o755)
        try:
            mark, found = "ok  ", trial(folder)
        except TrialError as exc:
            mark, found = "FAIL", str(exc)
            num_failed += 1
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print(f"{mark} {trial.__name__} ({time.monotonic() - started_at:.0f} s): {found}", flush=True)
    return 1 if num_failed else 0


def _faults(folder: Path, user: str) -> str:
    with Compose(folder, {"RUN_AS": user}) as compose:
        compose("up", "-d")
        compose.submit(_prompts(folder, NUM_ROWS), "job", "--shard-rows", "16")
        compose.wait_for_rows("job", 16)
        compose("up", "-d", "--scale", "worker=3", "--no-recreate")
        compose.wait_for_rows("job", 96)
        killed, stopped, _ = compose.ids()
        docker("kill", "--signal", "KILL", killed)
        compose.wait_for_rows("job", 160)
        started_at = time.monotonic()
        docker("stop", "--time", "30", stopped)
        stop_s = time.monotonic() - started_at
        check(inspect(stopped)["State"]["ExitCode"] == 0, f"stopped with {inspect(stopped)['State']}")
        compose("restart", "redis")
        compose.wait_for_rows("job", 240)
        compose("down", "--timeout", "30")
        compose("up", "-d", "--scale", "worker=2")
        compose.wait_for_rows("job", NUM_ROWS)
        wait_until(lambda: _is_complete(compose, "job"), what="the job is complete", timeout_s=120)
        _audit(compose, "job", NUM_ROWS)
        status = compose.status("job")
        check(status["num_errors"] == 0, f"{status['num_errors']} error rows")
        check("Traceback" not in compose.logs(), "a traceback in the logs")
        read_only = inspect(compose.ids()[0])["HostConfig"]["ReadonlyRootfs"]
        return (
            f"{NUM_ROWS} rows once each through scale 1 to 3, kill, stop ({stop_s:.1f} s), Redis restart, down, up; as "
            f"{user}, read-only root {read_only}, {status['num_attempts']} attempts of {status['num_shards']} shards"
        )


def _prompts(folder: Path, number: int) -> Path:
    """A file of its own folder, which the container's user may read."""
    path = folder / "input" / "prompts.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = ({"custom_id": f"r{i}", "prompt": f"Number {i} is", "max_tokens": 16} for i in range(number))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def _audit(compose: Compose, job_id: str, number: int) -> None:
    """Each row stands in the results once."""
    results = compose.folder / f"results-{job_id}"
    compose("cp", f"worker:/jobs/{job_id}/results", str(results))
    found = Counter(pq.read_table(results, columns=["custom_id"]).column("custom_id").to_pylist())
    check(found == Counter(f"r{i}" for i in range(number)), f"{len(found)} rows, {found.most_common(3)}")


def _one(compose: Compose) -> str:
    (container,) = compose.ids(all_of_them=True)
    return container


def _is_complete(compose: Compose, job_id: str) -> bool:
    return bool(compose.status(job_id)["state"] == "complete")


def _note_probes(container: str, exits: set[int]) -> bool:
    exits.update(int(probe["ExitCode"]) for probe in probes(container))
    return True


def _checked_every(interval: str) -> dict[str, object]:
    return {"services": {"worker": {"healthcheck": {"interval": interval}}}}


if __name__ == "__main__":
    sys.exit(main())
