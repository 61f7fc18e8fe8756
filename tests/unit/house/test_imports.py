"""Who may import whom: the rooms of CONTRIBUTING's map, lowest first, and the libraries that belong to one of them."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: Modules of a floor import modules of lower floors and of their own room; the rooms of one floor know nothing of each
#: other. A module is in the room with the longest name that covers it.
FLOORS: tuple[dict[str, tuple[str, ...]], ...] = (
    {
        "the ground": (
            "batcher.chat_templates",
            "batcher.constraints",
            "batcher.endings",
            "batcher.engine_metrics",
            "batcher.errors",
            "batcher.gguf",
            "batcher.heap",
            "batcher.ids",
            "batcher.installation",
            "batcher.live",
            "batcher.machine",
            "batcher.model_files",
            "batcher.model_kinds",
            "batcher.model_memory",
            "batcher.paths",
            "batcher.words",
            "batcher.rounds",
            "batcher.selection",
            "batcher.startup",
            "batcher.thoughts",
            "batcher.types",
        )
    },
    {"batcher/models": ("batcher.models",)},
    {"batcher/arrow": ("batcher.arrow",)},
    {"batcher/openai": ("batcher.openai",)},
    {"batcher/jobdir": ("batcher.jobdir",)},
    {
        "batcher/submission": ("batcher.submission",),
        "batcher/manage": ("batcher.manage",),
        "batcher/broker": ("batcher.broker",),
    },
    {"workers/process": ("workers.process",), "workers/engines": ("workers.engines",)},
    {"workers/shard": ("workers.shard",), "workers/tuning": ("workers.tuning",)},
    {"workers/queue": ("workers.queue",), "workers/estimating": ("workers.estimating",)},
    {"workers/local.py": ("workers.local",)},
    {"workers/live": ("workers.live",)},
    {"workers/child.py": ("workers.child",)},
    {"batcher/api": ("batcher.api",)},
    {"batcher/server": ("batcher.server",)},
    {"batcher/cli": ("batcher.cli",)},
)
FLOOR_OF = {package: floor for floor, rooms in enumerate(FLOORS) for names in rooms.values() for package in names}
ROOM_OF = {package: room for rooms in FLOORS for room, names in rooms.items() for package in names}

#: The packages themselves: `from batcher import __version__` is for everyone; what `import batcher` offers is lazy.
DOORS = ("batcher", "workers")

#: What a room may see, where that is less than all floors below it.
NARROW = {
    "batcher.types": (),
    "batcher.errors": (),
    "batcher.machine": (),
    "workers.engines": (
        "batcher",
        "batcher.types",
        "batcher.errors",
        "batcher.machine",
        "batcher.model_files",
        "batcher.model_memory",
        "workers.engines",
        "numpy",
        "pydantic",
    ),
    "workers.engines.base": ("batcher.types", "batcher.errors"),
    "workers.engines.profile": (
        "batcher.errors",
        "batcher.machine",
        "batcher.jobdir.local_store",
        "workers.engines",
        "pydantic",
    ),
    "workers.engines.llama": (
        "batcher.types",
        "batcher.errors",
        "batcher.machine",
        "batcher.model_kinds",
        "batcher.model_memory",
        "batcher.thoughts",
        "workers.engines.base",
        "workers.engines.llama",
        "numpy",
        "jinja2",
    ),
    "workers.engines.llama.grammars": (
        "batcher.types",
        "batcher.errors",
        "workers.engines.llama",
        "numpy",
        "llguidance",
    ),
    "workers.engines.remote": (
        "batcher.types",
        "batcher.errors",
        "batcher.rounds",
        "workers.engines.base",
        "workers.engines.remote",
        "httpx",
        "pydantic",
    ),
    "workers.engines.llama.binding": (
        "batcher.types",
        "batcher.errors",
        "batcher.machine",
        "workers.engines.llama",
        "numpy",
        "llama_cpp",
    ),
}

#: What only these modules know: an engine's inside, as others know engines by `workers.engines.base` and have them made
#: by `open`; and libraries, so that no other room needs a broker, a web server or a terminal. What several names cover
#: goes by the longest.
KNOWN_TO = {
    "workers.engines.llama": ("workers.engines",),
    # `batcher tune` tries these out, and submit says what a sequence can hold.
    "workers.engines.llama.settings": ("workers.engines", "workers.tuning", "batcher.api"),
    # Submit compiles what is the job's.
    "workers.engines.llama.grammars": ("workers.engines", "batcher.api"),
    "llguidance": ("workers.engines.llama.grammars",),
    "workers.engines.remote": ("workers.engines",),
    "httpx": ("workers.engines.remote",),
    "llama_cpp": ("workers.engines.llama.binding",),
    "jinja2": ("workers.engines.llama",),
    "celery": ("workers.queue", "workers.child"),
    "kombu": ("workers.queue",),
    "huggingface_hub": ("batcher.models.download", "batcher.models.hub_errors"),
    "redis": ("batcher.broker", "workers.queue", "batcher.cli.doctor"),
    "fastapi": ("batcher.server.app", "batcher.server.live", "batcher.server.routes"),
    "starlette": ("batcher.server.app", "batcher.server.guard", "batcher.server.live", "batcher.server.routes"),
    "uvicorn": ("batcher.server.serve", "batcher.server.guard.connections"),
    "click": ("batcher.cli",),
    "prometheus_client": ("workers.process.metrics", "batcher.server.metrics", "batcher.server.app"),
    "rich": ("batcher.cli", "batcher.api"),
}

#: Rooms of `batcher` above `workers`, which they import only where a function runs.
ROOF = ("batcher.api", "batcher.server", "batcher.cli")


@dataclass(frozen=True, slots=True)
class Import:
    """One import: where it stands, what it brings, and whether it runs only when a function is called."""

    file: str
    line: int
    module: str
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: imports {self.module}"

    @property
    def importer(self) -> str:
        """The importing module's dotted name."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def source_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir()]


