"""What this process may use of the machine, within the limits of its container.

In a container /proc/meminfo tells of the whole machine. What counts is the least that the process's control groups and
all their parents allow: cgroup v2 (`memory.max`, `memory.high`) or v1 (`memory.limit_in_bytes`). Where they are mounted
and which of them is ours stands in /proc/self/mountinfo and /proc/self/cgroup (proc(5), cgroups(7)).
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, without swap: `total` that this process may ever take, `available` to take now."""

    total: int
    available: int


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
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    for mount, path, names in _hierarchies(root):
        relative = PurePosixPath(*path.parts[1:])
        for folder in (relative, *relative.parents):
            group = _read_group(mount / folder, names)
            if group is not None:
                yield group


def _hierarchies(root: Path) -> Iterator[tuple[Path, PurePosixPath, _Names]]:
    """Where memory is controlled: the mount, this process's group in it (from `/`), and the version's names."""
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
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        place, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        # Fields 4 and 5: which folder of the hierarchy is mounted, and where.
        base, mount = place.split(" ")[3:5]
        yield root / mount.lstrip("/"), _below(paths[kind], base), _V2 if kind == "cgroup2" else _V1


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


def _droppable_cache(folder: Path, names: _Names) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(f"{names.cache} "):
                return int(line.split()[1])
    return 0
