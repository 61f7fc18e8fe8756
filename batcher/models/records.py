"""What was fetched by us: a file for each blob of the hub's cache whose checksum was found right.

It tells what is ours to remove, and what needs no second look. Where it can't be written nothing is lost but that.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from batcher.paths import cache_home


@dataclass(frozen=True, slots=True)
class Record:
    """A file that was fetched. `checksum` is "sha256:HEX", of small files "git-sha1:HEX", as the hub gives it."""

    repository: str
    file: str
    commit: str
    checksum: str
    num_bytes: int
    blob: str
    fetched_at: str


def records_dir() -> Path:
    """Where they are, in the user's cache folder."""
    return cache_home() / "batcher" / "models"


def write_record(*, repository: str, file: str, commit: str, checksum: str, num_bytes: int, blob: Path) -> None:
    """Note that the blob is whole, and ours."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(repository, file, commit, checksum, num_bytes, str(blob.resolve()), now)
    path = _path(blob)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
        temporary.replace(path)


def read_record(blob: Path) -> Record | None:
    """The record of a blob, if it is of the file that lies there now."""
    try:
        record = Record(**json.loads(_path(blob).read_text(encoding="utf-8")))
        is_of_it = record.blob == str(blob.resolve()) and blob.stat().st_size == record.num_bytes
    except (OSError, ValueError, TypeError):
        return None
    return record if is_of_it else None


def forget_record(blob: Path) -> None:
    """Delete the record of a blob that is gone."""
    with contextlib.suppress(OSError):
        _path(blob).unlink()


def _path(blob: Path) -> Path:
    # The same blob may be in the caches of several folders.
    return records_dir() / f"{hashlib.sha256(str(blob.resolve()).encode()).hexdigest()}.json"
