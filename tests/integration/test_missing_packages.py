"""What users see where llama-cpp-python is installed and its library does not load."""

import os
import subprocess
import sys
from pathlib import Path


def test_library_that_does_not_load_is_told_by_run_without_a_traceback(tmp_path: Path, model: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "llama_cpp.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    command = [
        str(Path(sys.executable).with_name("batcher")),
        "run",
        "prompts.jsonl",
        "-o",
        "out",
        "--model",
        str(model),
    ]

    run = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert run.returncode == 2, run.stderr
    assert "llama-cpp-python can't be loaded here: libgomp.so.1: cannot open shared object file" in run.stderr
    assert "`batcher doctor`" in run.stderr
    assert "Traceback" not in run.stderr
