"""What was fetched by us: in the folder of a repository a file for each blob whose checksum was found right.

It tells what is ours to remove, and what needs no second look. It goes with the folder, whoever deletes that, and where
it can't be written nothing is lost but that.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

#: Beside `blobs`, `refs` and `snapshots`; the hub's programs pass over what they do not know.
_FOLDER = "batcher"


@dataclass(frozen=True, slots=True)
class Record:
    """A file that was fetched. `checksum` is "sha256:HEX", of small files "git-sha1:HEX", as the hub gives it."""

    file: str
    commit: str
    checksum: str
    num_bytes: int
    fetched_at: str


def write_record(blob: Path, *, file: str, commit: str, checksum: str, num_bytes: int) -> None:
    """Note that the blob is whole, and ours."""
    record = Record(file, commit, checksum, num_bytes, datetime.now(UTC).isoformat(timespec="seconds"))
    path = _path(blob)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        temporary.replace(path)


def read_record(blob: Path) -> Record | None:
    """The record of a blob, if it is of the file that lies there now."""
    try:
        record = Record(**json.loads(_path(blob).read_text(encoding="utf-8")))
        return record if blob.stat().st_size == record.num_bytes else None
    except (OSError, ValueError, TypeError):
        return None


def forget_record(blob: Path) -> None:
    """Delete the record of a blob that is gone."""
    with contextlib.suppress(OSError):
        _path(blob).unlink()


def _path(blob: Path) -> Path:
    return blob.parent.parent / _FOLDER / f"{blob.name}.json"
