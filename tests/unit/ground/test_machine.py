"""Memory within the limits of control groups, as the kernel shows them to a process."""

import os
import sys
from pathlib import Path

import pytest

from batcher.machine import Memory, parse_size, read_memory, usable_cores

GIB = 2**30
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_OTHER = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of 64 GiB, of which 50 are available, without control groups."""
    write(tmp_path, "proc/meminfo", f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable:  {50 * 2**20} kB\n")
    return tmp_path


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def write_v2(root: Path, group: str, *, limit: object, high: object = "max", used: int, cache: int) -> None:
    write(root, f"{group}/memory.max", limit)
    write(root, f"{group}/memory.high", high)
    write(root, f"{group}/memory.current", used)
    write(root, f"{group}/memory.stat", f"anon 1\nfile 2\nactive_file 3\ninactive_file {cache}")


def write_v1(root: Path, group: str, *, limit: int, used: int, cache: int) -> None:
    write(root, f"{group}/memory.limit_in_bytes", limit)
    write(root, f"{group}/memory.usage_in_bytes", used)
    # The second line is of the group without those below it.
    write(root, f"{group}/memory.stat", f"cache 1\ninactive_file 0\ntotal_inactive_file {cache}")


def mount(root: Path, *, group: str, mounts: str) -> None:
    write(root, "proc/self/cgroup", group)
    write(root, "proc/self/mountinfo", f"22 1 0:20 / /proc rw - proc proc rw\n{mounts}")


def test_without_control_groups_the_machine_counts(root: Path) -> None:
    assert read_memory(root=root) == Memory(64 * GIB, 50 * GIB)


def test_container_of_v2_is_limited_by_its_group_which_it_sees_as_the_root(root: Path) -> None:
    mount(root, group="0::/", mounts=V2_MOUNT.format(root="/"))
    write_v2(root, "sys/fs/cgroup", limit=8 * GIB, used=5 * GIB, cache=2 * GIB)

    # What the page cache holds and nobody used lately is there for the taking.
    assert read_memory(root=root) == Memory(8 * GIB, 5 * GIB)


def test_service_is_limited_by_the_tightest_of_its_groups(root: Path) -> None:
    mount(root, group="0::/system.slice/batcher.service", mounts=V2_MOUNT.format(root="/"))
    write_v2(root, "sys/fs/cgroup/system.slice", limit="max", high=4 * GIB, used=3 * GIB, cache=0)
    write_v2(root, "sys/fs/cgroup/system.slice/batcher.service", limit=6 * GIB, used=1 * GIB, cache=0)

    assert read_memory(root=root) == Memory(4 * GIB, 1 * GIB)


def test_group_without_a_limit_changes_nothing(root: Path) -> None:
    mount(root, group="0::/user.slice", mounts=V2_MOUNT.format(root="/"))
    write_v2(root, "sys/fs/cgroup/user.slice", limit="max", used=60 * GIB, cache=0)

    assert read_memory(root=root) == Memory(64 * GIB, 50 * GIB)


@pytest.mark.parametrize(
    ("group", "mounted", "folder"),
    [
        ("/limited", "/", "sys/fs/cgroup/memory/limited"),
        # A container that sees its own group mounted, and its path in the host's hierarchy.
        ("/docker/0123", "/docker/0123", "sys/fs/cgroup/memory"),
        ("/docker/0123/below", "/docker/0123", "sys/fs/cgroup/memory/below"),
        ("/elsewhere", "/docker/0123", "sys/fs/cgroup/memory"),
        ("/../elsewhere", "/", "sys/fs/cgroup/memory"),
    ],
)
def test_group_of_v1_is_found_where_it_is_mounted(root: Path, group: str, mounted: str, folder: str) -> None:
    lines = f"9:name=systemd:/\n4:hugetlb,memory:{group}\n1:cpu:{group}\n0::/"
    mount(root, group=lines, mounts=f"{V1_OTHER}\n{V1_MOUNT.format(root=mounted)}\n{V2_MOUNT.format(root='/')}")
    write_v1(root, folder, limit=2 * GIB, used=2 * GIB, cache=GIB // 2)

    assert read_memory(root=root) == Memory(2 * GIB, GIB // 2)


def test_v1_without_a_limit_shows_a_huge_one(root: Path) -> None:
    mount(root, group="4:memory:/", mounts=V1_MOUNT.format(root="/"))
    write_v1(root, "sys/fs/cgroup/memory", limit=9223372036854771712, used=40 * GIB, cache=0)

    assert read_memory(root=root) == Memory(64 * GIB, 50 * GIB)


def test_group_that_is_over_its_limit_has_nothing_left(root: Path) -> None:
    mount(root, group="0::/", mounts=V2_MOUNT.format(root="/"))
    write_v2(root, "sys/fs/cgroup", limit=1 * GIB, used=1 * GIB + 4096, cache=0)

    assert read_memory(root=root) == Memory(1 * GIB, 0)


def test_system_that_does_not_tell_is_taken_for_half_free(tmp_path: Path) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert read_memory(root=tmp_path) == Memory(total, total // 2)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_cores_of_this_machine_are_known() -> None:
    memory = read_memory()

    assert 0 < memory.available <= memory.total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1G", 2**30), ("1.5GiB", 3 * 2**29), (" 800 mb ", 800 * 2**20), ("4096", 4096), ("2t", 2**41), ("1B", 1)],
)
def test_sizes_are_in_1024s(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "G", "0", "0.1", "-1G", "1X", "1,5G", "1e9", "nan", "1G1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size; write 800m or 16g"):
        parse_size(text)
