"""The store that keeps files in folders of this machine, or of a network file system. Owns create-if-absent there.

A file appears whole or not at all: it is written under a temporary name in the folder it is meant for (hard links don't
cross file systems), flushed to disk, linked to its final name, and the folder is flushed. `link(2)` fails where the
name exists, so of two writers one wins, and neither can tear or replace the other's file. Temporary names begin with
a dot: dataset readers (pyarrow, pandas, DuckDB's `*.parquet`) skip them.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from batcher.errors import JobError, StorageError
from batcher.jobdir.store import Entry, Guard, Head, Hold, Incoming, Log, Wants, reason

TEMP_PREFIX = ".tmp-"


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
    if os.path.lexists(target):
        return False
    temp = temp_path(target)
    _write(temp, data, target=target)
    return publish_if_absent(temp, target, guard=guard)


def replace(target: Path, data: bytes | bytearray, *, guard: Guard | None = None, is_durable: bool = True) -> None:
    """Write `target` whole, replacing what is there, of which nobody is asked."""
    if guard is not None:
        guard()
    temp = temp_path(target, parents=False)
    _write(temp, data, target=target)
    try:
        if is_durable:
            _fsync(temp)
        if guard is not None:
            guard()
        _set_apart(temp, target)
        temp.replace(target)
        if is_durable:
            _fsync(target.parent)
    except FileNotFoundError as exc:
        # Swept by who has just written `target` and ended the job.
        if not target.exists():
            raise StorageError(f"{target}: cannot write: its folder was cleared meanwhile") from exc
    except OSError as exc:
        raise StorageError(f"{target}: cannot write: {reason(exc)}") from exc
    finally:
        discard(temp)


def _set_apart(temp: Path, target: Path) -> None:
    """Give `temp` another version than `target` has: the clock of a file system can stand for milliseconds."""
    with contextlib.suppress(FileNotFoundError):
        new, old = temp.stat(), target.stat()
        if _version(new) == _version(old):
            os.utime(temp, ns=(new.st_atime_ns, new.st_mtime_ns + 1_000_000))


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


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name that takes the place of `target`, a user's own file, durably, if the block ends well."""
    temp = temp_path(target)
    try:
        yield temp
        _fsync(temp)
        temp.replace(target)
        _fsync(target.parent)
    except OSError as exc:
        raise StorageError(f"{target}: cannot write: {reason(exc)}") from exc
    finally:
        discard(temp)


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


