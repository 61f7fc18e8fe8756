"""What is wrong with this machine for Batcher, and the remedy: each check really tries the thing.

A check fails where no job could be run or submitted from here, and warns where only some can't, or where a job
would be slower or less safe than it could be.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import redis
from packaging.requirements import Requirement

from batcher import storage
from batcher.broker import connect, find_server, hide_password
from batcher.errors import BrokerError, StorageError
from batcher.models import ModelRef, is_gguf

#: Bytes. Below it a job of any size soon fills the disk.
LOW_DISK = 1 << 30
#: Seconds. Times in summaries come from several machines; beyond this they visibly disagree.
CLOCK_SKEW_S = 5.0
#: Seconds. Loading the library takes well under one; a file system that is this slow is a finding too.
IMPORT_TIMEOUT_S = 60.0

#: In a process of its own: a library built for another CPU dies of an illegal instruction.
_PROBE_LLAMA = """
import json, llama_cpp
print(json.dumps([llama_cpp.__version__, bool(llama_cpp.llama_supports_gpu_offload())]))
"""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `remedy` is empty where there is nothing to do."""

    name: str
    level: Level
    message: str
    remedy: str = ""


def run_checks(*, jobs_dir: Path, broker: str | None, models: Sequence[ModelRef]) -> Iterator[Check]:
    """All checks, one after the other as they are done. Touches disk (a probe file, removed again) and the broker."""
    yield from check_packages()
    yield check_llama()
    yield check_machine()
    yield from check_jobs_dir(jobs_dir)
    yield from check_broker(broker) if broker else [check_embedded_broker()]
    yield from check_models(models)


def check_packages() -> Iterator[Check]:
    """Python and the packages that Batcher declares, with the versions it declares."""
    yield Check("python", Level.OK, f"{sys.version.split()[0]} at {sys.executable}")
    try:
        declared = metadata.requires("batcher") or []
    except metadata.PackageNotFoundError:
        yield Check("batcher", Level.WARN, "not installed as a package, so its requirements are unknown", "make setup")
        return
    for requirement in map(Requirement, declared):
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        is_worker = requirement.marker is not None and requirement.marker.evaluate({"extra": "worker"})
        if is_needed or is_worker:
            # Without the worker's packages this machine can still submit.
            yield _check_package(requirement, Level.FAIL if is_needed else Level.WARN)


def _check_package(requirement: Requirement, level: Level) -> Check:
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, level, "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, level, f"{version}, but {requirement.specifier} is needed", remedy)
    return Check(requirement.name, Level.OK, version)


def check_llama() -> Check:
    """Whether llama.cpp's library loads, and whether it was built for a GPU."""
    name = "llama.cpp"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE_LLAMA], capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name, Level.WARN, f"not loaded after {IMPORT_TIMEOUT_S:.0f} s", "check the disk it is on")
    if probe.returncode < 0:
        reason = signal.Signals(-probe.returncode).name
        remedy = "rebuild llama-cpp-python on this machine (`make setup` after deleting .venv)"
        return Check(name, Level.WARN, f"loading the library died of {reason}; no worker can run here", remedy)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["unknown error"])[-1]
        return Check(
            name, Level.WARN, f"cannot be loaded ({last}); no worker can run here", "pip install 'batcher[worker]'"
        )
    version, has_gpu = json.loads(probe.stdout)
    return Check(name, Level.OK, f"llama-cpp-python {version}, built for {'GPU offload' if has_gpu else 'CPUs only'}")


def check_machine() -> Check:
    """Cores and memory that this process may use."""
    cores, memory = usable_cores(), available_memory()
    memory_text = "memory unknown" if memory is None else f"{memory / 2**30:.1f} GiB of memory available"
    return Check("machine", Level.OK, f"{cores} cores, {memory_text}")


