"""A status as lines: what stands where, and that nothing is wider or higher than the terminal."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.api.screen import screen
from batcher.api.status_texts import status_line
from batcher.jobdir.heartbeats import Health, utc_now
from batcher.jobdir.pulse import WorkerState
from batcher.manage.status import JobState, ShardFailure, Status, WorkerStatus, read_status
from tests.support.job_files import make_job

WORKER = WorkerStatus(
    *("w1", "host", 17, Health.ALIVE, WorkerState.WORKING, 1.0, 0.0, (0, 2, 5, 6), False, 0, ""),
    num_slots=32,
    num_running=30,
    tokens_per_s=118.64,
)
LONG_ID = "prompts-of-the-night-20261130T183200Z-a1b2c3-x"


@pytest.fixture
def status(tmp_path: Path) -> Status:
    """A job in the middle of it, with all that a job can have."""
    found = read_status(make_job(tmp_path / "20261130-qxkv", (260,)))
    return replace(
        found,
        state=JobState.RUNNING,
        num_done=106,
        num_ok=103,
        num_errors=3,
        num_crashes=1,
        models=("smollm2-135m",),
        progress=0.4199,
        tokens_per_s=118.64,
        eta_s=88.2,
        elapsed_s=61.0,
        started_at=utc_now(),
        error_codes={"timeout": 2, "context_length_exceeded": 1},
        error_reasons={
            "timeout": "not finished after 30 s, with 12 of at most 200 tokens;\n give it a smaller max_tokens"
        },
        failures=(ShardFailure(7, 1, "w1", "disk full", utc_now(), True),),
        workers=(WORKER, replace(WORKER, name="worker-2", health=Health.GONE, age_s=80.2, shards=(4,))),
        unserved_models={},
    )


def shown(status: Status, *, width: int = 79, height: int = 23, is_unicode: bool = True) -> list[str]:
    lines = screen(status, progress=status.progress, width=width, height=height, is_unicode=is_unicode)
    return [line.plain for line in lines]


def test_screen_of_80_columns_says_it_all(status: Status) -> None:
    assert shown(status) == [
        "20261130-qxkv  smollm2-135m  260 rows  running",
        "━" * 30 + "─" * 43 + "   41%",
        "106 of 260 rows  118.6 tokens/s  ETA 1m28s  3 errors  1 crash  after 1m01s",
        "timeout 2: not finished after 30 s, with 12 of at most 200 tokens; give it a s…",
        "context_length_exceeded 1",
        "shard 7: disk full",
        "w1        working on shards 0, 2, 5, 6  30 of 32 slots, 118.6 tokens/s",
        "worker-2  gone for 1 min 20 s, held shard 4",
    ]


@pytest.mark.parametrize("job_id", ["20261130-qxkv", LONG_ID])
@pytest.mark.parametrize(
    "models", [("smollm2-135m",), ("hf:bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M", "模型", "c"), ()]
)
def test_nothing_is_wider_or_higher_than_there_is_room(status: Status, job_id: str, models: Sequence[str]) -> None:
    workers = tuple(replace(WORKER, name=f"{'a-long-name-of-a-host' * (n % 3)}-{n}") for n in range(30))
    status = replace(status, job_id=job_id, models=tuple(models), workers=workers, num_rows=1_234_567)
    for width in (*range(39, 100), *range(100, 201, 10)):
        for height in (1, 3, 5, 23):
            lines = screen(status, progress=0.5, width=width, height=height)
            assert len(lines) <= height
            assert max(line.cell_len for line in lines) <= width
            assert lines[0].plain.startswith(job_id[:6])
            assert lines[0].plain.endswith("running")
            if height >= 3:
                assert lines[1].cell_len == width
                assert lines[2].plain.startswith("106 of 1,234,567 rows")


def test_id_is_shortened_in_the_middle_before_the_state_is_lost(status: Status) -> None:
    header = shown(replace(status, job_id=LONG_ID), width=59)[0]

    assert header.endswith("  smollm2-135m  260 rows  running")
    assert "…" in header.split()[0]
    assert header.split()[0].endswith("-x")


def test_many_workers_are_counted_those_in_trouble_first(status: Status) -> None:
    workers = tuple(
        replace(WORKER, name=f"w{n:02d}", health=Health.GONE if n == 19 else Health.ALIVE) for n in range(20)
    )

    lines = shown(replace(status, workers=workers), height=12)

    assert len(lines) == 12
    assert lines[6].startswith("w19  gone")
    assert lines[-1] == "and 15 more workers"


def test_rows_in_flight_make_no_job_done(status: Status) -> None:
    assert shown(replace(status, progress=0.9999))[1].endswith(" 99%")
    done = shown(replace(status, num_done=260, progress=1.0))
    assert done[1] == "━" * 73 + "  100%"


def test_terminal_without_unicode_gets_none(status: Status) -> None:
    lines = shown(replace(status, progress=0.5), is_unicode=False)

    assert all(line.isascii() for line in lines)
    assert lines[1] == "#" * 36 + "-" * 37 + "   50%"


def test_model_that_nobody_has_is_named(status: Status) -> None:
    lines = shown(replace(status, unserved_models={"gemma3:27b": 1, "qwen": 4}))

    assert "1 row waits for gemma3:27b, which no worker has" in lines


def test_control_characters_of_a_message_cannot_drive_the_terminal(status: Status) -> None:
    status = replace(
        status, error_reasons={"timeout": "\x1b[2Jred\r\x07"}, workers=(replace(WORKER, name="\x1b]0;x\x07"),)
    )

    assert all(char.isprintable() for line in shown(status) for char in line)


def test_line_off_a_terminal_is_short(status: Status) -> None:
    assert status_line(status) == ("running, 41%, 106 of 260 rows, 118.6 tokens/s, ETA 1 min 28 s, 3 errors, 1 crash")
    waiting = replace(
        status,
        state=JobState.WAITING,
        progress=0.0,
        num_done=0,
        tokens_per_s=0.0,
        eta_s=None,
        num_errors=0,
        num_crashes=0,
    )
    assert status_line(waiting) == "waiting, 0%, 0 of 260 rows"