class LocalStore:
    """See `store.Store`. Holds no state; whoever forks or opens it twice has the same."""

    def create(self, path: Path, data: bytes | bytearray, *, guard: Guard | None = None) -> bool:
        return create_if_absent(path, data, guard=guard)

    def begin(self, path: Path) -> Incoming:
        return _Incoming(path)

    def replace(self, path: Path, data: bytes, *, guard: Guard | None = None, is_durable: bool = True) -> None:
        replace(path, data, guard=guard, is_durable=is_durable)

    def replace_if(self, path: Path, data: bytes | bytearray, *, version: str) -> bool:
        try:
            # For writing where that may be: network file systems lock no other file for one alone.
            with _open_file(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
                # Each writer locks the file that it found; who comes second finds another in its place.
                with contextlib.suppress(OSError):  # Where a file system knows no locks, the look must do.
                    fcntl.flock(file, fcntl.LOCK_EX)
                known, found = os.fstat(file.fileno()), path.stat()
                if not os.path.samestat(known, found) or _version(found) != version:
                    return False
                replace(path, data)
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            raise StorageError(f"{path}: cannot write: {reason(exc)}") from exc

    def move(self, source: Path, target: Path) -> None:
        move(source, target)

    def log(self, path: Path) -> Log:
        return _Log(path)

    def read(self, path: Path) -> bytes:
        with _reading(path), _open_file(path) as file:
            return file.read()

    def tail(self, path: Path, num_bytes: int) -> tuple[int, bytes]:
        with _reading(path), _open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - num_bytes))
            return size, file.read(num_bytes)

    def open(self, path: Path) -> BinaryIO:
        with _reading(path):
            return _open_file(path)

    def head(self, path: Path) -> Head | None:
        try:
            with _reading(path):
                found = path.stat()
        except FileNotFoundError:
            return None
        return _head(found)

    def list(self, folder: Path, *, wants: Wants | None = None) -> Sequence[Entry]:
        return [entry for entry in _walk(str(folder), wants) if not _is_temporary(entry.parts[-1])]

    def names(self, folder: Path) -> Sequence[str]:
        return [found.name for found, _ in _scan(folder) if not _is_temporary(found.name)]

    def leftovers(self, folder: Path, *, is_deep: bool = True) -> Sequence[Entry]:
        wants = None if is_deep else lambda _: False
        return [entry for entry in _walk(str(folder), wants) if _is_temporary(entry.parts[-1])]

    def now_s(self, folder: Path) -> float:
        probe = folder / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
        try:
            with probe.open("xb") as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError as exc:
            raise StorageError(f"{folder}: cannot write: {reason(exc)}") from exc
        finally:
            discard(probe)

    def delete_many(self, paths: Iterable[Path]) -> None:
        for path in paths:
            delete(path)

    def discard(self, paths: Iterable[Path]) -> None:
        for path in paths:
            discard(path)

    def delete_tree(self, path: Path) -> bool:
        return _delete_tree(path)

    def drop_folder(self, folder: Path) -> bool:
        try:
            folder.rmdir()
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            # A mount point, which is empty, and stays.
            if exc.errno not in (errno.EBUSY, errno.ENOENT):
                raise StorageError(f"{folder}: cannot delete: {reason(exc)}") from exc
        return True

    def make_folder(self, folder: Path, *, parents: bool = True) -> bool:
        try:
            if folder.is_dir():
                return False
            if parents and not folder.parent.exists():
                self.make_folder(folder.parent)
            folder.mkdir(mode=0o700 if parents and _is_of_strangers(folder.parent) else 0o777)
            _fsync(folder.parent)
        except (FileExistsError, NotADirectoryError) as exc:
            if folder.is_dir():
                return False
            raise JobError(f"{folder}: is not a folder; choose another folder or job id") from exc
        except OSError as exc:
            raise StorageError(f"{folder}: cannot create the folder: {reason(exc)}") from exc
        return True

    def hold(self, folder: Path) -> Hold | None:
        while True:
            descriptor = _open_folder(folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError:
                return _Hold(descriptor, is_certain=False)
            if _is_same(folder, descriptor):
                return _Hold(descriptor, is_certain=True)
            # Whoever held it before has removed it, and another folder is there by now, or none.
            os.close(descriptor)


#: For all that is kept in folders.
LOCAL = LocalStore()


class _Entry:
    """A file that a walk has found. What its folder does not say of it is asked when it is wanted, once."""

    __slots__ = ("_found", "parts")

    def __init__(self, found: os.DirEntry[str], parts: tuple[str, ...]) -> None:
        self._found = found
        self.parts = parts

    @property
    def path(self) -> Path:
        return Path(self._found.path)

    def head(self) -> Head | None:
        try:
            return _head(self._found.stat())
        except OSError:
            return None


class _Incoming:
    """A temporary file beside the one that it is to be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temp = temp_path(path)
        try:
            self._file = self._temp.open("xb")
        except OSError as exc:
            raise StorageError(f"{path}: cannot create: {reason(exc)}") from exc

    def write(self, data: bytes | memoryview, /) -> int:
        try:
            return self._file.write(data)
        except OSError as exc:
            raise StorageError(f"{self._path}: cannot write: {reason(exc)}") from exc

    def commit(self, *, guard: Guard | None = None) -> bool:
        try:
            self._file.close()
        except OSError as exc:
            raise StorageError(f"{self._path}: cannot write: {reason(exc)}") from exc
        return publish_if_absent(self._temp, self._path, guard=guard)

    def discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        discard(self._temp)


class _Log:
    """A file open for appending: a line is one write to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise StorageError(f"{path}: cannot create: {exc.strerror or exc}") from exc

    def append(self, line: bytes) -> None:
        try:
            os.write(self._descriptor, line)
        except OSError as exc:
            raise StorageError(f"{self._path}: cannot write: {exc.strerror or exc}") from exc

    def close(self) -> None:
        os.close(self._descriptor)


class _Hold:
    """A lock of the kernel on a folder, which goes with the process."""

    def __init__(self, descriptor: int, *, is_certain: bool) -> None:
        self._descriptor = descriptor
        self.is_certain = is_certain

    def release(self) -> None:
        os.close(self._descriptor)


def _is_of_strangers(folder: Path) -> bool:
    """Whether `folder` is one like /tmp, in which a new folder is for this user alone."""
    # Writable by everyone, and sticky: who shares it are strangers. Without that it is shared on purpose.
    return folder.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH | stat.S_ISVTX


def _open_folder(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError as exc:
        raise JobError(f"{folder}: is not a folder; choose another folder or job id") from exc
    except FileNotFoundError as exc:
        raise JobError(f"{folder}: the folder is gone; another command has deleted it") from exc
    except OSError as exc:
        raise StorageError(f"{folder}: cannot open the folder: {reason(exc)}") from exc


def _is_same(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _open_file(path: Path, mode: Literal["rb", "r+b"] = "rb") -> BinaryIO:
    """Open a file. A pipe, where one would wait for a writer, and a device, which may never end, are not opened."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, and should be a file")
    return path.open(mode)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise FileNotFoundError(exc.errno, exc.strerror, str(path)) from exc
    except OSError as exc:
        raise StorageError(f"{path}: cannot read: {reason(exc)}") from exc


def _head(found: os.stat_result) -> Head | None:
    """None for what is no file, as a folder or a pipe."""
    return Head(found.st_size, found.st_mtime, _version(found)) if stat.S_ISREG(found.st_mode) else None


def _version(found: os.stat_result) -> str:
    """Not the inode, which is soon used again, and which some network file systems make up anew."""
    return f"{found.st_mtime_ns}-{found.st_size}"


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMP_PREFIX)


def _walk(folder: str, wants: Wants | None, above: tuple[str, ...] = ()) -> Iterator[_Entry]:
    """The files below `folder`, by names in each folder: what lies behind is looked at later. Links to folders are
    followed where they lie in the first one, so that results can be kept elsewhere."""
    for found, is_folder in _scan(folder, follows=not above):
        parts = (*above, found.name)
        if not is_folder:
            yield _Entry(found, parts)
        elif wants is None or wants(parts):
            yield from _walk(found.path, wants, parts)


def _scan(folder: Path | str, *, follows: bool = False) -> list[tuple[os.DirEntry[str], bool]]:
    """What lies in a folder by name, each with whether it is a folder or, where it `follows`, a link to one."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
            return [(entry, entry.is_dir(follow_symlinks=follows)) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise StorageError(f"{folder}: cannot list: {reason(exc)}") from exc


def _delete_tree(path: Path) -> bool:
    if _is_empty_mount(path):
        return False
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as exc:  # Where a file in it is gone or new, by its writer, who looks again finds what is left.
        if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            raise StorageError(f"{path}: cannot delete: {reason(exc)}") from exc
    return not _is_empty_mount(path)


def _is_empty_mount(path: Path) -> bool:
    """Whether somebody has mounted a file system there, of which nothing is left but its root."""
    try:
        return path.is_mount() and not _scan(path)
    except PermissionError:  # Below a folder that may not be entered; whoever deletes it is told so.
        return False
