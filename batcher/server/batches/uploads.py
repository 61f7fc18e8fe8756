"""Files that clients of the server have uploaded. Owns `ROOT/.files` (the dot keeps it out of job ids).

    .files/file-<24 hex>/content      the bytes as they came
    .files/file-<24 hex>/meta.json    written last: its presence is the file's existence

Several servers may share a root: a file is created under a name drawn at random, never changed, and deleted by its
meta.json going first. What a killed upload or deletion left has none, and is swept after a day. The name that a client
gave is a label and no part of any path.
"""

import contextlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from batcher.errors import InputError, StorageError
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Store

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

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time, store: Store = LOCAL) -> None:
        self._folder = root / ".files"
        self._store = store
        self._clock = clock
        # What meta.json says never changes; that it is still there is asked each time.
        self._known: dict[str, StoredFile] = {}

    def begin(self) -> "Upload":
        """Begin a new file. Raises StorageError."""
        return Upload(self._store, self._folder, f"file-{secrets.token_hex(12)}", clock=self._clock)

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
            return self._store.open(path)
        except FileNotFoundError:
            return None  # Deleted at this moment.

    def delete(self, file_id: str) -> bool:
        """Delete a file. Returns False where there is none."""
        if self.get(file_id) is None:
            return False
        self._remove(file_id)
        return True

    def sweep(self) -> int:
        """Delete files whose time is over and what killed uploads left. Returns how many. Raises StorageError."""
        num_deleted = 0
        for name in self._names():
            found = self._read(name)
            if found is not None:
                if self._is_expired(found):
                    self._remove(name)
                    num_deleted += 1
            elif self._last_written(self._folder / name) < self._clock() - LEFTOVER_AGE_S:
                self._delete_folder(self._folder / name)
                num_deleted += 1
        return num_deleted

    def _is_expired(self, found: StoredFile) -> bool:
        return found.expires_at is not None and found.expires_at <= self._clock()

    def _names(self) -> list[str]:
        return [name for name in self._store.names(self._folder) if FILE_ID_PATTERN.match(name)]

    def _last_written(self, folder: Path) -> float:
        """When something was last written in a folder, in Unix seconds; long ago where nothing is in it."""
        entries = (*self._store.list(folder), *self._store.leftovers(folder))
        heads = (entry.head() for entry in entries)
        return max((head.modified_s for head in heads if head is not None), default=0.0)

    def _delete_folder(self, folder: Path) -> None:
        with contextlib.suppress(StorageError):
            self._store.delete_tree(folder)

    def _read(self, file_id: str) -> StoredFile | None:
        path = self._folder / file_id / "meta.json"
        known = self._known.get(file_id)
        try:
            if known is None:
                known = self._known[file_id] = _META.validate_json(self._store.read(path))
            elif self._store.head(path) is None:
                self._known.pop(file_id, None)
                return None
        except FileNotFoundError:
            return None
        except ValidationError as exc:
            logger.warning("%s: damaged, the file is left out: %s", path, exc.errors()[0]["msg"])
            return None
        return known

    def _remove(self, file_id: str) -> None:
        folder = self._folder / file_id
        self._known.pop(file_id, None)
        self._store.delete_many([folder / "meta.json"])
        # What can't be removed now is swept later.
        self._delete_folder(folder)


class Upload:
    """A file on its way in: `write`, then `commit` or `discard`. For one thread at a time, but `discard`: for any."""

    def __init__(self, store: Store, home: Path, file_id: str, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._id = file_id
        self._clock = clock
        self._folder = home / file_id
        self._content = self._folder / "content"
        self._lock = threading.Lock()
        self._is_closed = False
        self.num_bytes = 0
        store.make_folder(self._folder)
        try:
            self._file = store.begin(self._content)
        except StorageError:
            self._remove()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Add to the content. Raises StorageError, also after `discard`."""
        with self._lock:
            self._check_open()
            self._file.write(data)
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
            created = self._file.commit()
            assert created, "ids are drawn at random"
            self._store.create(self._folder / "meta.json", _META.dump_json(stored, indent=1))
            self._is_closed = True
        return stored

    def discard(self) -> None:
        """Leave nothing of a file that was not committed. Never raises."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._file.discard()
                self._remove()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError(f"{self._content}: the upload was discarded")

    def _remove(self) -> None:
        with contextlib.suppress(StorageError):
            self._store.delete_tree(self._folder)


def check_expires_after(seconds: int | None) -> None:
    """Raise InputError for a time to live outside the documented bounds."""
    if seconds is not None and not MIN_EXPIRES_S <= seconds <= MAX_EXPIRES_S:
        raise InputError(f"expires_after.seconds is {seconds}; use {MIN_EXPIRES_S} to {MAX_EXPIRES_S}")


def as_label(filename: str) -> str:
    """The name of a file as a label: without folders, what is not printable, and more than can be shown."""
    last = re.split(r"[/\\]", filename)[-1]
    label = "".join(c for c in last if c.isprintable()).strip()
    return label[:_MAX_FILENAME_CHARS] or "upload"
