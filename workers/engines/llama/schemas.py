"""JSON schemas as they are given to llguidance: its dates are made those of the calendar.

By its own `date` and `date-time` there is a year 0, and a 29th of February in each year, which validators refuse.
"""

import json
from typing import Any

#: Where values lie that are no schemas.
_DATA = frozenset({"const", "enum", "default", "examples"})

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#: What a date begins with. The formats themselves say how many days the months have.
_REAL_DATE = f"^(?:{_YEAR}-(?:0[13-9]|1[0-2]|02-(?:[01]|2[0-8]))|{_LEAP_YEAR}-02-29)"


def with_real_dates(text: str) -> str:
    """The JSON text of a schema, whose dates there are."""
    if '"date' not in text:
        return text
    schema = json.loads(text)
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += _inner(value)
            if value.get("format") in ("date", "date-time") and "pattern" not in value:
                value["pattern"] = _REAL_DATE
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _inner(schema: dict[str, Any]) -> list[Any]:
    return [item for key, item in schema.items() if key not in _DATA and isinstance(item, dict | list)]
