"""The kernel of a notebook, and what it makes of cells."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

from tests.support.waiting import PATIENCE_S


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


@contextmanager
def open_kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel of this Python that works in `folder`."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(folder))
    kernel = Kernel(manager)
    try:
        yield kernel
    finally:
        kernel.client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
