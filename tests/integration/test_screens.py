"""What a person sees of a real run: the whole screen of a terminal, at every moment at which it stood still."""

import re
import sys
from pathlib import Path

import pytest

from batcher.cli import EXIT_INTERRUPTED
from batcher.jobdir.folder import JobDir
from batcher.manage.status import read_status
from tests.support.family import Family, write_prompts
from tests.support.pseudo_terminal import PseudoTerminal

ROWS = 120
BATCHER = Path(sys.executable).with_name("batcher")
LONG_ID = "answers-to-the-questions-of-the-night-20261130T183200Z-a1b2c3"

#: The lines that may stand on the screen while a job runs, by their beginnings; a wrapped one goes on as it likes.
_BAR = re.compile(r"^━*─*  ( \d|\d\d|1\d\d|  )?\d?%$|^━+  100%$")
_FACTS = re.compile(r"^\d+ of 120 rows(  [\d,.]+ tokens/s)?(  ETA \S+)?(  after \S+)?$")
_WORKER = re.compile(r"^\S+-\d+  (loading|idle|working|stalled|stopping|restarting)\b")


def run_on(
    family: Family, model: Path, columns: int, rows: int, *options: object, job_id: str = LONG_ID
) -> PseudoTerminal:
    """A run of rows that take a while, on a terminal of this size."""
    prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)
    family.jobs.append(family.folder / job_id)
    command = [BATCHER, "run", prompts, "-o", job_id, "--model", f"tiny={model}", "--max-tokens", 400, "--threads", 1]
    return PseudoTerminal(
        [*command, "--shard-rows", 40, *options], columns=columns, rows=rows, cwd=family.folder, env=family.environment
    )


def drawn(screen: list[str], header: str) -> list[str]:
    """The lines that change: from the header on."""
    return screen[screen.index(header) :] if header in screen else []


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_run_is_watched_from_its_first_tokens_to_its_summary(
    family: Family, model: Path, columns: int, rows: int
) -> None:
    with run_on(family, model, columns, rows) as terminal:
        assert terminal.wait() == 0

    job_id = LONG_ID if columns > 80 else None
    screens = [screen for screen in terminal.screens if any(line.endswith("120 rows  running") for line in screen)]
    assert screens
    percents = []
    for screen in screens:
        header = next(line for line in screen if line.endswith("120 rows  running"))
        assert header.split()[0] == job_id or (job_id is None and "…" in header)
        assert header.split()[1] == "tiny"
        bar, facts, *workers = drawn(screen, header)[1:]
        assert len(bar) == columns - 1
        assert _BAR.match(bar), bar
        assert _FACTS.match(facts), facts
        assert len(workers) == 1
        assert _WORKER.match(workers[0]), workers
        percents.append((int(bar.split()[-1].rstrip("%")), int(facts.split()[0])))
        # Nothing is glued to it, nor left of an earlier one.
        assert screen[0] == "Submitted 120 rows in 3 shards."
        assert sum(line.endswith("%") for line in screen) == 1
    # It moved with the tokens of rows that were not done, and never back.
    assert any(percent > 100 * num_done // 120 for percent, num_done in percents)
    assert [percent for percent, _ in percents] == sorted(percent for percent, _ in percents)
    # In the end only the summary stands there.
    assert not any("─" in line or "━" in line for line in terminal.lines)
    last = "\n".join(terminal.lines)
    assert re.search(r"^Rows +120 in = 120 ok \+ 0 error$", last, re.M)
    assert terminal.lines[0] == "Submitted 120 rows in 3 shards."


def test_ctrl_c_leaves_what_to_do_and_nothing_else(family: Family, model: Path) -> None:
    with run_on(family, model, 80, 24, job_id="out") as terminal:
        terminal.wait_for(lambda lines: any("120 rows  running" in line for line in lines), what="a job that runs")
        terminal.press("\x03")
        assert terminal.wait() == EXIT_INTERRUPTED

    lines = terminal.lines
    at = next(at for at, line in enumerate(lines) if line.startswith("Stopped: "))
    assert lines[0] == "Submitted 120 rows in 3 shards."
    assert lines[1].startswith("Engine     tiny: ")
    assert "batcher run " in "".join(lines[at + 1 :])
    for word in ("Requeuing", "undeliverable", "Traceback", "━", "%"):
        assert word not in "\n".join(lines)


def test_status_watches_a_job_of_others_and_the_list_fits(family: Family, model: Path) -> None:
    with run_on(family, model, 80, 24) as running:
        running.wait_for(lambda lines: any("120 rows  running" in line for line in lines), what="a job that runs")
        command = [BATCHER, "status", LONG_ID, "--watch"]
        with PseudoTerminal(command, columns=80, rows=24, cwd=family.folder, env=family.environment) as watching:
            assert running.wait() == 0
            assert watching.wait() == 0

    assert any("120 rows  running" in line for screen in watching.screens for line in screen)
    # Two rows of the terminal.
    assert "".join(watching.lines[:2]) == f"Job       {LONG_ID}: complete"
    assert not any("━" in line for line in watching.lines)
    command = [BATCHER, "list", "--jobs-dir", "."]
    with PseudoTerminal(command, columns=80, rows=24, cwd=family.folder, env=family.environment) as listing:
        assert listing.wait() == 0
    header, line = listing.lines
    assert header.split() == ["JOB", "STATE", "DONE", "ROWS", "ERRORS", "TOK/S", "ETA", "MODEL", "CREATED"]
    assert line.split()[1:5] == ["complete", "100%", "120", "0"]
    assert b"\x1b[32mcomplete" in listing.output
    assert read_status(JobDir(family.folder / LONG_ID)).is_complete
