"""Whether the kernel has killed for lack of memory: what tells an OOM kill from any other SIGKILL."""

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def count_oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory so far; compare two counts.

    Of this process's own cgroup (v2 `memory.events`, v1 `memory.oom_control`) and of the whole machine
    (`/proc/vmstat`), added up: each kill of ours raises at least one of them. A child's is counted by the time it can
    be waited for. 0 where the kernel does not say.
    """
    return sum(map(_read_counter, [Path("/proc/vmstat"), *_own_cgroup_files()]))


def _own_cgroup_files() -> list[Path]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(_CGROUPS / path.lstrip("/") / "memory.events")
        elif controllers == "memory":
            found.append(_CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _read_counter(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
