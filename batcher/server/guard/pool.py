"""How many connections the server holds, and which it closes where there is no room for one more.

Each connection is an open file of the process, and so is each file of a job. So connections have a bound below the
limit of open files, and a stranger, who is whoever has not yet sent a request that was let in, gives way first: the
oldest that is not being answered. One address can have a bound of its own; then its own connections give way.
"""

import resource
from collections.abc import Iterable
from itertools import chain
from typing import Protocol

#: Open files beyond which the server asks for no more, whatever the system would allow.
_MAX_OPEN_FILES = 65_536


class Pooled(Protocol):
    """A connection as the pool sees it."""

    @property
    def is_idle(self) -> bool:
        """Whether no request of it is being answered."""
        ...

    @property
    def address(self) -> str:
        """Where it comes from, without the port."""
        ...

    def abort(self) -> None:
        """Close it at once."""
        ...


class ConnectionPool:
    """The open connections of a server, at most `max_connections`, of them `max_per_address` from one address (None:
    as many as there are). For the event loop's thread."""

    def __init__(self, max_connections: int, *, max_per_address: int | None = None) -> None:
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        # In the order of their coming: a dict keeps it, and forgets any in no time.
        self._strangers: dict[Pooled, None] = {}
        self._admitted: dict[Pooled, None] = {}
        #: Only where addresses have a bound.
        self._by_address: dict[str, dict[Pooled, None]] = {}

    def __len__(self) -> int:
        return len(self._strangers) + len(self._admitted)

    def add(self, connection: Pooled) -> bool:
        """Take a connection in, as a stranger's. Returns False where all others, or those of its address, are being
        answered."""
        if not self._make_room_at(connection.address):
            return False
        if len(self) >= self._max_connections and not self._close_oldest_idle(self._strangers, self._admitted):
            return False
        self._strangers[connection] = None
        if self._max_per_address is not None:
            self._by_address.setdefault(connection.address, {})[connection] = None
        return True

    def admit(self, connection: Pooled) -> None:
        """Note that a request of a connection was let in."""
        if connection in self._strangers:
            del self._strangers[connection]
            self._admitted[connection] = None

    def discard(self, connection: Pooled) -> None:
        """Forget a connection, if it is known."""
        self._strangers.pop(connection, None)
        self._admitted.pop(connection, None)
        there = self._by_address.get(connection.address)
        if there is not None:
            there.pop(connection, None)
            if not there:
                del self._by_address[connection.address]

    def _make_room_at(self, address: str) -> bool:
        there = self._by_address.get(address)
        if there is None or self._max_per_address is None or len(there) < self._max_per_address:
            return True
        return self._close_oldest_idle(
            *(
                [connection for connection in there if connection in group]
                for group in (self._strangers, self._admitted)
            )
        )

    def _close_oldest_idle(self, *groups: Iterable[Pooled]) -> bool:
        """Close the first idle one of the first group that has one."""
        oldest = next((connection for connection in chain(*groups) if connection.is_idle), None)
        if oldest is None:
            return False
        self.discard(oldest)
        oldest.abort()
        return True


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files of this process to the hard one. Returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            return soft  # Some systems have a limit beside the hard one.
        return most
    return _MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def connections_for(open_files: int) -> int:
    """How many connections leave room for files, and for connections that are accepted but not yet counted."""
    return open_files // 2
