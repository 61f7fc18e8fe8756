"""llama.cpp's own programs, built from the very source that the installed llama-cpp-python was built from.

    .venv/bin/python -m bench.peers

prints the folder of `llama-server` and `llama-batched-bench`. The first time it downloads the source distribution of
the installed version and builds them with the compiler flags of `scripts/setup.sh` (some 8 minutes on 2 cores); they
stay in `~/.cache/batcher/llama-tools` (`BATCHER_CACHE` moves it), in a folder of their own for each version, compiler
and processor. A build that was interrupted goes on where it stopped. They are llama.cpp as anyone gets it: neither the
attention that our build adds (`scripts/llama_attention.cpp`) nor its matrix products (`scripts/llama_matmul.cpp`) are
in them. Where our build has AMX, they have it, mended like ours (`scripts/llama_tiles.h`), without which GCC 12 makes
programs that crash.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import distribution, version
from pathlib import Path

from workers.engines.llama.kernels import is_built_for_amx

SCRIPTS = Path(__file__).parents[1] / "scripts"
SERVER = "llama-server"
BATCHED_BENCH = "llama-batched-bench"

#: Only the two programs and the CPU backend, optimized, and native to this processor (llama.cpp's default).
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CCACHE=OFF",
)
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
#: Written last: the folder is complete.
_READY = ".ready"


@dataclass(frozen=True, slots=True)
class Tools:
    """The two programs."""

    server: Path
    batched_bench: Path

    def version(self) -> str:
        """What the server says of its build, e.g. `version: 5000 (abcdef0)`."""
        done = subprocess.run([self.server, "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"^version:\s*(.*)$", done.stdout + done.stderr, re.MULTILINE)
        return found[1] if found else "unknown"


def on_our_build(environment: dict[str, str]) -> dict[str, str]:
    """`environment`, and in it the libraries of the installed llama-cpp-python go before the programs' own.

    They are the same version, with the attention and the matrix products of `scripts/`.
    """
    libraries = distribution("llama-cpp-python").locate_file("llama_cpp/lib")
    return {**environment, "LD_LIBRARY_PATH": str(libraries)}


def llama_version() -> str:
    """The version of the installed llama-cpp-python."""
    return version("llama-cpp-python")


def find_tools(folder: Path | None) -> Tools:
    """The programs of `folder`, else those of the cache, which are built where they are missing. Exits if it can't."""
    folder = folder or build_tools()
    tools = Tools(folder / SERVER, folder / BATCHED_BENCH)
    for path in (tools.server, tools.batched_bench):
        if not os.access(path, os.X_OK):
            sys.exit(f"{path}: no such program; `python -m bench.peers` builds it and prints its folder")
    return tools


def find_built() -> Path | None:
    """The folder of programs of the cache that have been built, of whatever options; None where there is none."""
    ready = sorted(_cache_folder().glob(f"llama-tools/{llama_version()}-*/{_READY}"))
    return ready[-1].with_name("build") / "bin" if ready else None


def build_tools() -> Path:
    """The folder of the programs in the cache; builds them where they are missing, which takes minutes."""
    _need("c++", "g++")
    environment = _compiler_environment()
    target = _cache_folder() / "llama-tools" / f"{llama_version()}-{_build_key(environment)}"
    folder = target / "build" / "bin"
    if (target / _READY).exists():
        return folder
    _need("cmake", "cmake ninja-build")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    if not generator and shutil.which("make") is None:
        sys.exit(f"neither ninja nor make is there, which build {SERVER}: apt-get install cmake ninja-build")
    print(f"building {SERVER} {llama_version()} (once: some 8 minutes on 2 cores; kept in {target})", file=sys.stderr)
    source = _unpack_source(target)
    options = [*CMAKE_OPTIONS, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={SCRIPTS / 'llama_tiles.cmake'}"]
    options += shlex.split(environment.get("CMAKE_ARGS", ""))
    _run(["cmake", "-S", str(source), "-B", str(target / "build"), *generator, *options], environment)
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    programs = ["--target", BATCHED_BENCH, SERVER]
    _run(["cmake", "--build", str(target / "build"), jobs, *programs], environment)
    (target / _READY).touch()
    shutil.rmtree(target / "source")
    return folder


def _need(program: str, packages: str) -> None:
    if shutil.which(program) is None:
        sys.exit(f"{program} is missing, which builds {SERVER}: apt-get install {packages}")


def _cache_folder() -> Path:
    """As in `scripts/setup.sh`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BATCHER_CACHE") or Path(home) / "batcher").resolve()


def _compiler_environment() -> dict[str, str]:
    """This process's environment, and in it the flags of `scripts/setup.sh`: no AMX where our build is without."""
    environment = dict(os.environ)
    if re.search(r"\bamx_tile\b", _cpu_info("flags")) and not is_built_for_amx():
        for name in ("CFLAGS", "CXXFLAGS"):
            environment[name] = f"{environment.get(name, '')} {NO_AMX}"
    return environment


def _build_key(environment: dict[str, str]) -> str:
    """Differs where the build would: by options, flags, compiler and processor."""
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=False).stdout
    parts = [*CMAKE_OPTIONS, *(environment.get(name, "") for name in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS")), compiler]
    parts += [_cpu_info("model name"), _cpu_info("flags"), platform.machine()]
    if is_built_for_amx():
        parts += [path.read_text(encoding="utf-8") for path in sorted(SCRIPTS.glob("llama_tiles.*"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def cpu_model() -> str:
    """The processor's name, as Linux gives it."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(name: str) -> str:
    """A line of the first processor in /proc/cpuinfo, or nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _unpack_source(target: Path) -> Path:
    """The llama.cpp inside the source distribution, downloaded unless it is there. Returns its folder."""
    unpacked = target / "source"
    if not unpacked.exists():
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target) as folder:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"]
            pip += ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={llama_version()}", "-d", folder]
            _run(pip, dict(os.environ))
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(Path(folder) / "unpacked", filter="data")
            (Path(folder) / "unpacked").rename(unpacked)
    (source,) = unpacked.glob("*/vendor/llama.cpp")
    return source


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        sys.exit(f"`{shlex.join(command)}` ended with {done.returncode}")


if __name__ == "__main__":
    print(find_tools(None).server.parent)
