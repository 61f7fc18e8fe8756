"""The Python API in the kernel of a notebook: interrupted there, it leaves a job that the same cell goes on with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from batcher.jobdir.folder import JobDir
from tests.support.job_files import result_rows
from tests.support.waiting import PATIENCE_S, wait_for

CELL = """
import batcher
rows = [{{"prompt": f"prompt {{i}}"}} for i in range(200)]
job = batcher.run(rows, {out!r}, model={model!r}, max_tokens=480, threads=1, progress=True)
"""


class Kernel:
    """A kernel, and what a cell makes of it."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client = manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE_S)

    def start(self, source: str) -> str:
        # A kernel aborts, for a moment after a cell that failed, those that arrive unless they ask it not to.
        return str(self.client.execute(source, stop_on_error=False))

    def finish(self, cell: str) -> dict[str, Any]:
        while True:
            reply = self.client.get_shell_msg(timeout=PATIENCE_S)
            if reply["parent_header"].get("msg_id") == cell:
                content: dict[str, Any] = reply["content"]
                return content


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    kernel = Kernel(manager)
    try:
        yield kernel
    finally:
        kernel.client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


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
