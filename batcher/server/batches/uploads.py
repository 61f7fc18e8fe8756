"""Files that clients of the server have uploaded. Owns `ROOT/.files` (the dot keeps it out of job ids).

    .files/file-<24 hex>/content      the bytes as they came
    .files/file-<24 hex>/meta.json    written last: its presence is the file's existence

Several servers may share a root: a file is created under a name drawn at random, never changed, and deleted by its
meta.json going first. What a killed upload or deletion left has none, and is swept after a day. The name that a client
gave is a label and no part of any path.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from batcher.errors import InputError, StorageError
from batcher.jobdir import store

logger = logging.getLogger(__name__)

#: Ids are checked against this before they touch a path.
FILE_ID_PATTERN = re.compile(r"^file-[0-9a-f]{24}\Z")

#: What an input of a batch must have been uploaded for.
BATCH_PURPOSE = "batch"
PURPOSES = ("assistants", BATCH_PURPOSE, "fine-tune", "vision", "user_data", "evals")

#: Seconds that a client may give a file to live: the documented bounds, 1 hour and 30 days.
MIN_EXPIRES_S = 3600
MAX_EXPIRES_S = 2_592_000

#: Seconds after which a folder without meta.json is no upload that is still under way.
LEFTOVER_AGE_S = 86_400.0

_MAX_FILENAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded file. Times are in Unix seconds; `expires_at` None: it stays until it is deleted."""

    id: str
    num_bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None


_META = TypeAdapter(StoredFile)


