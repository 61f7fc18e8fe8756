"""What a message may be: two ids, looked at before kombu and Celery look at anything else of it.

Both trust their broker. What they can't parse ends the worker; a body of another shape than Celery's own goes back to
the queue besides, and ends the next one; a message may name any task that Celery has, ask to be delayed, or bring
callbacks along. So what was in the queue is checked as bytes (`workers/queue/transport.py` calls `checked`), and
dropped with a line in the log, or replaced by a message of our own making that holds its two ids.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Self

from batcher.broker.messages import RUN_SHARD, envelope
from batcher.ids import ID_PATTERN

#: Bytes of a body. Ours have at most 300; a long one is not even parsed.
MAX_BODY = 1024
#: Bytes of a whole message. Ours have some 1,200, as Celery's headers repeat the ids.
MAX_MESSAGE = 8192
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


def checked(data: bytes, *, queue: str, priority: int = 0) -> bytes:
    """The message that kombu gets for `data`, taken from `queue`. `priority` is kombu's, of the list where it lay.

    Raises MessageError where it is not one of ours.
    """
    if len(data) > MAX_MESSAGE:
        raise MessageError(f"it has {len(data):,} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise MessageError(f"{_shown(data)} is no JSON") from exc
    match found:
        case {
            "body": str(body),
            "content-type": "application/json",
            "headers": {"task": task, "id": number},
            "properties": {"body_encoding": "base64"},
        }:
            # An id of Celery's, which stands in its log.
            if task != RUN_SHARD or not (isinstance(number, str) and ID_PATTERN.fullmatch(number)):
                raise MessageError(f"its task is {_shown(task)}, its id {_shown(number)}")
            ids = ShardMessage.from_body(_decode(body))
            return json.dumps(envelope(ids.job_id, ids.shard, number=number, queue=queue, priority=priority)).encode()
    raise MessageError(f"{_shown(data)} is not of Celery's making")


def _decode(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise MessageError(f"its body {_shown(body)} is no base64") from exc


def _shown(value: object) -> str:
    """A value of anyone's making for one line of a log, whatever its size."""
    if isinstance(value, str | bytes):
        return ascii(value[:100]) + ("..." if len(value) > 100 else "")
    return "null" if value is None else f"a JSON {type(value).__name__}"