def check_jobs_dir(jobs_dir: Path) -> Iterator[Check]:
    """Whether files can be created atomically under the jobs root: what every commit rests on."""
    name = "jobs folder"
    missing = [folder for folder in (jobs_dir, *jobs_dir.parents) if not folder.exists()]
    probe = jobs_dir / f".doctor-{uuid.uuid4().hex}"
    try:
        created, again = storage.create_if_absent(probe, b"1"), storage.create_if_absent(probe, b"2")
        if not created or again or probe.read_bytes() != b"1":
            remedy = "use --jobs-dir on a file system with hard links (ext4, xfs, btrfs, NFS)"
            yield Check(name, Level.FAIL, f"{jobs_dir}: creating a file that exists does not fail", remedy)
            return
        free = shutil.disk_usage(jobs_dir).free
    except (StorageError, OSError) as exc:
        remedy = "give a folder you may write to, on a file system with hard links, with --jobs-dir"
        yield Check(name, Level.FAIL, str(exc), remedy)
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
            for folder in missing:
                folder.rmdir()
    yield Check(name, Level.OK, f"{jobs_dir}: files are created atomically")
    level, remedy = (Level.WARN, "make room, or use another --jobs-dir") if free < LOW_DISK else (Level.OK, "")
    yield Check("disk", level, f"{free / 2**30:.1f} GiB free for jobs", remedy)


def check_embedded_broker() -> Check:
    """Which server `batcher run` would start."""
    try:
        return Check("broker", Level.OK, f"none given; one is started for each run from {find_server()}")
    except BrokerError as exc:
        return Check("broker", Level.WARN, str(exc), "install valkey or redis, or give --broker URL")


def check_broker(url: str) -> Iterator[Check]:
    """Reachable, keeping its queue over a restart and when memory is short, and agreeing about the time."""
    shown = hide_password(url)
    try:
        client = connect(url)
        started = time.time()
        seconds, microseconds = client.time()
        info: dict[str, Any] = client.info()
        client.close()
    except BrokerError as exc:
        yield Check("broker", Level.FAIL, str(exc), "start it, or correct --broker")
        return
    except redis.RedisError as exc:  # A managed server may forbid INFO or TIME.
        yield Check("broker", Level.WARN, f"{shown}: reachable, but won't tell about itself: {exc}")
        return
    yield Check("broker", Level.OK, f"{shown}: version {info.get('valkey_version') or info.get('redis_version')}")
    yield _check_persistence(info)
    yield _check_eviction(info)
    skew_s = seconds + microseconds / 1e6 - started
    level, remedy = (Level.OK, "") if abs(skew_s) < CLOCK_SKEW_S else (Level.WARN, "run an NTP client on both")
    yield Check(
        "clock", level, f"the broker's clock is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}", remedy
    )


def _check_persistence(info: dict[str, Any]) -> Check:
    if info.get("aof_enabled"):
        return Check("broker persistence", Level.OK, "append-only file")
    return Check(
        "broker persistence",
        Level.WARN,
        "no append-only file: a restart forgets queued shards until a worker or `batcher resume` queues them again",
        "redis-cli CONFIG SET appendonly yes, and the same in its configuration file",
    )


def _check_eviction(info: dict[str, Any]) -> Check:
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction" or not info.get("maxmemory"):
        return Check("broker memory", Level.OK, f"policy {policy}, limit {info.get('maxmemory') or 'none'}")
    return Check(
        "broker memory",
        Level.WARN,
        f"policy {policy} with a limit of {info['maxmemory']} bytes: queues and leases may be evicted",
        "redis-cli CONFIG SET maxmemory-policy noeviction",
    )


def check_models(models: Sequence[ModelRef]) -> Iterator[Check]:
    """Whether the model files are there, look like GGUF, and fit into memory."""
    if not models:
        yield Check("models", Level.WARN, "none known", "give --model NAME=PATH, or set BATCHER_MODELS_DIR")
    for model in models:
        yield _check_model(model)


def _check_model(model: ModelRef) -> Check:
    name = f"model {model.name}"
    try:
        size, memory = model.path.stat().st_size, available_memory()
        if not is_gguf(model.path):
            return Check(name, Level.FAIL, f"{model.path}: not a GGUF file", "download or convert it again")
    except OSError as exc:
        return Check(
            name, Level.FAIL, f"{model.path}: cannot read: {exc.strerror or exc}", "check path and permissions"
        )
    message = f"{model.path}, {size / 2**30:.2f} GiB"
    if memory is not None and size > memory:
        remedy = "use a smaller quantization, or offload it with --gpu-layers"
        return Check(name, Level.WARN, f"{message}: more than the memory available ({memory / 2**30:.1f} GiB)", remedy)
    return Check(name, Level.OK, message)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, within the limit of a container; None where the system won't tell."""
    sizes = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                sizes.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        # cgroup v2; "max" where there is no limit.
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes, default=None)
