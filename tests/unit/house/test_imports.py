"""The shape of the code: who may import whom (DESIGN section 7), and how long a file or function may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
LAZY_FOLDERS = ("batcher/cli/", "batcher/server/")


@dataclass(frozen=True, slots=True)
class Import:
    """One import: where it stands, what it brings, and whether it runs only when a function is called."""

    file: str
    line: int
    module: str
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: imports {self.module}"


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


def violation(found: Import) -> bool:
    """Whether an import breaks the rule."""
    is_stdlib = found.module.split(".")[0] in sys.stdlib_module_names
    if found.file in ("batcher/types.py", "batcher/errors.py", "batcher/machine.py"):
        return not is_stdlib
    if found.file.startswith("batcher/") and is_within(found.module, "workers"):
        return not (found.is_lazy and found.file.startswith(LAZY_FOLDERS))
    if is_within(found.module, "llama_cpp"):
        return found.file != "workers/engines/llama/model.py"
    if found.file.startswith("workers/engines/llama/"):
        allowed = ("batcher.types", "batcher.errors", "batcher.machine", "workers.engines.llama", "numpy", "jinja2")
        return not (is_stdlib or is_within(found.module, *allowed))
    return False


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
    assert [str(one) for one in found if violation(one)] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("batcher/manage/status.py", "from workers.queue.app import enqueue"),
        ("batcher/manage/status.py", "def f():\n    import workers"),
        ("batcher/cli/jobs.py", "from workers.queue.app import enqueue"),
        ("batcher/cli/jobs.py", "if True:\n    from workers import app"),
        ("batcher/types.py", "import pydantic"),
        ("batcher/errors.py", "from batcher import types"),
        ("workers/engines/llama/scheduler.py", "import llama_cpp"),
        ("workers/engines/llama/engine.py", "from batcher.jobdir.results import Counts"),
        ("workers/engines/llama/engine.py", "from batcher import jobdir"),
        ("workers/engines/llama/engine.py", "from .. import tasks"),
        ("workers/engines/llama/engine.py", "def f():\n    import pyarrow as pa"),
        ("workers/queue/tasks.py", "import llama_cpp"),
    ],
)
def test_breach_of_the_rule_is_found(file: str, source: str) -> None:
    assert [one for one in imports_of(source, file=file) if violation(one)]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("batcher/cli/jobs.py", "def f():\n    from workers.queue.app import enqueue"),
        ("batcher/cli/jobs.py", "if TYPE_CHECKING:\n    from workers.queue.app import enqueue"),
        ("workers/engines/llama/model.py", "import llama_cpp"),
        (
            "workers/engines/llama/engine.py",
            "from batcher.types import Choice\nfrom workers.engines.llama import text\nimport queue",
        ),
        ("workers/queue/tasks.py", "from batcher.jobdir.folder import JobDir"),
        ("batcher/types.py", "from enum import StrEnum"),
    ],
)
def test_what_the_rule_allows_is_allowed(file: str, source: str) -> None:
    assert [one for one in imports_of(source, file=file) if violation(one)] == []


def test_no_file_is_longer_than_one_can_read() -> None:
    files = source_files("batcher", "workers", "bench", "scripts", "tests", "jobs")
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files}

    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_page() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in source_files("batcher", "workers", "bench", "scripts")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]

    assert too_long == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("batcher.types", ["pyarrow", "pydantic", "numpy"]),
        ("batcher.errors", ["pyarrow", "pydantic", "numpy"]),
        # `--help` looks at every command, and must be instant.
        ("batcher.cli.jobs", ["pyarrow", "pydantic", "celery", "redis", "rich", "llama_cpp"]),
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
