"""Builds llama.cpp with AMX and runs the tests of kernels on it, under an emulator of AMX.

    python -m tests.amx.run [FOLDER]

For a change of llama.cpp's version, of scripts/llama_tiles.* or of the compiler, on a machine without AMX but with
AVX-512 VNNI. Takes three minutes on two cores, most of it for the build, which goes into FOLDER and stays there (else
into a temporary one). The environment that it prints runs anything else on that build, such as another test.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = "tests/unit/engines/test_kernels.py"

#: What the compiler adds by itself where the processor has AMX.
AMX_FLAGS = "-mamx-tile -mamx-int8 -mamx-bf16"


def main() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    if "amx_int8" in flags:
        sys.exit(f"this processor has AMX itself: after scripts/setup.sh, run {TESTS}")
    if "avx512_vnni" not in flags:
        sys.exit("this processor has no AVX-512 VNNI, of which AMX kernels are made too")
    with tempfile.TemporaryDirectory(prefix="batcher-amx-") as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()
        variables = {"PYTHONPATH": str(build_llama(folder)), "LD_PRELOAD": str(build_emulator(folder))}
        print(*(f"{name}={value}" for name, value in variables.items()), "pytest", TESTS, flush=True)
        tests = [sys.executable, "-m", "pytest", "-q", TESTS]
        sys.exit(subprocess.run(tests, cwd=ROOT, env=os.environ | variables, check=False).returncode)


def build_llama(folder: Path) -> Path:
    """A folder with the package `llama_cpp` in it, made as scripts/setup.sh does it, but for AMX."""
    installed = folder / "site-packages"
    if installed.exists():
        return installed
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    pip = (str(folder / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "install", "--no-deps", "--require-hashes", "-r", "requirements/llama-build.lock")
    build = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE={ROOT / 'scripts' / 'llama_build.cmake'}"
    wheel = ["--no-cache-dir", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"]
    wheel += ["-C", "build.targets=llama", "-w", str(folder), "--require-hashes", "-r", "requirements/llama.lock"]
    run(*pip, "wheel", *wheel, CMAKE_ARGS=build, CFLAGS=AMX_FLAGS, CXXFLAGS=AMX_FLAGS)
    (built,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--target", str(installed), str(built))
    return installed


def build_emulator(folder: Path) -> Path:
    library = folder / "emulator.so"
    run("c++", "-O2", "-shared", "-fPIC", "tests/amx/emulator.cpp", "-o", str(library))
    return library


def run(*command: str, **variables: str) -> None:
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)


if __name__ == "__main__":
    main()
