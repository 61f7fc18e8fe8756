"""Cores within affinity mask, SMT and the CPU quota of control groups, as the kernel shows them to a process."""

from pathlib import Path

import pytest

from batcher.machine import Cores, processor_name, read_cores

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"


def write(root: Path, name: str, text: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def mount(root: Path, *, group: str, mounts: str) -> None:
    write(root, "proc/self/cgroup", group)
    write(root, "proc/self/mountinfo", f"22 1 0:20 / /proc rw - proc proc rw\n{mounts}")


def write_siblings(root: Path, *groups: str) -> None:
    """One group for each core, in order."""
    for cpu, siblings in enumerate(groups):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", siblings)


def test_two_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    write_siblings(tmp_path, "0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")

    cores = read_cores(root=tmp_path, affinity=range(8))

    assert cores == Cores(num_logical=8, num_physical=4)
    assert cores.num_usable == 4


def test_only_cores_of_the_affinity_mask_count(tmp_path: Path) -> None:
    write_siblings(tmp_path, "0-1", "0-1", "2-3", "2-3", "4-5", "4-5")

    assert read_cores(root=tmp_path, affinity={0, 1, 2}) == Cores(3, 2)
    # One thread each of three cores.
    assert read_cores(root=tmp_path, affinity={1, 3, 5}) == Cores(3, 3)


def test_cores_without_a_topology_are_cores_of_their_own(tmp_path: Path) -> None:
    assert read_cores(root=tmp_path, affinity=range(3)) == Cores(3, 3)


@pytest.mark.parametrize(
    ("quota", "num_usable"), [("150000 100000", 2), ("100000 100000", 1), ("20000 100000", 1), ("900000 100000", 4)]
)
def test_quota_of_v2_bounds_the_cores_and_is_rounded_up(tmp_path: Path, quota: str, num_usable: int) -> None:
    mount(tmp_path, group="0::/", mounts=V2_MOUNT)
    write(tmp_path, "sys/fs/cgroup/cpu.max", quota)

    cores = read_cores(root=tmp_path, affinity=range(4))

    assert cores.quota == pytest.approx(int(quota.split()[0]) / 100_000)
    assert cores.num_usable == num_usable


def test_tightest_quota_of_the_parents_counts(tmp_path: Path) -> None:
    mount(tmp_path, group="0::/pods/one", mounts=V2_MOUNT)
    write(tmp_path, "sys/fs/cgroup/pods/cpu.max", "200000 100000")
    write(tmp_path, "sys/fs/cgroup/pods/one/cpu.max", "300000 100000")

    assert read_cores(root=tmp_path, affinity=range(8)).quota == 2


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense"])
def test_v2_without_a_quota_changes_nothing(tmp_path: Path, text: str) -> None:
    mount(tmp_path, group="0::/", mounts=V2_MOUNT)
    write(tmp_path, "sys/fs/cgroup/cpu.max", text)

    assert read_cores(root=tmp_path, affinity=range(4)) == Cores(4, 4)


@pytest.mark.parametrize(("quota", "expected"), [(250_000, 2.5), (-1, None)])
def test_quota_of_v1_is_found_where_it_is_mounted(tmp_path: Path, quota: int, expected: float | None) -> None:
    mount(tmp_path, group="4:cpu,cpuacct:/docker\n5:memory:/docker\n0::/", mounts=V1_MOUNT)
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", quota)
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", 100_000)

    assert read_cores(root=tmp_path, affinity=range(4)).quota == expected


def test_processor_is_named_as_the_system_does(tmp_path: Path) -> None:
    assert processor_name(root=tmp_path)
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC 7B13\n\nmodel name\t: other")

    assert processor_name(root=tmp_path) == "AMD EPYC 7B13"
