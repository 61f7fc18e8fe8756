"""The packages that Batcher declares, llama.cpp's library, and the machine they run on."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from batcher.cli.doctor.finding import Check, Level, size_text
from batcher.endings import describe_exit
from batcher.installation import DISTRIBUTION, install_extras, install_requirement
from batcher.machine import read_memory, usable_cores

#: Seconds. Loading the library takes well under one; a file system that is this slow is a finding too.
IMPORT_TIMEOUT_S = 60.0

_NO_WORKER = "no prompt can be completed here, only submitted"

#: In a process of its own: a library built for another CPU dies of an illegal instruction.
_PROBE_LLAMA = """
import json, llama_cpp
from workers.engines.llama import binding
print(json.dumps([llama_cpp.__version__, binding.supports_gpu(), binding.gpu_libraries()]))
"""


#: In a process of its own too: broken kernels end it by a signal.
_CHECK_KERNELS = """
import dataclasses, json
from workers.engines.llama.kernels import check_kernels
print(json.dumps([[check.is_sound, dataclasses.asdict(check)] for check in check_kernels()]))
"""

_BROKEN_KERNELS = (
    "build llama-cpp-python again by a newer compiler, or without AMX: CFLAGS and CXXFLAGS="
    "'-mno-amx-tile -mno-amx-int8 -mno-amx-bf16', then pip install --force-reinstall --no-cache-dir --no-deps "
    "--no-binary llama-cpp-python llama-cpp-python"
)


def check_packages(engine: str = "worker") -> Iterator[Check]:
    """Python and the packages that Batcher declares, with the versions it declares; `engine` is the extra for what
    completes prompts.
    """
    yield Check("python", Level.OK, f"{sys.version.split()[0]} at {sys.executable}")
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        message = f"{DISTRIBUTION} is not installed as a package, so its requirements are unknown"
        yield Check("batcher", Level.WARN, message, install_extras(engine))
        return
    for requirement in map(Requirement, declared):
        is_needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        is_of_engine = requirement.marker is not None and requirement.marker.evaluate({"extra": engine})
        if is_needed or is_of_engine:
            yield _check_package(requirement, extra=None if is_needed else engine)


def _check_package(requirement: Requirement, *, extra: str | None) -> Check:
    """Check a package that all commands need, or only those that complete prompts and need an `extra`."""
    remedy = install_requirement(requirement) if extra is None else install_extras(extra)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        message = "not installed" if extra is None else f"not installed; {_NO_WORKER}"
        return Check(requirement.name, Level.FAIL, message, remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        message = f"{version}, but {requirement.specifier} is needed"
        return Check(requirement.name, Level.FAIL, message, install_requirement(requirement))
    return Check(requirement.name, Level.OK, version)


def check_llama() -> Check:
    """Whether llama.cpp's library loads, and whether it was built for a GPU."""
    name = "llama.cpp"
    try:
        probe = _run(_PROBE_LLAMA)
    except subprocess.TimeoutExpired:
        return Check(name, Level.WARN, f"not loaded after {IMPORT_TIMEOUT_S:.0f} s", "check the disk it is on")
    if probe.returncode < 0:
        reason = describe_exit(probe.returncode)
        remedy = "rebuild llama-cpp-python on this machine (`make setup` after deleting .venv)"
        return Check(name, Level.FAIL, f"loading the library died of {reason}; {_NO_WORKER}", remedy)
    if probe.returncode:
        what = f"cannot be loaded ({_last_line(probe)}); {_NO_WORKER}"
        return Check(name, Level.FAIL, what, install_extras("worker"))
    version, has_gpu, kinds = json.loads(probe.stdout)
    if kinds and not has_gpu:
        what = f"llama-cpp-python {version}, built for GPUs ({', '.join(kinds)}), but sees none; workers end"
        remedy = "check the driver (`nvidia-smi`) and that a container is given the GPU (--gpus all), or --gpu-layers 0"
        return Check(name, Level.WARN, what, remedy)
    return Check(name, Level.OK, f"llama-cpp-python {version}, built for {'GPU offload' if has_gpu else 'CPUs only'}")


def check_kernels() -> Check:
    """Whether llama.cpp's matrix kernels for this processor compute what its plain ones do."""
    name = "kernels"
    try:
        done = _run(_CHECK_KERNELS)
    except subprocess.TimeoutExpired:
        return Check(
            name, Level.WARN, f"not compared after {IMPORT_TIMEOUT_S:.0f} s", "run this again on a calm machine"
        )
    if done.returncode < 0:
        reason = describe_exit(done.returncode)
        what = f"llama.cpp's kernels for this processor die of {reason}; {_NO_WORKER}"
        return Check(name, Level.FAIL, what, _BROKEN_KERNELS)
    if done.returncode:
        return Check(
            name, Level.WARN, f"not compared ({_last_line(done)})", "correct what is wrong with llama.cpp first"
        )
    found = json.loads(done.stdout)
    for is_sound, kernels in found:
        if not is_sound:
            what = f"{kernels['layout']} computes {kernels['worst']} rows wrong; texts would be, too"
            return Check(name, Level.FAIL, what, _BROKEN_KERNELS)
    layouts = [f"{kernels['layout']} for {', '.join(kernels['types'])}" for _, kernels in found]
    what = f"as exact as the plain ones: {'; '.join(layouts)}" if layouts else "only the plain ones"
    return Check(name, Level.OK, what)


def _run(script: str) -> subprocess.CompletedProcess[str]:
    """Run `script` by this Python. Raises subprocess.TimeoutExpired."""
    command = [sys.executable, "-P", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["unknown error"])[-1]


def check_machine() -> Check:
    """Cores and memory that this process may use."""
    memory = read_memory()
    return Check(
        "machine",
        Level.OK,
        f"{usable_cores()} cores, {size_text(memory.available)} of {size_text(memory.total)} memory available",
    )
