"""How a process ended, in words."""

from batcher.endings import describe_exit


def test_exit_is_told_in_words() -> None:
    assert describe_exit(1) == "exit code 1"
    assert describe_exit(-9) == "signal SIGKILL"
    assert describe_exit(-200) == "signal 200"
