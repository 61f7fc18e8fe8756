"""Whose queues are whose: who shares a jobs folder shares its queues at a broker, and nobody else does.

    ROOT/.scope     an id, made once by whoever comes first: a worker, a server or a submit

It stands in the names of the queues (`batcher/broker/client.py`). A path would not do: containers mount one folder at
several. A job that is worked on where it is made has no need of a jobs folder; its own id, `Manifest.identity`, is the
scope of its queues.
"""

import os
import secrets
from pathlib import Path

from batcher.errors import InputError, JobError, StorageError
from batcher.ids import ID_PATTERN, check_id
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Store

SCOPE_NAME = ".scope"
#: The scope that a jobs folder gets which has none, where somebody has to know the names of its queues beforehand.
SCOPE_VARIABLE = "BATCHER_SCOPE"


def scope_of(root: Path, *, store: Store = LOCAL) -> str:
    """The scope of a jobs folder, made if there is none yet.

    Raises InputError where BATCHER_SCOPE asks for another, JobError where the file is damaged, and StorageError.
    """
    path = root / SCOPE_NAME
    wanted = os.environ.get(SCOPE_VARIABLE) or ""
    try:
        found = store.read(path)
    except FileNotFoundError:
        scope = check_id(wanted, what=SCOPE_VARIABLE) if wanted else secrets.token_hex(8)
        store.create(path, scope.encode())
        # Another may have been first.
        found = store.read(path)
    scope = found.decode(errors="replace").strip()
    if not ID_PATTERN.match(scope):
        raise JobError(f"{path}: damaged; delete it, and start the workers and servers of this folder again")
    if wanted not in ("", scope):
        raise InputError(
            f"{path}: the jobs folder has the scope {scope!r}, and {SCOPE_VARIABLE} is {wanted!r}; leave that out, or "
            "delete the file and start the workers and servers of this folder again"
        )
    return scope


def known_scope(root: Path, *, store: Store = LOCAL) -> str | None:
    """The scope that a jobs folder has; None where it has none yet, or nobody can say. Writes nothing."""
    try:
        scope = store.read(root / SCOPE_NAME).decode(errors="replace").strip()
    except (OSError, StorageError):
        return None
    return scope if ID_PATTERN.match(scope) else None
