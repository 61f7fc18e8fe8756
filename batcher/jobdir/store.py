"""The one protocol for everything durable: what a job asks of the place where it is kept.

`local_store` keeps files in folders. A bucket can be another store: nothing here needs more than it has, which is to
create if absent, to replace if unchanged, to list a prefix and to read a range. `tests/unit/jobdir/store_contract.py`
says in tests what any store must do.

A file is named by its path, which is an address and no promise that the file system knows it. Files are whole or not
there at all, and immutable but for those that are replaced whole. There are no folders but as the beginning of paths: a
store that has real ones makes them as they are needed. Where a method says no more of its errors, it raises
StorageError where the store says no, naming the file, what was wrong and what can be done.

No method may be held to more than this: what is created or replaced is seen by whoever asks after that, and the clock
that stamps files is the store's own, which can differ from any machine's.
"""

import errno
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

#: Says of a folder, by the parts of its path below the folder that is listed, whether the files in it are wanted.
Wants = Callable[[tuple[str, ...]], bool]

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


@dataclass(frozen=True, slots=True)
class Head:
    """What a store knows of a file without reading it.

    `modified_s`: when it was written, in Unix seconds by the store's clock. `version` is another one whenever the
    content was replaced; it can only be compared.
    """

    size: int
    modified_s: float
    version: str


class Entry(Protocol):
    """A file in a listing. `parts` are those of its path below the folder that was listed, its name last."""

    @property
    def path(self) -> Path: ...

    @property
    def parts(self) -> tuple[str, ...]: ...

    def head(self) -> Head | None:
        """As the listing has it, or as it is when this is first asked; None where it is gone by then."""


class Incoming(Protocol):
    """A file on its way in, too large to be held in memory. For one thread at a time."""

    def write(self, data: bytes | memoryview, /) -> int: ...

    def commit(self, *, guard: Guard | None = None) -> bool:
        """Make the file exist, durably. Returns False where another was first, and drops this one."""

    def discard(self) -> None:
        """Leave nothing of a file that was not committed. Never raises."""


class Log(Protocol):
    """Lines that survive this process, and not the machine: a bucket has none, so they are kept beside it."""

    def append(self, line: bytes) -> None:
        """Add a line, whole. For all threads."""

    def close(self) -> None: ...


class Hold(Protocol):
    """A folder that is held against others who would hold it. `is_certain`: False where the store knows no locks."""

    @property
    def is_certain(self) -> bool: ...

    def release(self) -> None: ...


class Store(Protocol):
    """A place for durable files. For all threads; every method blocks for as long as the disk or the network takes."""

    # -- writing ------------------------------------------------------------------------------------------------

    def create(self, path: Path, data: bytes | bytearray, *, guard: Guard | None = None) -> bool:
        """Create a file, durably. Returns False, changing nothing, where it exists: of several creators one wins.

        `guard` is asked at a moment from which a deletion of all around `path` takes the new file along, and before
        anything is made that such a deletion has removed.
        """

    def begin(self, path: Path) -> Incoming:
        """Begin a file that comes piece by piece; it is created as by `create` when it is committed."""

    def replace(self, path: Path, data: bytes, *, guard: Guard | None = None, is_durable: bool = True) -> None:
        """Write a file whole, whatever is there. `is_durable` False: a machine that fails may take it along.

        A store with folders makes that of the file and none above it: a job that was deleted does not come back.
        """

    def replace_if(self, path: Path, data: bytes | bytearray, *, version: str) -> bool:
        """Write a file whole if it is there in this version. Returns whether it was: of several writers one wins."""

    def move(self, source: Path, target: Path) -> None:
        """Give a file another name. Raises FileNotFoundError where it is gone. A crash can leave both names."""

    def log(self, path: Path) -> Log:
        """Begin a log, which must not exist. `read` and `list` find it where this machine can see it."""

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, path: Path) -> bytes:
        """The content. Raises FileNotFoundError where there is no such file."""

    def tail(self, path: Path, num_bytes: int) -> tuple[int, bytes]:
        """The size and the last bytes, all of them where it has fewer. Raises FileNotFoundError likewise."""

    def open(self, path: Path) -> BinaryIO:
        """The content piece by piece, of the file as it is now. Raises FileNotFoundError likewise."""

    # -- looking ------------------------------------------------------------------------------------------------

    def head(self, path: Path) -> Head | None:
        """What is known of a file; None where there is none."""

    def list(self, folder: Path, *, wants: Wants | None = None) -> Sequence[Entry]:
        """All files below `folder`, in order of the parts of their paths; none where there is no such folder.

        What was there before the listing began and still is when it ends is in it. It is made in its own order: what
        goes only after something else came that lies behind it is seen in one of both places. Files below a folder
        that the caller does not want may be left out, which spares a store that walks folders the way.
        """

    def names(self, folder: Path) -> Sequence[str]:
        """What lies directly in `folder`, files and folders, by name."""

    def leftovers(self, folder: Path, *, is_deep: bool = True) -> Sequence[Entry]:
        """What writers that were killed have left below `folder` of files that never came to be, or directly in it.

        A writer that is still alive has some as well, for as long as it takes to write a file.
        """

    def now_s(self, folder: Path) -> float:
        """The time by the clock that stamps the files in `folder`, in Unix seconds. Means to write there."""

    # -- removing -----------------------------------------------------------------------------------------------

    def delete_many(self, paths: Iterable[Path]) -> None:
        """Delete files, durably. One that is gone is no error, in a store that can only be read either."""

    def discard(self, paths: Iterable[Path]) -> None:
        """Delete files that are only dead weight, if that is possible. Never raises."""

    def delete_tree(self, path: Path) -> bool:
        """Delete all below `path`. What others add meanwhile may be left. Returns False for what is not ours to remove.

        Links are deleted, not what they lead to.
        """

    def drop_folder(self, folder: Path) -> bool:
        """Forget an empty folder, where there are such. Returns False where something is in it."""

    # -- holding ------------------------------------------------------------------------------------------------

    def make_folder(self, folder: Path, *, parents: bool = True) -> bool:
        """Make a folder, where there are such, durably. Returns False where it is there already.

        With `parents` those above it as well; without, it fails where they are gone.
        Raises JobError where something else is in its place.
        """

    def hold(self, folder: Path) -> Hold | None:
        """Hold `folder`, which must exist, against others; None where another holds it.

        It ends with the process at the latest, or soon after it. Raises JobError where there is no such folder.
        """
