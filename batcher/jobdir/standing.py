"""Where a job stands among others on the same workers: a small file beside the manifest, which can change as it goes.

    JOB/standing.json     its priority, and when it has to be finished; without it, it is a normal job for any time

A file that somebody wrote by hand and that can't be read is passed over: no job must stop for it.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive
from batcher.types import NORMAL, PRIORITIES, PRIORITY_NAMES

_SPAN = re.compile(r"^\+(?=\d)(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?\Z")
_TIME_REMEDY = "give a time such as 2027-01-31T18:00 or 2027-01-31T18:00+01:00, or how long from now: +2h, +30m, +1d12h"


@dataclass(frozen=True, slots=True)
class Standing:
    """A job's place among others. Of a wish None is what was not asked for, of a job what it has not."""

    priority: int | None = None
    finish_by: AwareDatetime | None = None

    @property
    def level(self) -> int:
        """The priority in any case."""
        return NORMAL if self.priority is None else self.priority


USUAL = Standing()

_STANDING = TypeAdapter(Standing)


def parse_priority(value: object) -> int:
    """A priority from a number or a name. Raises InputError."""
    text = str(value).strip().lower()
    if isinstance(value, str) and text in PRIORITY_NAMES:
        return PRIORITY_NAMES[text]
    is_number = isinstance(value, int | str) and not isinstance(value, bool) and text.isascii() and text.isdigit()
    if is_number and len(text) < 4 and int(text) in PRIORITIES:
        return int(text)
    first, last = PRIORITIES[0], PRIORITIES[-1]
    raise InputError(
        f"priority is {value!r}: give {first} to {last}, of which {last} is the most urgent, or one of "
        f"{', '.join(PRIORITY_NAMES)}"
    )


def parse_finish_by(value: datetime | timedelta | str, *, now: datetime | None = None) -> datetime:
    """When a job has to be finished, in UTC: a time, one without a zone being of this machine's, or how long from now.

    Raises InputError for what is none, and for a time that is over.
    """
    now = now or datetime.now(UTC)
    try:
        at = _time_of(value, now)
    except (ValueError, OverflowError) as exc:
        raise InputError(f"finish_by is {str(value)!r}: no time; {_TIME_REMEDY}") from exc
    if at <= now:
        raise InputError(f"finish_by is {str(value)!r}, which is over (it is {now:%Y-%m-%dT%H:%MZ}); {_TIME_REMEDY}")
    return at


def _time_of(value: datetime | timedelta | str, now: datetime) -> datetime:
    if isinstance(value, timedelta):
        return now + value
    if isinstance(value, str) and (match := _SPAN.match(value.strip())):
        days, hours, minutes = (float(part or 0) for part in match.groups())
        return now + timedelta(days=days, hours=hours, minutes=minutes)
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value.strip())
    # Without a zone, astimezone takes it for one of this machine's.
    return found.astimezone(UTC)


def read_standing(job: JobDir) -> Standing:
    """What the job has now. One read."""
    try:
        found = _STANDING.validate_json(job.store.read(job.standing_path))
    except (FileNotFoundError, ValidationError):
        return USUAL
    return found if found.level in PRIORITIES else replace(found, priority=None)


def write_first_standing(job: JobDir, standing: Standing) -> None:
    """Note what was asked for of what is no job yet. Raises StorageError."""
    if standing != USUAL:
        job.store.replace(job.standing_path, _STANDING.dump_json(standing))


def change_standing(job: JobDir, wish: Standing, *, forgets_time: bool = False) -> Standing:
    """Note what is asked for of a job; what is not stays as it was, but for a time to finish by with `forgets_time`.

    Returns what it has then. Raises JobBusyError while another command changes the job, StorageError.
    """
    with exclusive(job):
        before = read_standing(job)
        finish_by = None if forgets_time else before.finish_by
        after = Standing(before.priority if wish.priority is None else wish.priority, wish.finish_by or finish_by)
        if after != before:
            job.store.replace(job.standing_path, _STANDING.dump_json(after), guard=job.check_exists)
        return after
