"""Fixtures of the fault tests."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.family import Family
from tests.support.waiting import wait_for
from tests.support.wall_clock import WallClock, sweep_shared_memory

#: A command that goes on as the one given behind it, limited in something: `Family.start(..., prefix=...)`.
Prefix = tuple[object, ...]

_CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def make_memory_group() -> Iterator[Callable[[int], Path]]:
    """Makes a control group with so many bytes; the kernel kills a process of it where they do not suffice.

    Skips the test where this user may not make one.
    """
    made: list[Path] = []

    def make(num_bytes: int) -> Path:
        group = _make_group(num_bytes)
        if group is None:
            pytest.skip("this user may not limit memory with control groups")
        made.append(group)
        return group

    yield make
    for group in made:
        # Its processes are killed before this; the kernel takes a moment to forget them.
        wait_for(partial(_remove, group), what=f"{group} is empty and gone", timeout_s=30)


@pytest.fixture
def memory_limit(make_memory_group: Callable[[int], Path]) -> Callable[[int], Prefix]:
    """Limits a command and all that it starts to so many bytes together."""

    def limit(num_bytes: int) -> Prefix:
        return ("sh", "-c", f'echo $$ > {make_memory_group(num_bytes)}/cgroup.procs && exec "$@"', "sh")

    return limit


@pytest.fixture
def clock(family: Family) -> Iterator[WallClock]:
    clock = WallClock(family.folder / "clock")
    clock.set("+0")
    yield clock
    family.kill_all()
    for command in family.commands:
        command.wait()
    sweep_shared_memory()


def _make_group(num_bytes: int) -> Path | None:
    """A group below our own (v1), or beside it (v2, where a group with processes can't have limited ones below)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parents, name = [_CGROUPS / "memory" / path.lstrip("/")], "memory.limit_in_bytes"
        elif not controllers:
            own = _CGROUPS / path.lstrip("/")
            parents, name = [own, own.parent], "memory.max"
        else:
            continue
        for parent in parents:
            group = parent / f"batcher-test-{uuid.uuid4().hex[:12]}"
            try:
                group.mkdir()
            except OSError:
                continue
            # Opened without O_CREAT: where the controller is not on for the group, the file is not there.
            with contextlib.suppress(OSError), (group / name).open("r+") as file:
                file.write(str(num_bytes))
                return group
            group.rmdir()
    return None


def _remove(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
