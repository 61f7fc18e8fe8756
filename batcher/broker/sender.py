"""Sends the shards of jobs: of each job a window at a time, so that others have their turn and the broker stays small.

Who makes or reopens a job sends what the window holds. From then on each message that is done with, whatever became of
its shard, has its worker send the next (`refill`): the job's shards in one order, large ones first, so that the workers
end at about the same time. A cursor in the broker says how far that has come (see `turns`). The sweep sends what was
lost, and goes on where a worker died before it had sent the next.

The window of a job and a model is `WINDOW` messages, and as many more for each worker that has the model.
"""

import contextlib
import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from batcher.broker.client import connect, open_client
from batcher.broker.turns import NO_TIME, Offer, Turn, Turns
from batcher.broker.url import hide_password
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import Health, read_heartbeats
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.scope import scope_of
from batcher.jobdir.sending import Send
from batcher.jobdir.standing import read_standing

#: Messages. As many shards as a worker holds at most (`workers.queue.app`), so that it never waits for one, and enough
#: to have workers started where there is none.
WINDOW = 16
#: However many workers there are.
MAX_WINDOW = 4096
#: Seconds for which the number of workers is taken for known.
_FLEET_KEPT_S = 10.0
#: Shards that are looked at one by one; for more, the results are listed.
_MAX_LOOKS = 32
#: Of whose shards the order is remembered.
_KEPT_ORDERS = 32


class Sender:
    """A `Send`, and what goes on from there. For all threads.

    `scope` is that of the queues; None: of each job's jobs folder. Connects when it first sends. `clock` is in seconds
    and only grows.
    """

    def __init__(
        self, broker_url: str, *, scope: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = broker_url
        self._client = open_client(broker_url)
        self._scope = scope
        self._clock = clock
        self._turns: dict[str, Turns] = {}
        self._orders: dict[tuple[str, str], tuple[int, ...]] = {}
        self._fleets: dict[Path, tuple[float, list[tuple[str, ...]]]] = {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __call__(self, job: JobDir, shards: Sequence[ShardInfo]) -> int:
        """Have the pending shards of the models of `shards` worked on. Returns how many of `shards` workers will get.

        Sends what the window holds, by what lies in the queue; what has a message gets no other. Raises BrokerError
        where the broker is away, or is full, and what `scope_of` raises.
        """
        counts = Counter(info.model for info in shards if info.model is not None)
        committed = job.committed_shards() if counts else set()
        try:
            for model in counts:
                self.turns(job).rewind(job, model)
                num_queued = len(self.turns(job).count(job, model))
                self._send_from(0, job, model, num_queued=num_queued, is_committed=committed.__contains__)
        except BrokerError as exc:
            raise BrokerError(
                f"broker {hide_password(self._url)}: the shards of {job.job_id} could not be queued: {exc}. "
                "The job is whole on disk: workers that run find the rest when the broker takes it, or "
                f"`batcher resume {shlex.quote(str(job.path))} --broker URL` queues it"
            ) from exc
        return counts.total()

    def refill(self, job: JobDir, model: str) -> int:
        """Send the next shards of a job, if its window has room. Returns how many were sent.

        Does nothing where the broker does not know how far the job has come: then the sweep begins, which takes its
        time, as some of the shards may be in work. Raises BrokerError, StorageError.
        """
        if job.is_halted:
            return 0
        cursor, num_queued = self.turns(job).state(job, model)
        if cursor is None:
            return 0
        return self._send_from(cursor, job, model, num_queued=num_queued, is_committed=_Looks(job).is_committed)

    def send_again(self, job: JobDir, model: str, shards: Collection[int], *, end: int | None) -> int:
        """Send shards whose message was lost, as far as the window has room; `end`: where the job goes on from there,
        None leaves that as it is. Returns how many were sent."""
        places = {shard: place for place, shard in enumerate(self.order(job, model))} if end is not None else {}
        offers = [Offer(shard, places.get(shard, 0)) for shard in shards]
        found = self.turns(job).offer(job, model, offers, turn=turn_of(job), window=self.window(job, model), end=end)
        return found.num_sent

    def send_first(self, job: JobDir, model: str, shard: int) -> None:
        """Send a shard that was begun, to the front of its priority, whatever the window."""
        self.turns(job).send_first(job, model, shard, priority=turn_of(job).priority)

    def turns(self, job: JobDir) -> Turns:
        """The queues to which shards of the job go."""
        scope = self._scope or scope_of(job.path.absolute().parent, store=job.store)
        if scope not in self._turns:
            self._turns[scope] = Turns(self._client, scope=scope)
        return self._turns[scope]

    def order(self, job: JobDir, model: str) -> tuple[int, ...]:
        """The shards of a model in the order in which they are sent."""
        key = job.manifest.identity, model
        found = self._orders.get(key)
        if found is None:
            of_model = [info for info in job.manifest.shards if info.model == model]
            found = tuple(info.shard for info in sorted(of_model, key=lambda info: -info.num_choices))
            if len(self._orders) >= _KEPT_ORDERS:
                self._orders.clear()
            self._orders[key] = found
        return found

    def window(self, job: JobDir, model: str) -> int:
        """How many messages the job may have in the queue of a model."""
        home = job.path if self._scope == job.manifest.identity else job.path.absolute().parent
        now = self._clock()
        kept = self._fleets.get(home)
        if kept is None or now - kept[0] >= _FLEET_KEPT_S:
            reports = read_heartbeats(home, store=job.store)
            kept = now, [report.beat.models for report in reports if report.health is not Health.GONE]
            self._fleets[home] = kept
        return min(MAX_WINDOW, WINDOW * (1 + sum(model in models for models in kept[1])))

    def _send_from(
        self, cursor: int, job: JobDir, model: str, *, num_queued: int, is_committed: Callable[[int], bool]
    ) -> int:
        """Send the shards from the cursor on, until the window is full. Returns how many."""
        order, window = self.order(job, model), self.window(job, model)
        num_sent = 0
        while cursor < len(order) and num_queued + num_sent < window:
            offers: list[Offer] = []
            while cursor < len(order) and len(offers) < window - num_queued - num_sent:
                if not is_committed(order[cursor]):
                    offers.append(Offer(order[cursor], cursor))
                cursor += 1
            offered = self.turns(job).offer(job, model, offers, turn=turn_of(job), window=window, end=cursor)
            num_sent += offered.num_sent
            if offered.is_full:
                break
        return num_sent


class _Looks:
    """Says which shards are committed: of the first ones by a look at each, of more by a listing of the results."""

    def __init__(self, job: JobDir) -> None:
        self._job = job
        self._num_looks = 0
        self._committed: set[int] | None = None

    def is_committed(self, shard: int) -> bool:
        self._num_looks += 1
        if self._num_looks <= _MAX_LOOKS:
            return self._job.is_committed(shard)
        if self._committed is None:
            self._committed = self._job.committed_shards()
        return shard in self._committed


@contextlib.contextmanager
def sending(broker_url: str) -> Iterator[Send]:
    """What sends shards to the workers of their job's jobs folder, within the block.

    Raises BrokerError at once where the broker can't be reached.
    """
    connect(broker_url).close()
    with contextlib.closing(Sender(broker_url)) as sender:
        yield sender


def turn_of(job: JobDir) -> Turn:
    """Where the job's messages belong now. One read."""
    standing = read_standing(job)
    due = standing.finish_by
    return Turn(standing.level, NO_TIME if due is None else min(NO_TIME - 1, int(due.timestamp())))
