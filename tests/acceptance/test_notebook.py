"""jobs/tickets.ipynb runs top to bottom on the real model, in a real kernel, and shows what it says."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.acceptance.conftest import PATIENCE_S, ROOT

NOTEBOOK = ROOT / "jobs" / "tickets.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def cells(tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cells of the notebook as they are after a run; one that raises fails the test."""
    monkeypatch.delenv("BATCHER_BROKER", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=PATIENCE_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any, kind: str = "text/plain") -> list[str]:
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def test_notebook_shows_a_bar_and_frames(cells: list[Any]) -> None:
    _, run, answers, _, failed, kept = cells

    bar, job = run.outputs
    # Changed in its place: the last state of one output.
    assert "<progress" in bar["data"]["text/html"]
    assert "24 of 24 rows" in bar["data"]["text/html"]
    assert "complete" in bar["data"]["text/plain"]
    assert "<b>Job</b> tickets: complete, 24 of 24 rows" in job["data"]["text/html"]
    assert "T-100" in texts(answers, "text/html")[0]
    assert "invalid_request" in texts(failed, "text/html")[0]
    assert "24 rows in out/tickets.csv" in texts(kept)[0]
    # Neither the engine nor anybody else printed anything.
    assert [output for cell in cells for output in cell.outputs if output.output_type == "stream"] == []


def test_notebook_is_kept_without_what_it_has_shown() -> None:
    cells = read().cells

    assert [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []
