"""Dates, times and durations of any size as ISO 8601, from the integers that Arrow keeps.

Python's own types end at microseconds and at the years 1 and 9999. A year outside 0000 to 9999 has a sign in front,
and as many digits as it needs; fractions of a second have as many digits as they need, and none where they are zero.
"""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo

#: Of 1970-01-01, as `date.toordinal` counts.
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_LAST_ORDINAL = date.max.toordinal()
#: The calendar repeats itself after this many days and years.
_CYCLE_DAYS, _CYCLE_YEARS = 146_097, 400
_DAY_S = 86_400

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)\Z")

#: By unit of time.
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

_DATE = r"([+-]?\d{4,})-(\d\d)-(\d\d)"
_TIME = r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
_DATE_TEXT = re.compile(_DATE, re.ASCII)
_TIME_TEXT = re.compile(_TIME, re.ASCII)
_TIMESTAMP_TEXT = re.compile(rf"{_DATE}(?:[T ]{_TIME}(Z|[+-]\d\d:?\d\d(?::\d\d)?)?)?", re.ASCII)
_DURATION_TEXT = re.compile(
    r"(-)?P(?=.)(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.(\d{1,9}))?S)?)?", re.ASCII
)
_MAX_SECONDS = 2**63


def date_text(days: int) -> str:
    """The date that is `days` after 1970-01-01."""
    ordinal = days + _EPOCH_ORDINAL
    if 1 <= ordinal <= _LAST_ORDINAL:
        return date.fromordinal(ordinal).isoformat()
    cycles, rest = divmod(ordinal - 1, _CYCLE_DAYS)
    found = date.fromordinal(rest + 1)
    year = found.year + cycles * _CYCLE_YEARS
    sign = "-" if year < 0 else "+" if year > 9999 else ""
    return f"{sign}{abs(year):04d}-{found.month:02d}-{found.day:02d}"


def time_text(ticks: int, per_second: int) -> str:
    """The time of day that is so many ticks after midnight."""
    seconds, rest = divmod(ticks, per_second)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}{_fraction(rest, per_second)}"


def timestamp_texts(values: Sequence[int | None], per_second: int, *, zone: str | None) -> list[str | None]:
    """The moments that are so many ticks after 1970.

    Without a zone they are local to nowhere and have no offset. With one they have its offset, `Z` for UTC; also `Z`
    where this machine does not know the zone, or its rules do not reach so far.
    """
    rules = None if zone is None else _zone(zone)
    return [None if value is None else _timestamp_text(value, per_second, zone, rules) for value in values]


def duration_text(ticks: int, per_second: int) -> str:
    """As in `P1DT2H3M4.5S`; a negative one begins with a minus."""
    seconds, rest = divmod(abs(ticks), per_second)
    days, seconds = divmod(seconds, _DAY_S)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    fraction = _fraction(rest, per_second)
    clock = _parts((f"{hours}H", hours), (f"{minutes}M", minutes), (f"{seconds}{fraction}S", seconds or fraction))
    text = _parts((f"{days}D", days)) + (f"T{clock}" if clock else "")
    return f"{'-' if ticks < 0 else ''}P{text or 'T0S'}"


def interval_text(months: int, days: int, nanoseconds: int) -> str:
    """As in `P14M3DT0.5S`: its three parts don't convert into each other, and each has its own sign."""
    seconds, rest = divmod(abs(nanoseconds), 1_000_000_000)
    sign = "-" if nanoseconds < 0 else ""
    clock = f"T{sign}{seconds}{_fraction(rest, 1_000_000_000)}S" if nanoseconds else ""
    return f"P{_parts((f'{months}M', months), (f'{days}D', days)) + clock or 'T0S'}"


def date_ticks(text: str, per_day: int) -> Decimal | None:
    """The ticks after 1970 of a date as `date_text` writes it; None for no such text, as for those below."""
    found = _DATE_TEXT.fullmatch(text)
    days = None if found is None else _days(*found.groups())
    return None if days is None else Decimal(days * per_day)


def time_ticks(text: str, per_second: int) -> Decimal | None:
    """The ticks after midnight, exact also between two of them. Seconds may be left out."""
    found = _TIME_TEXT.fullmatch(text)
    return None if found is None else _ticks(_clock_ns(*found.groups()), per_second)


