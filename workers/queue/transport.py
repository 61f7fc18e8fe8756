"""What a worker takes from the broker, looked at before kombu looks at it, and what it gives back.

kombu trusts its broker. What it can't parse, in a queue or among the messages that were taken and not acknowledged,
ends the process that meets it: once where it is gone by then, else every process for as long as it lies there. So
whatever was in a queue reaches kombu as a message of our own making, or not at all, and nothing is read back from the
messages that were taken: what goes back to a queue is what was taken from it.

kombu has no public place for this. What is overridden here stands in `tests/unit/house/test_borrowed.py`, too.
"""

# kombu has no types.
# mypy: disable-error-code="no-untyped-call"

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import redis
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from kombu.utils.scheduling import round_robin_cycle

from batcher.broker.client import KEY_PREFIX, PRIORITY_SEPARATOR, list_name, queued_key
from batcher.types import NORMAL, PRIORITIES
from workers.queue.messages import MessageError, ShardMessage, checked

#: Of the transport's options.
IS_OPEN = "is_open"

logger = logging.getLogger(f"batcher.{__name__}")


def _step(priority: int) -> int:
    """kombu's number of a priority of ours: 0 is the most urgent."""
    return PRIORITIES[-1] - priority


def _priority(step: int) -> int:
    return PRIORITIES[-1] - step


#: Of all priorities, the most urgent first.
_STEPS = [_step(priority) for priority in reversed(PRIORITIES)]


class CheckingClient(kombu_redis.PrefixedStrictRedis):
    """kombu's client, whose answers to BRPOP hold messages of ours or nothing, and the queue instead of its list."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """The answer to a command, as ever but for BRPOP: None where what was taken is dropped."""
        found = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not found:
            return found
        key, data = found
        queue, _, priority = key.decode(errors="replace").partition(PRIORITY_SEPARATOR)
        try:
            return queue.encode(), checked(data, queue=queue, priority=_step(int(priority or NORMAL)))
        except MessageError as exc:
            logger.warning("a message is dropped: %s", exc)
            return None


class TakenMessages(kombu_redis.QoS):
    """The messages that were taken and not acknowledged, of which kombu keeps a copy in the broker."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Forget what nobody has acknowledged for `visibility_timeout` seconds; kombu would queue it again.

        The sweep sends a shard that nobody works on long before. A broker that refuses is asked again the next time.
        """
        with contextlib.suppress(redis.ResponseError), self.channel.conn_or_acquire() as client:
            latest = time.time() - self.visibility_timeout
            for tag in client.zrange(self.unacked_index_key, "-inf", latest, byscore=True, offset=0, num=100):
                self._remove_from_indices(tag).execute()

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message that this process took back into its queue, unless the broker knows nothing of it any more.

        It is taken next, as its shard was begun, and it has no turn any more (`batcher/broker/turns.py`): what comes
        later would stay behind it. kombu puts one that was rejected at the other end (`leftmost`).
        """
        message = self._delivered.get(tag)

        def put_back(pipe: Any) -> None:
            is_known = pipe.hget(self.unacked_key, tag) is not None
            pipe.multi()
            self._remove_from_indices(tag, pipe)
            if is_known and message is not None:
                queue = message.delivery_info["routing_key"]
                pipe.rpush(self.channel._q_for_pri(queue, message.properties["priority"]), dumps(message._raw))
                ids = ShardMessage.from_body(message.body)
                pipe.sadd(queued_key(ids.job_id, queue).removeprefix(KEY_PREFIX), ids.shard)

        with self.channel.conn_or_acquire(client) as client:
            client.transaction(put_back, self.unacked_key)


class OpenQueues(round_robin_cycle):
    """kombu's cycle of the queues from which is taken, without those that are not open at the moment."""

    def __init__(self, is_open: Callable[[str], bool]) -> None:
        super().__init__()
        self._is_open = is_open

    def consume(self, n: int) -> list[str]:
        return [queue for queue in super().consume(n) if self._is_open(queue)]


class Channel(kombu_redis.Channel):
    """kombu's channel, with the classes above. The option `is_open` says of a queue whether it is taken from now.

    kombu asks for the lists of all queues in the order of `priority_steps`, of which the first is the most urgent.
    """

    QoS = TakenMessages
    priority_steps = _STEPS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        is_open = self.connection.client.transport_options.get(IS_OPEN)
        if is_open is not None:
            self._queue_cycle = OpenQueues(is_open)

    def _q_for_pri(self, queue: str, pri: int) -> str:
        """The list of a queue for a step."""
        return list_name(queue, _priority(pri))

    def _get_client(self) -> Any:
        super()._get_client()
        return partial(CheckingClient, global_keyprefix=self.global_keyprefix)


class Transport(kombu_redis.Transport):
    """kombu's transport of the Redis protocol, with the channel above."""

    Channel = Channel
