"""A job's place among others: what can be asked for, and what is noted of it."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from batcher.errors import InputError
from batcher.jobdir.standing import (
    USUAL,
    Standing,
    change_standing,
    parse_finish_by,
    parse_priority,
    read_standing,
    write_first_standing,
)
from batcher.types import PRIORITIES
from tests.support.job_files import make_bare_job

NOW = datetime(2026, 12, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("value", [*PRIORITIES, *map(str, PRIORITIES)])
def test_each_level_is_a_priority_as_number_and_as_text(value: int | str) -> None:
    assert parse_priority(value) == int(value)


def test_names_are_priorities() -> None:
    assert [parse_priority(name) for name in ("low", "normal", "urgent", " Urgent ")] == [0, 5, 9, 9]


@pytest.mark.parametrize("value", [-1, 10, "10", "-1", "", "high", "5.0", 5.0, True, None, "²", "9" * 5000, [9]])
def test_anything_else_is_refused_with_what_can_be_given(value: object) -> None:
    with pytest.raises(InputError, match="give 0 to 9, of which 9 is the most urgent, or one of low, normal, urgent"):
        parse_priority(value)


@pytest.mark.parametrize(
    ("value", "at"),
    [
        ("2026-12-01T18:00Z", NOW + timedelta(hours=6)),
        ("2026-12-01T18:00+01:00", NOW + timedelta(hours=5)),
        ("2026-12-02 00:00:00+00:00", NOW + timedelta(hours=12)),
        ("+2h", NOW + timedelta(hours=2)),
        ("+30m", NOW + timedelta(minutes=30)),
        ("+1.5h", NOW + timedelta(minutes=90)),
        ("+1d12h5m", NOW + timedelta(days=1, hours=12, minutes=5)),
        (timedelta(seconds=1), NOW + timedelta(seconds=1)),
        (datetime(2026, 12, 1, 18, tzinfo=timezone(timedelta(hours=2))), NOW + timedelta(hours=4)),
    ],
)
def test_time_is_taken_in_each_form_and_kept_in_utc(value: datetime | timedelta | str, at: datetime) -> None:
    found = parse_finish_by(value, now=NOW)

    assert (found, found.utcoffset()) == (at, timedelta(0))


def test_time_without_a_zone_is_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    local = datetime.now().astimezone().replace(microsecond=0) + timedelta(hours=2)

    for value in (local.replace(tzinfo=None), local.replace(tzinfo=None).isoformat()):
        assert parse_finish_by(value) == local


@pytest.mark.parametrize(
    "value", ["2026-12-01T12:00Z", "2026-11-30", "2026-12-01T13:30+02:00", "+0h", timedelta(), timedelta(hours=-1)]
)
def test_time_that_is_over_is_refused(value: timedelta | str) -> None:
    with pytest.raises(InputError, match=r"which is over \(it is 2026-12-01T12:00Z\); give a time such as"):
        parse_finish_by(value, now=NOW)


@pytest.mark.parametrize("value", ["", "+", "2h", "+2", "+h", "tomorrow", "2026-13-01", "+1h1d", "+9999999999d"])
def test_what_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="no time; give a time such as"):
        parse_finish_by(value, now=NOW)


def test_job_has_what_was_asked_for_and_keeps_what_a_change_does_not_name(tmp_path: Path) -> None:
    job = make_bare_job(tmp_path / "job", 1)
    assert read_standing(job) == USUAL
    assert read_standing(job).level == 5

    write_first_standing(job, Standing(priority=7))
    assert read_standing(job) == Standing(priority=7)
    assert change_standing(job, Standing(finish_by=NOW)) == read_standing(job) == Standing(7, NOW)
    assert change_standing(job, Standing(priority=0)) == read_standing(job) == Standing(0, NOW)
    assert change_standing(job, USUAL, forgets_time=True) == read_standing(job) == Standing(0)


def test_usual_job_has_no_file(tmp_path: Path) -> None:
    job = make_bare_job(tmp_path / "job", 1)

    write_first_standing(job, USUAL)
    change_standing(job, USUAL)

    assert not job.standing_path.exists()


@pytest.mark.parametrize("data", [b"", b"{", b"9", b'{"priority": "x"}', b"\xff", b'{"finish_by": "2026-12-01T12:00"}'])
def test_file_that_cannot_be_read_stops_nothing(tmp_path: Path, data: bytes) -> None:
    job = make_bare_job(tmp_path / "job", 1)
    job.standing_path.write_bytes(data)

    assert read_standing(job) == USUAL


def test_priority_beyond_the_last_is_none(tmp_path: Path) -> None:
    job = make_bare_job(tmp_path / "job", 1)
    job.standing_path.write_text('{"priority": 10, "finish_by": "2026-12-01T12:00:00Z"}')

    assert read_standing(job) == Standing(None, NOW)
