"""The Python API in the kernel of a notebook: interrupted there, it leaves a job that the same cell goes on with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from tests.support.job_files import result_rows
from tests.support.kernel import Kernel, open_kernel
from tests.support.waiting import wait_for

CELL = """
import batcher
rows = [{{"prompt": f"prompt {{i}}"}} for i in range(200)]
job = batcher.run(rows, {out!r}, model={model!r}, max_tokens=480, threads=1, progress=True)
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    with open_kernel(tmp_path) as kernel:
        yield kernel


def test_interrupted_cell_ends_in_good_order_and_goes_on_when_run_again(
    tmp_path: Path, model: Path, kernel: Kernel
) -> None:
    job = JobDir(tmp_path / "out")
    source = CELL.format(out=str(job.path), model=f"tiny={model}")
    cell = kernel.start(source)
    wait_for(lambda: job.exists() and job.committed_shards(), what="a part")

    kernel.manager.interrupt_kernel()
    stopped = kernel.finish(cell)

    assert (stopped["status"], stopped["ename"]) == ("error", "KeyboardInterrupt")
    saved = {row["row"]: row for row in result_rows(job)}
    assert 0 < len(saved) < 200
    again = kernel.finish(kernel.start(source))
    assert again["status"] == "ok", again
    found = {row["row"]: row for row in result_rows(job)}
    assert len(found) == 200
    assert {row: found[row] for row in saved} == saved