def timestamp_ticks(text: str, per_second: int, *, zone: str | None) -> Decimal | None:
    """The ticks after 1970 of a moment, or of the midnight with which a date begins.

    Without an offset it is one of the clocks of `zone`; with one, where there is no zone, None.
    """
    found = _TIMESTAMP_TEXT.fullmatch(text)
    if found is None:
        return None
    year, month, day, *clock, offset = found.groups()
    days, of_day = _days(year, month, day), _clock_ns(*clock) if clock[0] else 0
    if days is None or of_day is None or (offset and zone is None):
        return None
    local = days * _DAY_S * 10**9 + of_day
    east = _offset_at(offset) if offset else _local_offset(local // 10**9, zone)
    return _ticks(local - east * 10**9, per_second)


def duration_ticks(text: str, per_second: int) -> Decimal | None:
    """The ticks of a duration as `duration_text` writes it."""
    found = _DURATION_TEXT.fullmatch(text)
    if found is None:
        return None
    sign, days, hours, minutes, seconds, fraction = found.groups()
    total = int(days or 0) * _DAY_S + int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    if total > _MAX_SECONDS:
        return None
    return _ticks((total * 10**9 + _nanoseconds(fraction)) * (-1 if sign else 1), per_second)


def _days(year: str, month: str, day: str) -> int | None:
    """After 1970-01-01; None for a day that the calendar does not have."""
    # As many digits as the seconds of an Arrow timestamp reach.
    if len(year) > 13:
        return None
    cycles, rest = divmod(int(year), _CYCLE_YEARS)
    try:
        found = date(rest + _CYCLE_YEARS, int(month), int(day))
    except ValueError:
        return None
    return found.toordinal() + (cycles - 1) * _CYCLE_DAYS - _EPOCH_ORDINAL


def _clock_ns(hour: str, minute: str, second: str | None, fraction: str | None) -> int | None:
    """Nanoseconds after midnight; None for a time that no clock shows."""
    if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 59:
        return None
    return (int(hour) * 3600 + int(minute) * 60 + int(second or 0)) * 10**9 + _nanoseconds(fraction)


def _nanoseconds(fraction: str | None) -> int:
    return int((fraction or "").ljust(9, "0"))


def _ticks(nanoseconds: int | None, per_second: int) -> Decimal | None:
    # Made of its digits, since operations round.
    return None if nanoseconds is None else Decimal(f"{nanoseconds}E-{9 - (len(str(per_second)) - 1)}")


def _offset_at(text: str) -> int:
    """Seconds east of UTC."""
    if text == "Z":
        return 0
    hours, minutes, *seconds = text[1:3], text[3:].lstrip(":")[:2], *text[7:].split(":")
    east = int(hours) * 3600 + int(minutes) * 60 + int(seconds[0] or 0 if seconds else 0)
    return -east if text[0] == "-" else east


def _local_offset(seconds: int, zone: str | None) -> int:
    """How many seconds east of UTC the clocks of a zone are when they show this moment."""
    rules = None if zone is None else _zone(zone)
    try:
        moment = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=rules)
        return (moment.utcoffset() or timedelta(0)) // timedelta(seconds=1) if rules is not None else 0
    except (OverflowError, ValueError):
        return 0


def _timestamp_text(ticks: int, per_second: int, zone: str | None, rules: tzinfo | None) -> str:
    seconds, rest = divmod(ticks, per_second)
    offset = ""
    if zone is not None:
        east = _offset(seconds, rules)
        seconds += east // timedelta(seconds=1)
        offset = _offset_text(east)
    days, second_of_day = divmod(seconds, _DAY_S)
    return f"{date_text(days)}T{time_text(second_of_day, 1)}{_fraction(rest, per_second)}{offset}"


def _offset(seconds: int, rules: tzinfo | None) -> timedelta:
    """How far east of UTC the zone's clocks are at a moment."""
    if rules is None:
        return timedelta(0)
    try:
        return (_EPOCH + timedelta(seconds=seconds)).astimezone(rules).utcoffset() or timedelta(0)
    except (OverflowError, ValueError):
        return timedelta(0)


def _offset_text(east: timedelta) -> str:
    if not east:
        return "Z"
    minutes, seconds = divmod(abs(east) // timedelta(seconds=1), 60)
    text = f"{'-' if east < timedelta(0) else '+'}{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{seconds:02d}" if seconds else text


@lru_cache(maxsize=256)
def _zone(name: str) -> tzinfo | None:
    """The rules of a zone: of its name or its offset. None for UTC, and for one that this machine does not know."""
    if name in ("UTC", "Z", "Etc/UTC"):
        return None
    if match := _OFFSET.match(name):
        sign, hours, minutes = match.groups()
        east = timedelta(hours=int(hours), minutes=int(minutes))
        try:
            return timezone(-east if sign == "-" else east)
        except ValueError:
            return None
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return None


def _fraction(rest: int, per_second: int) -> str:
    return f".{rest + per_second}".replace(".1", ".", 1).rstrip("0") if rest else ""


def _parts(*parts: tuple[str, object]) -> str:
    return "".join(text for text, is_there in parts if is_there)
