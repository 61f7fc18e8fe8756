"""How long a file or a function may be."""

import ast

from tests.unit.house.test_imports import ROOT, source_files

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


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
