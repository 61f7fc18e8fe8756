"""Memory that was freed goes back to the system."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import re
from pathlib import Path
from batcher.heap import give_memory_back

def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

# Too small for a mapping of their own, and the last one stays: what lies before it can't be cut off the heap's end.
blocks = [b"x" * 100_000 for _ in range(2_000)]
last = blocks.pop()
full = resident()
del blocks
freed = resident()
give_memory_back()
print(full, freed, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what the C library keeps is glibc's")
def test_freed_blocks_before_one_in_use_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    full, freed, given_back = map(int, done.stdout.split())
    assert full - freed < 20_000_000, "glibc gives them back by itself"
    assert full - given_back > 150_000_000
