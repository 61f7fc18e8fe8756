"""What this process may use of the machine, within the limits of its container.

In a container /proc/meminfo and /proc/cpuinfo tell of the whole machine. What counts is the least that the process's
control groups and all their parents allow: cgroup v2 (`memory.max`, `memory.high`, `cpu.max`) or v1
(`memory.limit_in_bytes`, `cpu.cfs_quota_us`). Where they are mounted and which of them is ours stands in
/proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7)).
"""

import contextlib
import math
import os
import platform
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: How sizes are written: with these, in 1024s.
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """The bytes that `800M` or `1.5 GiB` stands for, in 1024s; a plain number is bytes. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    num_bytes = int(float(found[1]) * 1024 ** _POWERS[found[2].upper()]) if found else 0
    if num_bytes < 1:
        raise ValueError("not a size; write 800m or 16g")
    return num_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, without swap: `total` that this process may ever take, `available` to take now."""

    total: int
    available: int


@dataclass(frozen=True, slots=True)
class Cores:
    """What this process may compute on: the logical cores of its affinity mask, and how many physical ones they are.

    `quota` is what its container allows it, in cores; None where there is no such limit.
    """

    num_logical: int
    num_physical: int
    quota: float | None = None

    @property
    def num_usable(self) -> int:
        """How many threads should compute: one a physical core, but no more than the quota, rounded up.

        Two threads on one physical core wait for the same units. Of a quota of 1.5 cores two threads made 1.1 to 1.4
        times as much as one.
        """
        return self.num_physical if self.quota is None else max(1, min(self.num_physical, math.ceil(self.quota)))


@dataclass(frozen=True, slots=True)
class _Names:
    """How a version of control groups calls its files, and in `memory.stat` the page cache that can be dropped."""

    limits: tuple[str, ...]
    usage: str
    cache: str


_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
# Above `high` a process is not killed but slowed down until it hardly moves.
_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")


def usable_cores() -> int:
    """Cores that are there for this process, see `Cores.num_usable`."""
    return read_cores().num_usable


def read_cores(*, root: Path = Path("/"), affinity: Collection[int] | None = None) -> Cores:
    """The cores for this process now. `root` is where /proc and /sys are, and `affinity` its mask, for tests."""
    if affinity is None:
        has_mask = hasattr(os, "sched_getaffinity")
        affinity = os.sched_getaffinity(0) if has_mask else range(os.cpu_count() or 1)
    folder = root / "sys/devices/system/cpu"
    # A core whose siblings are not told is taken for one of its own.
    siblings = {_read_text(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in affinity}
    quotas = [quota for mount, path, kind in _hierarchies(root, "cpu") for quota in _quotas(mount, path, kind)]
    return Cores(len(affinity), len(siblings), min(quotas, default=None))


def processor_name(*, root: Path = Path("/")) -> str:
    """The processor's model as the system calls it; only its architecture where the system does not tell."""
    for line in (_read_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def read_memory(*, root: Path = Path("/")) -> Memory:
    """The memory for this process now. `root` is where /proc and /sys are, for tests.

    Where the system does not tell (macOS) half of the machine's memory is taken for available.
    """
    memory = _of_machine(root)
    for group in _memory_groups(root):
        memory = Memory(min(memory.total, group.total), min(memory.available, group.available))
    return memory


def _of_machine(root: Path) -> Memory:
    sizes = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                sizes[name] = int(value.split()[0]) * 1024
    total = sizes.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, sizes.get("MemAvailable", total // 2))


def _memory_groups(root: Path) -> Iterator[Memory]:
    """What each control group that limits this process allows it; nothing where there are none."""
    for mount, path, kind in _hierarchies(root, "memory"):
        for folder in _with_parents(mount, path):
            group = _read_group(folder, _V2 if kind == "cgroup2" else _V1)
            if group is not None:
                yield group


def _quotas(mount: Path, path: PurePosixPath, kind: str) -> Iterator[float]:
    """The limits, in cores, that a group and its parents set."""
    for folder in _with_parents(mount, path):
        if kind == "cgroup2":
            # "150000 100000": microseconds in each period of so many; "max 100000": no limit.
            quota, _, period = (_read_text(folder / "cpu.max") or "").partition(" ")
        else:
            quota = _read_text(folder / "cpu.cfs_quota_us") or ""
            period = _read_text(folder / "cpu.cfs_period_us") or ""
        # Version 1 says -1 for no limit.
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            yield int(quota) / int(period)


def _with_parents(mount: Path, path: PurePosixPath) -> Iterator[Path]:
    relative = PurePosixPath(*path.parts[1:])
    for folder in (relative, *relative.parents):
        yield mount / folder


def _hierarchies(root: Path, controller: str) -> Iterator[tuple[Path, PurePosixPath, str]]:
    """Where `controller` may be: the mount, this process's group in it (from `/`), and `cgroup` or `cgroup2`."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif controller in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        place, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        # Fields 4 and 5: which folder of the hierarchy is mounted, and where.
        base, mount = place.split(" ")[3:5]
        yield root / mount.lstrip("/"), _below(paths[kind], base), kind


def _below(path: str, base: str) -> PurePosixPath:
    """`path` as seen from `base`. Without namespaces a container sees its own group mounted, and its path in the host's
    hierarchy; then the mount itself is its group.
    """
    try:
        relative = PurePosixPath(path).relative_to(base)
    except ValueError:
        return PurePosixPath("/")
    return PurePosixPath("/") if ".." in relative.parts else PurePosixPath("/", relative)


def _read_group(folder: Path, names: _Names) -> Memory | None:
    """What one group allows; None for one without a limit, and for the root, which has no such files."""
    limits = [limit for name in names.limits if (limit := _read_number(folder / name)) is not None]
    if not limits:
        return None
    used = _read_number(folder / names.usage) or 0
    limit = min(limits)
    return Memory(limit, max(0, limit - max(0, used - _droppable_cache(folder, names))))


def _read_number(path: Path) -> int | None:
    """The number in a file; None for `max`, and where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _read_text(path: Path) -> str | None:
    """What a file holds, without the spaces around; None where it can't be read."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return None


def _droppable_cache(folder: Path, names: _Names) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(f"{names.cache} "):
                return int(line.split()[1])
    return 0
