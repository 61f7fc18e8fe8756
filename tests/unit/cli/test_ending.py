"""How a command's process ends."""

import os
import subprocess
import sys

import pytest

#: Runs the command line in a process where a library's destructor aborts, as one of pyarrow's does now and then.
_WITH_ABORTING_LIBRARY = """
import ctypes
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)
from batcher.cli import main
main()
"""


def test_reader_that_wants_no_more_is_no_failure() -> None:
    # Given a pipe whose reader is gone, as `head` is when it has its lines
    reader, writer = os.pipe()
    os.close(reader)

    # When
    command = [sys.executable, "-c", "from batcher.cli import main; main()", "--help"]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)

    # Then
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(("args", "code"), [(["--version"], 0), (["results", "no-such-job"], 2)])
def test_library_that_aborts_at_the_end_changes_no_exit_code(args: list[str], code: int) -> None:
    # When
    ended = subprocess.run(
        [sys.executable, "-c", _WITH_ABORTING_LIBRARY, *args], capture_output=True, text=True, check=False
    )

    # Then what the command has to say has reached us, too
    assert ended.returncode == code, ended.stderr
    assert ("batcher" in ended.stdout) == (code == 0)
    assert ("no-such-job" in ended.stderr) == (code == 2)