def imports_of(source: str, *, file: str) -> Iterator[Import]:
    """Every import of a module; those under `if TYPE_CHECKING:` never run and are left out."""
    yield from _imports(ast.parse(source), file=file, is_lazy=False)


def _imports(node: ast.AST, *, file: str, is_lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, alias.name, is_lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = ".".join(Path(file).parts[: -child.level]) if child.level else ""
            base = ".".join(part for part in (package, child.module or "") if part)
            # `from batcher import types` brings batcher.types.
            yield from (Import(file, child.lineno, f"{base}.{alias.name}", is_lazy) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, file=file, is_lazy=is_lazy or in_function)


def is_within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def covering(module: str, packages: Iterable[str]) -> str | None:
    """The longest name of `packages` that is `module` or a package around it."""
    names = [package for package in packages if is_within(module, package)]
    return max(names, key=len, default=None)


def breach(found: Import) -> str | None:
    """Why an import breaks the rule; None if it doesn't."""
    if found.module.split(".")[0] in sys.stdlib_module_names:
        return None
    inside = covering(found.module, KNOWN_TO)
    if inside is not None and not is_within(found.importer, *KNOWN_TO[inside]):
        return f"{inside} is for {' and '.join(KNOWN_TO[inside])}"
    narrow = covering(found.importer, NARROW)
    if narrow is not None and not sees(NARROW[narrow], found.module):
        return f"{narrow} sees only {', '.join(NARROW[narrow]) or 'the standard library'}"
    if is_within(found.module, *DOORS):
        return _breach_of_floors(found)
    return None


def sees(allowed: tuple[str, ...], module: str) -> bool:
    """Whether `module` is among `allowed`; a door is open for its own names only, not for all rooms behind it."""
    packages = [name for name in allowed if name not in DOORS]
    return is_within(module, *packages) or (covering(module, FLOOR_OF) is None and module.split(".")[0] in allowed)


def _breach_of_floors(found: Import) -> str | None:
    if is_within(found.module, "workers") and is_within(found.importer, "batcher"):
        if not is_within(found.importer, *ROOF):
            return f"only {', '.join(ROOF)} import workers"
        if not found.is_lazy:
            return "workers is imported where a function runs, or else `--help` brings all of it"
    importer, module = covering(found.importer, FLOOR_OF), covering(found.module, FLOOR_OF)
    if module is None:
        return None  # `batcher` itself
    if importer is None:
        is_open = found.importer == "batcher" and found.is_lazy
        return None if is_open else f"{found.importer} is in no room of FLOORS in {Path(__file__).name}"
    if FLOOR_OF[importer] < FLOOR_OF[module] or (
        FLOOR_OF[importer] == FLOOR_OF[module] and ROOM_OF[importer] != ROOM_OF[module]
    ):
        return f"{ROOM_OF[importer]} is not above {ROOM_OF[module]}"
    return None


def all_imports() -> list[Import]:
    files = source_files("batcher", "workers")
    return [
        one
        for path in files
        for one in imports_of(path.read_text(encoding="utf-8"), file=path.relative_to(ROOT).as_posix())
    ]


def test_imports_follow_the_rule() -> None:
    found = all_imports()

    assert len(found) > 100  # the walk did find the code
    assert [f"{one}: {why}" for one in found if (why := breach(one))] == []


def test_each_module_is_in_a_room() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in source_files("batcher", "workers")]
    modules = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]

    homeless = [module for module in modules if module not in DOORS and covering(module, FLOOR_OF) is None]

    assert homeless == [], "give each a room: name it in FLOORS, on the lowest floor from which it sees what it needs"


