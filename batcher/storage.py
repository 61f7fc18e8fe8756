"""Durable files on the local disk. Owns the one primitive the job directory rests on: create if absent.

A file appears whole or not at all: it is written under a temporary name in the folder it is meant for (hard links don't
cross file systems), flushed to disk, linked to its final name, and the folder is flushed. `link(2)` fails where the
name exists, so of two writers one wins, and neither can tear or replace the other's file. Temporary names begin with
a dot: dataset readers (pyarrow, pandas, DuckDB's `*.parquet`) skip them.
"""

import os
import uuid
from pathlib import Path

from batcher.errors import StorageError

TEMP_PREFIX = ".tmp-"


def temp_path(target: Path) -> Path:
    """A fresh temporary name in the folder of `target`. Creates the folder, not the file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{target.parent}: cannot create the folder: {exc.strerror or exc}") from exc
    return target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"


def publish_if_absent(temp: Path, target: Path) -> bool:
    """Give the finished file `temp` its final name. Returns whether this call created it; `temp` is gone either way.

    Durable once it returns: file and folder are flushed. Raises StorageError where the disk says no.
    """
    try:
        _fsync(temp)
        try:
            os.link(temp, target)
        except FileExistsError:
            return False
        _fsync(target.parent)
        return True
    except OSError as exc:
        raise StorageError(f"{target}: cannot create: {exc.strerror or exc}") from exc
    finally:
        temp.unlink(missing_ok=True)


def create_if_absent(target: Path, data: bytes) -> bool:
    """Create `target` holding `data`. Returns False, changing nothing, where it exists."""
    temp = temp_path(target)
    try:
        temp.write_bytes(data)
    except OSError as exc:
        temp.unlink(missing_ok=True)
        raise StorageError(f"{target}: cannot write: {exc.strerror or exc}") from exc
    return publish_if_absent(temp, target)


def replace(target: Path, data: bytes) -> None:
    """Write `target` whole, replacing what is there. Only for files that nothing's correctness rests on."""
    temp = temp_path(target)
    try:
        temp.write_bytes(data)
        _fsync(temp)
        temp.replace(target)
        _fsync(target.parent)
    except OSError as exc:
        temp.unlink(missing_ok=True)
        raise StorageError(f"{target}: cannot write: {exc.strerror or exc}") from exc


def delete(path: Path) -> None:
    """Delete a file durably; one already gone is no error."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            _fsync(path.parent)
    except OSError as exc:
        raise StorageError(f"{path}: cannot delete: {exc.strerror or exc}") from exc


def sweep_temporary(folder: Path) -> int:
    """Delete the temporary files that killed writers left in `folder`. Only for folders nobody writes to now."""
    stale = list(folder.glob(f"{TEMP_PREFIX}*")) if folder.is_dir() else []
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
