"""What a message may be: two ids, looked at before Celery looks at anything else of it.

Celery trusts its broker. A body of another shape than its own ends the worker, goes back to the queue and ends the next
one; a message may name any task that Celery has, ask to be delayed, or bring callbacks along. So a message is checked
when it arrives and dropped with a line in the log, or replaced by one of our own making that holds its two ids.

What kombu can't read at all (no JSON, no message around the body) still ends the process, once: it is gone by then.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any, Self

from batcher.ids import ID_PATTERN
from workers.queue.app import RUN_SHARD
from workers.queue.consumer import PatientConsumer

logger = logging.getLogger(f"batcher.{__name__}")

#: Bytes of a body. Ours have at most 300; a long one is not even parsed.
MAX_BODY = 1024
#: Far more than a job has; a number of a thousand digits is no shard's.
_MAX_SHARD = 10**9


class MessageError(ValueError):
    """A message is not one of ours."""


@dataclass(frozen=True, slots=True)
class ShardMessage:
    """The two ids: safe as a name under the jobs root, but not known to name anything there."""

    job_id: str
    shard: int

    @classmethod
    def from_values(cls, job_id: object, shard: object) -> Self:
        """From two JSON values. Raises MessageError."""
        if not (isinstance(job_id, str) and ID_PATTERN.fullmatch(job_id)):
            raise MessageError(f"job_id {_shown(job_id)} is no id of ours")
        # True is an int.
        if type(shard) is not int or not 0 <= shard < _MAX_SHARD:
            raise MessageError(f"shard {_shown(shard)} is no number of ours")
        return cls(job_id, shard)

    @classmethod
    def from_body(cls, body: bytes | str) -> Self:
        """From the body of Celery's protocol 2: `[args, kwargs, embedded]`. Raises MessageError."""
        if len(body) > MAX_BODY:
            raise MessageError(f"its body has {len(body):,} bytes")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise MessageError(f"its body {_shown(body)} is no JSON") from exc
        match values:
            case [[], {"job_id": job_id, "shard": shard, **others}, dict(embedded)]:
                if not others and not any(embedded.values()):
                    return cls.from_values(job_id, shard)
        raise MessageError(f"its body {_shown(body)} is not two ids")

    def to_body(self) -> bytes:
        """The body of Celery's protocol 2."""
        return json.dumps([[], {"job_id": self.job_id, "shard": self.shard}, {}]).encode()


class CheckingConsumer(PatientConsumer):
    """Our consumer, which sees nothing of a message but two ids that were checked."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        handle = super().create_task_handler(*args, **kwargs)

        def check_and_handle(message: Any) -> None:
            try:
                _replace(message)
            except MessageError as exc:
                logger.warning("a message is dropped: %s", exc)
                message.reject_log_error(logger, self.connection_errors)
                return
            handle(message)

        return check_and_handle


def _replace(message: Any) -> None:
    """Put a message of our own making into `message`, which keeps its place in the queue. Raises MessageError."""
    if message.content_type != "application/json":
        raise MessageError(f"its content type is {_shown(message.content_type)}")
    # An id of Celery's, which stands in its log.
    number = message.headers.get("id")
    task = message.headers.get("task")
    if task != RUN_SHARD or not (isinstance(number, str) and ID_PATTERN.fullmatch(number)):
        raise MessageError(f"its task is {_shown(task)}, its id {_shown(number)}")
    message.body = ShardMessage.from_body(message.body or b"").to_body()
    message.content_encoding = "utf-8"
    message.headers = {"lang": "py", "task": RUN_SHARD, "id": number, "root_id": number}


def _shown(value: object) -> str:
    """A value of anyone's making for one line of a log, whatever its size."""
    if isinstance(value, str | bytes):
        return ascii(value[:100]) + ("..." if len(value) > 100 else "")
    return "null" if value is None else f"a JSON {type(value).__name__}"