class FileStore:
    """The files under a jobs root. For all threads; everything here touches the disk. `clock` gives Unix seconds."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = root / ".files"
        self._clock = clock
        # What meta.json says never changes; that it is still there is asked each time.
        self._known: dict[str, StoredFile] = {}

    def begin(self) -> "Upload":
        """Begin a new file. Raises StorageError."""
        return Upload(self._folder, f"file-{secrets.token_hex(12)}", clock=self._clock)

    def get(self, file_id: str) -> StoredFile | None:
        """The file with this id; None where there is none, or where its time is over. Raises StorageError."""
        if not FILE_ID_PATTERN.match(file_id):
            return None
        found = self._read(file_id)
        return None if found is None or self._is_expired(found) else found

    def list_files(self) -> list[StoredFile]:
        """All files, the oldest first."""
        found = [self.get(name) for name in self._names()]
        return sorted((one for one in found if one is not None), key=lambda one: (one.created_at, one.id))

    def open(self, file_id: str) -> BinaryIO | None:
        """The content of a file, to be closed by the caller; None where there is no such file."""
        if self.get(file_id) is None:
            return None
        path = self._folder / file_id / "content"
        try:
            return path.open("rb")
        except FileNotFoundError:
            return None  # Deleted at this moment.
        except OSError as exc:
            raise StorageError(f"{path}: cannot read: {store.reason(exc)}") from exc

    def delete(self, file_id: str) -> bool:
        """Delete a file. Returns False where there is none."""
        if self.get(file_id) is None:
            return False
        return self._remove(file_id)

    def sweep(self) -> int:
        """Delete files whose time is over and what killed uploads left. Returns how many. Raises StorageError."""
        num_deleted = 0
        for name in self._names():
            found = self._read(name)
            if found is not None:
                num_deleted += self._is_expired(found) and self._remove(name)
            elif _last_written(self._folder / name) < self._clock() - LEFTOVER_AGE_S:
                shutil.rmtree(self._folder / name, ignore_errors=True)
                num_deleted += 1
        return num_deleted

    def _is_expired(self, found: StoredFile) -> bool:
        return found.expires_at is not None and found.expires_at <= self._clock()

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self._folder.iterdir() if FILE_ID_PATTERN.match(path.name)]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise StorageError(f"{self._folder}: cannot list: {store.reason(exc)}") from exc

    def _read(self, file_id: str) -> StoredFile | None:
        path = self._folder / file_id / "meta.json"
        known = self._known.get(file_id)
        try:
            if known is None:
                known = self._known[file_id] = _META.validate_json(path.read_bytes())
            elif not path.exists():
                self._known.pop(file_id, None)
                return None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValidationError as exc:
            logger.warning("%s: damaged, the file is left out: %s", path, exc.errors()[0]["msg"])
            return None
        except OSError as exc:
            raise StorageError(f"{path}: cannot read: {store.reason(exc)}") from exc
        return known

    def _remove(self, file_id: str) -> bool:
        folder = self._folder / file_id
        self._known.pop(file_id, None)
        try:
            # Of several that delete it, one finds it.
            (folder / "meta.json").unlink()
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise StorageError(f"{folder}: cannot delete: {store.reason(exc)}") from exc
        store.flush_folder(folder)
        # What can't be removed now is swept later.
        shutil.rmtree(folder, ignore_errors=True)
        return True


class Upload:
    """A file on its way in: `write`, then `commit` or `discard`. For one thread at a time, but `discard`: for any."""

    def __init__(self, home: Path, file_id: str, *, clock: Callable[[], float]) -> None:
        self._home = home
        self._id = file_id
        self._clock = clock
        self._folder = home / file_id
        self._content = self._folder / "content"
        self._temp = store.temp_path(self._content)
        self._lock = threading.Lock()
        self._is_closed = False
        self.num_bytes = 0
        try:
            self._file = self._temp.open("xb")
        except OSError as exc:
            self._remove()
            raise StorageError(f"{self._temp}: cannot create: {store.reason(exc)}") from exc

    def write(self, data: bytes | memoryview) -> None:
        """Add to the content. Raises StorageError, also after `discard`."""
        with self._lock:
            self._check_open()
            try:
                self._file.write(data)
            except OSError as exc:
                raise StorageError(f"{self._content}: cannot write: {store.reason(exc)}") from exc
            self.num_bytes += len(data)

    def commit(self, *, purpose: str, filename: str, expires_after_s: int | None = None) -> StoredFile:
        """Make the file exist, durably. Raises InputError for a purpose or time to live that can't be, StorageError."""
        if purpose not in PURPOSES:
            raise InputError(f"purpose is {purpose[:60]!r}; use one of: {', '.join(PURPOSES)}")
        check_expires_after(expires_after_s)
        with self._lock:
            self._check_open()
            now = int(self._clock())
            expires_at = None if expires_after_s is None else now + expires_after_s
            stored = StoredFile(self._id, self.num_bytes, now, as_label(filename), purpose, expires_at)
            try:
                self._file.close()
            except OSError as exc:
                raise StorageError(f"{self._content}: cannot write: {store.reason(exc)}") from exc
            created = store.publish_if_absent(self._temp, self._content)
            assert created, "ids are drawn at random"
            store.flush_folder(self._home)
            store.create_if_absent(self._folder / "meta.json", _META.dump_json(stored, indent=1))
            self._is_closed = True
        return stored

    def discard(self) -> None:
        """Leave nothing of a file that was not committed. Never raises."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                with contextlib.suppress(OSError):
                    self._file.close()
                self._remove()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError(f"{self._content}: the upload was discarded")

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def check_expires_after(seconds: int | None) -> None:
    """Raise InputError for a time to live outside the documented bounds."""
    if seconds is not None and not MIN_EXPIRES_S <= seconds <= MAX_EXPIRES_S:
        raise InputError(f"expires_after.seconds is {seconds}; use {MIN_EXPIRES_S} to {MAX_EXPIRES_S}")


def as_label(filename: str) -> str:
    """The name of a file as a label: without folders, what is not printable, and more than can be shown."""
    last = re.split(r"[/\\]", filename)[-1]
    label = "".join(c for c in last if c.isprintable()).strip()
    return label[:_MAX_FILENAME_CHARS] or "upload"


def _last_written(folder: Path) -> float:
    """When something was last written in a folder, in Unix seconds; now where that can't be said."""
    try:
        with os.scandir(folder) as entries:
            return max([folder.stat().st_mtime, *(entry.stat().st_mtime for entry in entries)])
    except OSError:
        return time.time()
