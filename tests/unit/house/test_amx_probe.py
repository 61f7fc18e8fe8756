"""Set-up's first trial of AMX (scripts/amx_probe.cpp), by this compiler and under the emulator of tests/amx."""

import platform
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: How the emulator ends a process on a processor that has tiles itself.
HAS_TILES = 77

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is of x86-64")

#: A product of tiles that nobody has configured.
UNCONFIGURED = """
#include <immintrin.h>
int main() { _tile_dpbssd(0, 1, 2); }
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("emulator") / "emulator.so"
    compile_source(ROOT / "tests" / "amx" / "emulator.cpp", library, "-shared", "-fPIC")
    return library


def compile_source(source: Path, target: Path, *options: str) -> None:
    subprocess.run(["c++", "-O3", *options, str(source), "-o", str(target)], check=True)


def run_emulated(program: Path, emulator: Path) -> "subprocess.CompletedProcess[str]":
    environment = {"LD_PRELOAD": str(emulator)}
    done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode == HAS_TILES:
        pytest.skip("this processor has tiles itself")
    return done


def test_product_of_tiles_is_what_the_probe_expects(tmp_path: Path, emulator: Path) -> None:
    probe = tmp_path / "probe"
    compile_source(ROOT / "scripts" / "amx_probe.cpp", probe, "-mamx-tile", "-mamx-int8")

    done = run_emulated(probe, emulator)

    assert (done.returncode, done.stderr) == (0, "")


def test_tiles_that_are_not_configured_end_the_process(tmp_path: Path, emulator: Path) -> None:
    source, program = tmp_path / "unconfigured.cpp", tmp_path / "unconfigured"
    source.write_text(UNCONFIGURED)
    compile_source(source, program, "-mamx-tile", "-mamx-int8")

    done = run_emulated(program, emulator)

    assert done.returncode == -signal.SIGILL
    assert "a tile that is not configured" in done.stderr
