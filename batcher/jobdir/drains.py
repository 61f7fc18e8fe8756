"""That a worker is to drain: to finish the shards that it has, take no more, and end.

    HOME/.workers/<worker name>~<instance>.drain     beside its sign of life (see `heartbeats`)

The worker's supervisor looks for its own file at each sign of life, so no broker is needed. It is one instance's: a
worker that is started later under the name is not meant. The worker takes it away at its end; that of one that died
before is swept with the signs of life.
"""

from datetime import UTC, datetime
from pathlib import Path

from batcher.errors import StorageError
from batcher.jobdir.heartbeats import DRAIN_SUFFIX, heartbeat_path, workers_dir
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.pulse import SEPARATOR
from batcher.jobdir.store import Store


def drain_path(home: Path, name: str, instance: str) -> Path:
    """Raises InputError for a name that is no safe file name."""
    return heartbeat_path(home, name, instance).with_suffix(DRAIN_SUFFIX)


def ask_to_drain(home: Path, name: str, instance: str, *, store: Store = LOCAL) -> bool:
    """Returns False where it was asked already. Raises StorageError where the disk says no."""
    return store.create(drain_path(home, name, instance), datetime.now(UTC).isoformat().encode())


def is_to_drain(home: Path, name: str, instance: str, *, store: Store = LOCAL) -> bool:
    """Whether somebody has asked for it. Raises StorageError where the disk does not say."""
    return store.head(drain_path(home, name, instance)) is not None


def read_drains(home: Path, *, store: Store = LOCAL) -> set[tuple[str, str]]:
    """Name and instance of each worker that somebody has asked. One listing; never raises, as for signs of life."""
    try:
        paths = [entry.path for entry in store.list(workers_dir(home))]
    except StorageError:
        return set()
    found = (path.stem.partition(SEPARATOR) for path in paths if path.suffix == DRAIN_SUFFIX)
    return {(name, instance) for name, _, instance in found}
