"""Whatever is kept of jobs goes through `batcher.jobdir.store`: no other room asks a file system about it.

By the names of what is called, so what is called by another name is not seen.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.house.test_imports import ROOT, source_files

#: Of os, pathlib, shutil, glob and fcntl: what asks about files beyond their content, or changes them.
CALLS = frozenset(
    {
        *(
            "stat",
            "lstat",
            "fstat",
            "glob",
            "rglob",
            "iglob",
            "iterdir",
            "listdir",
            "scandir",
            "walk",
            "flock",
            "lockf",
        ),
        *("rename", "renames", "link", "hardlink_to", "symlink_to", "unlink", "rmdir", "rmtree", "utime", "touch"),
        *("exists", "is_file", "is_dir", "read_bytes", "read_text", "write_bytes", "write_text"),
    }
)
#: What `stat` answers.
FIELDS = frozenset({"st_mtime", "st_mtime_ns", "st_ctime", "st_size", "st_ino"})
#: Methods of ours that have such a name, and what they are called on.
OUR_OWN = {"exists": ("job", "self._job"), "rename": ("self._carried",)}

#: What these look at is no job's: the user's own input and output, keys, models, and what lives as long as a process.
EXCEPTIONS = {
    "batcher/submission/readers/": "the user's input",
    "batcher/manage/export.py": "the user's output",
    "batcher/model_files.py": "model files",
    "batcher/chat_templates.py": "the user's files with chat templates",
    "batcher/models/": "model files, and the stores and caches of those who put them here",
    "batcher/installation.py": "this installation",
    "batcher/machine.py": "the kernel's files",
    "batcher/paths.py": "whose a folder is",
    "batcher/broker/embedded.py": "the folder of a Redis of this machine",
    "batcher/api/servers.py": "a file with the key of servers",
    "batcher/broker/url.py": "a file with the broker's URL",
    "batcher/cli/": "the user's files, as options name them",
    "batcher/server/guard/auth.py": "a file with keys",
    "workers/child.py": "the kernel's files",
    "workers/engines/": "model files and the profiles of this machine",
    "workers/process/": "processes and memory of this machine",
}


def breaches(source: str) -> Iterator[str]:
    """What a module asks of a file system, each with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in FIELDS:
            yield f"{node.lineno}: {node.attr}"
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in CALLS:
            continue
        owner = ast.unparse(node.func.value)
        if owner not in OUR_OWN.get(node.func.attr, ()):
            yield f"{node.lineno}: {owner}.{node.func.attr}"


def is_excepted(file: str) -> bool:
    return file.startswith(("batcher/jobdir/", *EXCEPTIONS))


def test_no_room_outside_jobdir_asks_a_file_system_about_jobs() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in source_files("batcher", "workers")]
    found = [
        f"{file}:{breach}"
        for file in files
        if not is_excepted(file)
        for breach in breaches((ROOT / file).read_text(encoding="utf-8"))
    ]

    assert len([file for file in files if not is_excepted(file)]) > 60  # the walk did find the code
    assert found == []


def test_each_exception_is_of_a_file_that_needs_it() -> None:
    for prefix in EXCEPTIONS:
        files = source_files(prefix) if prefix.endswith("/") else [Path(ROOT / prefix)]
        assert any(list(breaches(path.read_text(encoding="utf-8"))) for path in files), f"{prefix} needs no exception"


@pytest.mark.parametrize(
    "source",
    [
        "when = path.stat().st_mtime",
        "for path in job.attempts_dir(0).glob('*.end.json'): ...",
        "import os\nos.rename(a, b)",
        "import fcntl\nfcntl.flock(file, fcntl.LOCK_EX)",
        "if job.part_path(3).exists(): ...",
        "job.summary_path.read_bytes()",
    ],
)
def test_breach_is_found(source: str) -> None:
    assert list(breaches(source))


@pytest.mark.parametrize("source", ["job.exists()", "job.store.list(job.path)", "text.replace('a', 'b')"])
def test_what_is_allowed_is_allowed(source: str) -> None:
    assert not list(breaches(source))
