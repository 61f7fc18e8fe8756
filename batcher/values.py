"""Values as JSON: how they are written for others to read."""

import json
import re
from typing import Any

#: Characters that JSON may hold as they are, but at which many readers of lines end a line, as `str.splitlines` does.
_LINE_ENDS = re.compile("[\u2028\u2029\x85]")


def json_line(value: Any) -> str:
    """`value` as JSON that is one line to every reader. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
