"""What a check of the doctor says."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is: `fail` where no job could be run or submitted from here as asked, `warn` where only some
    can't, or where a job would be slower or less safe than it could be.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `message` names the thing and its value. `remedy` is empty where there is nothing to do."""

    name: str
    level: Level
    message: str
    remedy: str = ""


def size_text(num_bytes: float) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"
