"""A store that has nothing to do with any file system: objects in memory, as a bucket has them, and no folders.

It passes the contract of `tests/unit/jobdir/store_contract.py`. Its clock is its own, and so are its versions.
"""

import io
import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from batcher.jobdir.store import Entry, Guard, Head, Hold, Incoming, Log, Wants

#: The time at which the first object is written; each one after that is a second younger.
EPOCH_S = 2_000_000_000.0


@dataclass(frozen=True, slots=True)
class _Object:
    """An object, and its entry in a listing."""

    path: Path
    data: bytes
    known: Head
    parts: tuple[str, ...] = ()

    def head(self) -> Head:
        return self.known


class MemoryStore:
    """See `batcher.jobdir.store.Store`. `listings` are the prefixes that were listed, by `list` or `names`."""

    def __init__(self) -> None:
        self.listings: list[Path] = []
        self._objects: dict[Path, _Object] = {}
        self._held: set[Path] = set()
        self._steps = itertools.count()
        self._lock = threading.RLock()

    def _put(self, path: Path, data: bytes) -> None:
        step = next(self._steps)
        self._objects[path] = _Object(path, data, Head(len(data), EPOCH_S + step, f"v{step}"))

    def _get(self, path: Path) -> _Object:
        try:
            return self._objects[path]
        except KeyError:
            raise FileNotFoundError(2, "No such object", str(path)) from None

    def create(self, path: Path, data: bytes | bytearray, *, guard: Guard | None = None) -> bool:
        if guard is not None:
            guard()
        with self._lock:
            if path in self._objects:
                return False
            self._put(path, bytes(data))
            return True

    def begin(self, path: Path) -> Incoming:
        return _Incoming(self, path)

    def replace(self, path: Path, data: bytes, *, guard: Guard | None = None, is_durable: bool = True) -> None:
        if guard is not None:
            guard()
        with self._lock:
            self._put(path, data)

    def replace_if(self, path: Path, data: bytes | bytearray, *, version: str) -> bool:
        with self._lock:
            if path not in self._objects or self._objects[path].known.version != version:
                return False
            self._put(path, bytes(data))
            return True

    def move(self, source: Path, target: Path) -> None:
        with self._lock:
            self._put(target, self._get(source).data)
            del self._objects[source]

    def log(self, path: Path) -> Log:
        return _Log(self, path)

    def read(self, path: Path) -> bytes:
        return self._get(path).data

    def tail(self, path: Path, num_bytes: int) -> tuple[int, bytes]:
        data = self._get(path).data
        return len(data), data[max(0, len(data) - num_bytes) :]

    def open(self, path: Path) -> BinaryIO:
        return io.BytesIO(self._get(path).data)

    def head(self, path: Path) -> Head | None:
        found = self._objects.get(path)
        return None if found is None else found.known

    def list(self, folder: Path, *, wants: Wants | None = None) -> Sequence[Entry]:
        with self._lock:
            self.listings.append(folder)
            depth = len(folder.parts)
            found = (replace(one, parts=one.path.parts[depth:]) for one in self._below(folder))
            return sorted(found, key=lambda one: one.parts)

    def names(self, folder: Path) -> Sequence[str]:
        with self._lock:
            self.listings.append(folder)
            return sorted({found.path.parts[len(folder.parts)] for found in self._below(folder)})

    def leftovers(self, folder: Path, *, is_deep: bool = True) -> Sequence[Entry]:
        return ()  # What was begun and not finished has no name.

    def now_s(self, folder: Path) -> float:
        return EPOCH_S + next(self._steps)

    def delete_many(self, paths: Iterable[Path]) -> None:
        with self._lock:
            for path in paths:
                self._objects.pop(path, None)

    def discard(self, paths: Iterable[Path]) -> None:
        self.delete_many(paths)

    def delete_tree(self, path: Path) -> bool:
        with self._lock:
            self.delete_many([path, *(found.path for found in self._below(path))])
            return True

    def drop_folder(self, folder: Path) -> bool:
        return not self._below(folder)

    def make_folder(self, folder: Path, *, parents: bool = True) -> bool:
        return not self._below(folder)

    def hold(self, folder: Path) -> Hold | None:
        with self._lock:
            if folder in self._held:
                return None
            self._held.add(folder)
            return _Hold(self._held, folder)

    def _below(self, folder: Path) -> Sequence[_Object]:
        return [found for found in self._objects.values() if folder in found.path.parents]


class _Incoming:
    def __init__(self, store: MemoryStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._data = bytearray()

    def write(self, data: bytes | memoryview, /) -> int:
        self._data += data
        return len(data)

    def commit(self, *, guard: Guard | None = None) -> bool:
        return self._store.create(self._path, self._data, guard=guard)

    def discard(self) -> None:
        self._data.clear()


class _Log:
    def __init__(self, store: MemoryStore, path: Path) -> None:
        self._store = store
        self._path = path
        self._lock = threading.Lock()
        assert store.create(path, b"")

    def append(self, line: bytes) -> None:
        with self._lock:
            self._store.replace(self._path, self._store.read(self._path) + line)

    def close(self) -> None:
        pass


class _Hold:
    is_certain = True

    def __init__(self, held: set[Path], folder: Path) -> None:
        self._held = held
        self._folder = folder

    def release(self) -> None:
        self._held.discard(self._folder)
