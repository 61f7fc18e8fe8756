"""Who asks, and what each holds: so that one of several clients can't take all there is.

With keys a client is the number of its key, from 1 on in the order in which they were read; the key itself is told to
nobody. Without keys all are of this machine, and each connection is a client, with no bound of its own.
"""

from collections import Counter

from starlette.types import Scope

from batcher.server.guard.errors import ApiError
from batcher.server.guard.limits import Limits

#: Where in a request's scope its client is.
CLIENT = "batcher.client"

#: Seconds after which a request that was refused for want of room should come again.
RETRY_BUSY_S = 1


def client_of(scope: Scope) -> str:
    """The client of a request that was let in."""
    return str(scope.get(CLIENT, ""))


def connection_of(scope: Scope) -> str:
    """A client by its connection."""
    return "{}:{}".format(*(scope.get("client") or ("", 0)))


def busy_error(message: str) -> ApiError:
    """There is no room now. The SDK waits and sends the request again."""
    return ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": str(RETRY_BUSY_S)})


class Holdings:
    """How much of one thing is held, in all and by each client. For the event loop's thread.

    `most` in all, `most_each` by one client (None: there is no such bound). `unit` is what the numbers are of.
    """

    def __init__(self, unit: str, *, most: int, most_each: int | None) -> None:
        self._unit = unit
        self._most = most
        self._most_each = most_each
        self._total = 0
        self._held: Counter[str] = Counter()
        self._num_refused: Counter[str] = Counter()

    def take(self, client: str, number: int, *, is_first_free: bool = False) -> None:
        """Count `number` more. Raises ApiError where there are too many.

        `is_first_free`: whoever holds nothing may take as much as it likes; something else has bounded that.
        """
        held = self._held.get(client, 0)
        if self._most_each is not None and held + number > self._most_each and not (is_first_free and not held):
            self._num_refused[client] += 1
            raise busy_error(f"{held:,} {self._unit} for your key, of {self._most_each:,} at most; try later")
        if self._total + number > self._most and not (is_first_free and not self._total):
            raise busy_error(f"{self._total:,} {self._unit}, of {self._most:,} at most; try later")
        self._total += number
        self._held[client] += number

    def give(self, client: str, number: int) -> None:
        """Count `number` less."""
        self._total -= number
        self._held[client] -= number
        if not self._held[client]:
            del self._held[client]

    def of(self, client: str) -> int:
        """How much a client holds."""
        return self._held.get(client, 0)

    def num_refused(self, client: str) -> int:
        """How often a client was refused because it holds so much itself."""
        return self._num_refused.get(client, 0)


class Usage:
    """What the clients of a server hold. `num_keys` 0: it asks for no key."""

    def __init__(self, limits: Limits, *, num_keys: int) -> None:
        #: The clients that have a number.
        self.keys = tuple(str(number) for number in range(1, num_keys + 1))

        def most_each(most: int, chosen: int | None) -> int | None:
            # By default a single client leaves half to others, where there are any.
            default = max(1, most // 2) if num_keys > 1 else None
            return chosen if chosen is not None and num_keys else default

        self.requests = Holdings(
            "requests are being answered",
            most=limits.max_concurrent,
            most_each=most_each(limits.max_concurrent, limits.max_concurrent_per_key),
        )
        self.completions = Holdings(
            "live completions are queued",
            most=limits.max_queued,
            most_each=most_each(limits.max_queued, limits.max_queued_per_key),
        )
        # The largest body must have a chance.
        max_held_bytes = max(limits.max_held_bytes, limits.max_body_bytes)
        each = most_each(max_held_bytes, limits.max_held_bytes_per_key)
        self.body_bytes = Holdings(
            "bytes of bodies are held",
            most=max_held_bytes,
            most_each=each if each is None else max(each, limits.max_body_bytes),
        )