def test_each_room_of_the_rule_exists() -> None:
    named = {*FLOOR_OF, *NARROW, *(owner for owners in KNOWN_TO.values() for owner in owners)}
    paths = {name: ROOT / name.replace(".", "/") for name in named}

    assert [name for name, path in paths.items() if not (path.is_dir() or path.with_suffix(".py").is_file())] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("batcher/manage/status.py", "from workers.queue.app import enqueue"),
        ("batcher/manage/status.py", "def f():\n    import workers"),
        ("batcher/manage/status.py", "from batcher.submission import planner"),
        ("batcher/manage/status.py", "def f():\n    from batcher.broker.client import connect"),
        ("batcher/jobdir/folder.py", "from batcher.manage.status import JobState"),
        ("batcher/arrow/values.py", "from batcher.openai import fields"),
        ("batcher/new.py", "from batcher import types"),
        ("batcher/__init__.py", "from batcher.api import run"),
        ("batcher/cli/jobs.py", "from workers.queue.app import enqueue"),
        ("batcher/cli/jobs.py", "if True:\n    from workers import app"),
        ("batcher/server/serve.py", "from batcher.cli import options"),
        ("batcher/server/batches/service.py", "import fastapi"),
        ("batcher/types.py", "import pydantic"),
        ("batcher/errors.py", "from batcher import types"),
        ("workers/engines/base.py", "from batcher.jobdir.shards import ShardRow"),
        ("workers/engines/llama/scheduler.py", "import llama_cpp"),
        ("workers/engines/llama/engine.py", "from batcher.jobdir.results import Counts"),
        ("workers/engines/llama/engine.py", "from batcher import jobdir"),
        ("workers/engines/llama/engine.py", "from batcher import __version__"),
        ("workers/engines/llama/engine.py", "from .. import profile"),
        ("workers/engines/llama/engine.py", "def f():\n    import pyarrow as pa"),
        ("workers/queue/tasks.py", "import llama_cpp"),
        ("workers/queue/tasks.py", "from workers.live.engine_end import LiveRequests"),
        ("workers/shard/runner.py", "from celery import Celery"),
        ("workers/shard/runner.py", "from workers.engines.llama.engine import LlamaEngine"),
        ("workers/live/engine_end.py", "def f():\n    from workers.engines.llama import engine"),
        ("workers/shard/runner.py", "from workers.tuning import search"),
        ("workers/live/engine_end.py", "from workers.engines.llama.settings import MAX_SLOTS"),
        ("workers/local.py", "from batcher.api import run"),
    ],
)
def test_breach_of_the_rule_is_found(file: str, source: str) -> None:
    assert [one for one in imports_of(source, file=file) if breach(one)]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("batcher/__init__.py", "def __getattr__(name):\n    from batcher.api import run"),
        ("batcher/manage/status.py", "from batcher import __version__"),
        ("batcher/cli/jobs.py", "def f():\n    from workers.queue.app import enqueue"),
        ("batcher/cli/jobs.py", "if TYPE_CHECKING:\n    from workers.queue.app import enqueue"),
        ("workers/engines/llama/binding.py", "import llama_cpp"),
        (
            "workers/engines/llama/engine.py",
            "from batcher.types import Choice\nfrom workers.engines.llama import text\nimport queue",
        ),
        ("workers/engines/fingerprint.py", "from batcher import __version__"),
        ("workers/queue/tasks.py", "from batcher.jobdir.folder import JobDir"),
        ("batcher/types.py", "from enum import StrEnum"),
    ],
)
def test_what_the_rule_allows_is_allowed(file: str, source: str) -> None:
    assert [one for one in imports_of(source, file=file) if breach(one)] == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # Notebooks and scripts begin with it.
        ("batcher", ["pyarrow", "pydantic", "numpy", "celery", "redis", "rich", "click", "pandas", "llama_cpp"]),
        ("batcher.types", ["pyarrow", "pydantic", "numpy"]),
        ("batcher.errors", ["pyarrow", "pydantic", "numpy"]),
        # `--help` looks at every command, and must be instant.
        ("batcher.cli.jobs", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp"]),
        ("batcher.cli.results", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp"]),
        ("batcher.cli.checks", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp"]),
        ("batcher.cli.tune", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp"]),
        ("batcher.cli.run", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp"]),
        ("batcher.cli.serve", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp", "fastapi", "uvicorn"]),
        ("workers.engines.llama.scheduler", ["pyarrow", "celery", "redis", "llama_cpp"]),
        ("workers.engines.llama.settings", ["pydantic", "pyarrow", "celery", "redis", "llama_cpp"]),
        ("workers.engines.llama.kv_cache", ["pyarrow", "celery", "redis", "llama_cpp"]),
    ],
)
def test_importing_a_module_does_not_bring_the_heavy_ones(module: str, unwanted: list[str]) -> None:
    script = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == "[]\n", done.stderr
