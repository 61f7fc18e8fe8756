"""The kernel's count of processes killed for lack of memory."""

from pathlib import Path

from workers.process import memory


def test_count_is_that_of_machine_and_own_cgroup(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 7\noom_kill 3\n")
    unified = tmp_path / "memory.events"
    unified.write_text("low 0\noom 9\noom_kill 2\noom_group_kill 5\n")
    old = tmp_path / "memory.oom_control"
    old.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")

    assert [memory._read_counter(path) for path in (vmstat, unified, old, tmp_path / "none")] == [3, 2, 4, 0]


def test_count_of_this_machine_can_be_read() -> None:
    assert memory.count_oom_kills() >= 0
