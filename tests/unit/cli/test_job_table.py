"""The table of jobs: on terminals of any width, and off them."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from batcher.cli.job_table import Screen, jobs_text
from batcher.manage.status import JobState, Status, read_status
from tests.support.job_files import make_job

LONG_ID = "prompts-of-the-night-20261130T183200Z-a1b2c3"


@pytest.fixture
def statuses(tmp_path: Path) -> Sequence[Status]:
    first = read_status(make_job(tmp_path / "20261130-qxkv", (2,)))
    created = datetime(2026, 11, 30, 18, 32, 5, tzinfo=UTC)
    running = replace(first, state=JobState.RUNNING, tokens_per_s=1204.4, eta_s=7800.0)
    return [
        replace(first, created_at=created, models=("smollm2-135m",)),
        replace(
            running, job_id=LONG_ID, num_rows=1_000_000, num_done=414_999, progress=0.415, models=("hf:a/b:Q4_K_M", "c")
        ),
        replace(first, num_rows=260, num_done=260, state=JobState.COMPLETE, models=tuple("abcde")),
        replace(first, state=JobState.CANCELLED, models=()),
    ]


@pytest.mark.parametrize("width", range(20, 201))
def test_no_line_is_longer_than_the_terminal(statuses: Sequence[Status], width: int) -> None:
    lines = jobs_text(statuses, Screen(width, has_colours=False)).splitlines()

    assert len(lines) == 5
    assert max(map(len, lines)) <= width


def test_terminal_of_80_columns_has_every_column_of_usual_jobs(statuses: Sequence[Status]) -> None:
    header, first, *_ = jobs_text(
        [statuses[0], replace(statuses[1], num_rows=10_000, num_done=4_199, progress=0.42)],
        Screen(80, has_colours=False),
    ).splitlines()

    assert header.split() == ["JOB", "STATE", "DONE", "ROWS", "ERRORS", "TOK/S", "ETA", "MODEL", "CREATED"]
    assert first.startswith("20261130-qxkv  waiting")
    assert first.endswith("  11-30")


def test_wide_terminal_and_a_pipe_have_all_of_it(statuses: Sequence[Status]) -> None:
    for screen in (None, Screen(200, has_colours=False)):
        running = jobs_text(statuses, screen).splitlines()[2]
        assert running.split()[:8] == [
            *(LONG_ID, "running", "41%", "1,000,000", "0", "1,204", "2h10m", "hf:a/b:Q4_K_M,c"),
        ]
    assert "  a,b,c,+2  " in jobs_text(statuses, None)
    assert "2026-11-30 18:32:05 UTC" in jobs_text(statuses, None)


def test_job_that_nobody_goes_on_with_is_stopped(statuses: Sequence[Status]) -> None:
    left = replace(statuses[1], started_at=statuses[0].created_at, unserved_models={"hf:a/b:Q4_K_M": 585_001})

    line = jobs_text([left, replace(left, served_models=("hf:a/b:Q4_K_M",))], Screen(80, has_colours=True))

    assert f" {click.style('stopped', fg='red')} " in line
    assert f" {click.style('running', fg='cyan')} " in line


def test_states_have_colours_and_change_nothing_else(statuses: Sequence[Status]) -> None:
    for width in (80, 200):
        coloured = jobs_text(statuses, Screen(width, has_colours=True))
        assert click.unstyle(coloured) == jobs_text(statuses, Screen(width, has_colours=False))
        assert f" {click.style('running', fg='cyan')} " in coloured
        assert f" {click.style('complete', fg='green')} " in coloured
