"""Durable files on the local disk. Owns the one primitive the job directory rests on: create if absent.

A file appears whole or not at all: it is written under a temporary name in the folder it is meant for (hard links don't
cross file systems), flushed to disk, linked to its final name, and the folder is flushed. `link(2)` fails where the
name exists, so of two writers one wins, and neither can tear or replace the other's file. Temporary names begin with
a dot: dataset readers (pyarrow, pandas, DuckDB's `*.parquet`) skip them.
"""

import contextlib
import errno
import math
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from batcher.errors import StorageError

TEMP_PREFIX = ".tmp-"

#: Raises where a file should not be written any more, because what it belongs to is gone.
Guard = Callable[[], None]

_REMEDIES = {
    errno.ENOSPC: "free some space there, then try again",
    errno.EDQUOT: "free some space there or raise the quota, then try again",
    errno.EROFS: "make it writable, or use another folder",
    errno.EACCES: "give this user access to it, or use another folder",
    errno.EXDEV: "the folder must lie in one file system",
}


def reason(exc: OSError) -> str:
    """What the system said, and what can be done about it where that is known."""
    text = exc.strerror or str(exc)
    remedy = _REMEDIES.get(exc.errno or 0)
    return f"{text}; {remedy}" if remedy else text


def temp_path(target: Path, *, parents: bool = True) -> Path:
    """A fresh temporary name in the folder of `target`. Creates the folder (with its `parents`), not the file."""
    try:
        target.parent.mkdir(parents=parents, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{target.parent}: cannot create the folder: {reason(exc)}") from exc
    return target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"


def publish_if_absent(temp: Path, target: Path, *, guard: Guard | None = None) -> bool:
    """Give the finished file `temp` its final name. Returns whether this call created it; `temp` is gone either way.

    Durable once it returns: file and folder are flushed. Raises StorageError where the disk says no, and whatever
    `guard` raises, which is asked while `temp` lies in the folder: a deletion that begins later takes `temp` along.
    """
    try:
        _fsync(temp)
        if guard is not None:
            guard()
        try:
            os.link(temp, target)
        except FileExistsError:
            # A network file system can make the link, lose its answer, and see it there at the second try.
            if not temp.samefile(target):
                return False
        _fsync(target.parent)
        return True
    except FileNotFoundError as exc:
        # `temp` was swept as a leftover: whoever did it had reason to believe that nobody needs it any more.
        if target.exists():
            return False
        raise StorageError(f"{target}: cannot create: its folder was cleared meanwhile") from exc
    except OSError as exc:
        raise StorageError(f"{target}: cannot create: {reason(exc)}") from exc
    finally:
        discard(temp)


def create_if_absent(target: Path, data: bytes | bytearray, *, guard: Guard | None = None) -> bool:
    """Create `target` holding `data`. Returns False, changing nothing, where it exists.

    `guard` is asked before anything is made, and again before the name appears.
    """
    if guard is not None:
        guard()
    temp = temp_path(target)
    _write(temp, data, target=target)
    return publish_if_absent(temp, target, guard=guard)


def replace(target: Path, data: bytes, *, guard: Guard | None = None) -> None:
    """Write `target` whole, replacing what is there. Only for files that nothing's correctness rests on."""
    if guard is not None:
        guard()
    temp = temp_path(target)
    _write(temp, data, target=target)
    try:
        _fsync(temp)
        if guard is not None:
            guard()
        temp.replace(target)
        _fsync(target.parent)
    except FileNotFoundError as exc:
        # Swept by who has just written `target` and ended the job.
        if not target.exists():
            raise StorageError(f"{target}: cannot write: its folder was cleared meanwhile") from exc
    except OSError as exc:
        raise StorageError(f"{target}: cannot write: {reason(exc)}") from exc
    finally:
        discard(temp)


def move(source: Path, target: Path) -> None:
    """Give a file another name, durably. Raises FileNotFoundError where it is gone, StorageError where that can't be.

    To another file system it is copied, and hidden from dataset readers at its old place first.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            hidden = source.with_name(f".{target.name}")
            source.rename(hidden)
            create_if_absent(target, hidden.read_bytes())
            hidden.unlink()
        _fsync(source.parent)
        _fsync(target.parent)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StorageError(f"{source}: cannot move to {target}: {reason(exc)}") from exc


def delete(path: Path) -> None:
    """Delete a file durably; one already gone is no error, on a file system that is read-only either."""
    try:
        if not os.path.lexists(path):
            return
        path.unlink(missing_ok=True)
        _fsync(path.parent)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StorageError(f"{path}: cannot delete: {reason(exc)}") from exc


def discard(temp: Path) -> None:
    """Delete a temporary file, if that is possible. A sweep will do it otherwise."""
    with contextlib.suppress(OSError):
        temp.unlink(missing_ok=True)


def sweep_temporary(folder: Path, *, before: float = math.inf) -> int:
    """Delete the temporary files that killed writers left in `folder`. Returns how many. Never raises.

    A writer that is still alive is told that its file exists, if it does, and fails otherwise: so only for folders that
    hold all they should, or for files last written `before` a time (Unix seconds, by the file system's clock).
    """
    num_deleted = 0
    with contextlib.suppress(OSError):
        for path in list(folder.glob(f"{TEMP_PREFIX}*")):
            if path.stat().st_mtime < before:
                discard(path)
                num_deleted += 1
    return num_deleted


def flush_folder(folder: Path) -> None:
    """Make what was created or deleted in `folder` durable. Raises StorageError."""
    try:
        _fsync(folder)
    except OSError as exc:
        raise StorageError(f"{folder}: cannot write: {reason(exc)}") from exc


def _write(temp: Path, data: bytes | bytearray, *, target: Path) -> None:
    try:
        temp.write_bytes(data)
    except OSError as exc:
        discard(temp)
        raise StorageError(f"{target}: cannot write: {reason(exc)}") from exc


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
