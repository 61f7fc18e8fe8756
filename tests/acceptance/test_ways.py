"""Batcher as a part of something else: a pipe, a shell, a notebook."""

import json
import subprocess
from pathlib import Path

from tests.acceptance.conftest import Batcher, clean_environment
from tests.support.kernel import open_kernel


def test_batcher_is_a_part_of_a_pipe_a_shell_and_a_notebook(batcher: Batcher, model: Path, tmp_path: Path) -> None:
    # A pipe: lines in, lines out.
    lines = "".join(json.dumps({"custom_id": f"id-{i}", "prompt": f"hello {i}"}) + "\n" for i in range(12))
    line = ("run", "-", "-o", "-", "--model", f"tiny={model}", "--max-tokens", 3, "--threads", 1)
    piped = batcher(*line, stdin=lines.encode())
    assert piped.returncode == 0, piped.stderr
    rows = [json.loads(text) for text in piped.stdout.splitlines()]
    assert [(row["custom_id"], row["completion_tokens"] <= 3) for row in rows] == [(f"id-{i}", True) for i in range(12)]

    # A notebook: a frame in, a frame out, and rows that are asked again.
    cells = f"""
import batcher, pandas
frame = pandas.DataFrame({{"prompt": ["a", "b", "c"], "topic": [1, 2, 3]}})
job = batcher.run(frame, "batcher-jobs/notebook", model={f"tiny={model}"!r}, max_tokens=2, threads=1)
first = job.results().to_pandas()
assert list(first["topic"]) == [1, 2, 3]
assert job.retry("topic = 2", set={{"max_tokens": 5, "ignore_eos": True}}) == 1
job.resume(threads=1)
second = job.results().to_pandas()
assert list(second["completion_tokens"])[1] == 5
assert second.drop(index=1).equals(first.drop(index=1))
"""
    with open_kernel(tmp_path) as kernel:
        done = kernel.finish(kernel.start(cells))
    assert done["status"] == "ok", done

    # JSON for programs, and the Tab key for people: the job of the notebook by the beginning of its name.
    status = batcher("status", "notebook", "--json")
    assert (status.returncode, json.loads(status.stdout)["num_ok"]) == (0, 3), status.stderr
    tab = 'COMP_WORDS=(batcher status no); COMP_CWORD=2; _batcher_completion batcher; echo "${COMPREPLY[@]}"'
    completed = subprocess.run(
        ["bash", "-c", f'eval "$(batcher completion bash)"; {tab}'],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert completed.stdout == "notebook\n", completed.stderr
