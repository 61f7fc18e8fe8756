"""The message for a shard: two ids in a message of Celery's protocol 2, as kombu keeps it in a list.

Two headers are for the scripts in `turns`, which read them as text and so need no JSON: `of` says whose shard it is,
`turn` where it stands among the messages of its priority. Celery is told neither.
"""

import base64
import json
import uuid
from typing import Any

#: The one task.
RUN_SHARD = "batcher.run_shard"


def encode_body(job_id: str, shard: int) -> bytes:
    """The body of Celery's protocol 2."""
    return json.dumps([[], {"job_id": job_id, "shard": shard}, {}]).encode()


def envelope(job_id: str, shard: int, *, number: str, queue: str, priority: int = 0) -> dict[str, Any]:
    """A message as kombu makes them. Its tag is new: two messages for one shard have two. `number` is Celery's id."""
    return {
        "body": base64.b64encode(encode_body(job_id, shard)).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": RUN_SHARD, "id": number, "root_id": number, "of": f"{job_id}/{shard}"},
        "properties": {
            "correlation_id": number,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": priority,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def encode_message(job_id: str, shard: int, *, queue: str, has_turn: bool = True) -> bytes:
    """What lies in the list of a queue. The script that puts it there fills in the turn, if it is to have one."""
    message = envelope(job_id, shard, number=str(uuid.uuid4()), queue=queue)
    if has_turn:
        message["headers"]["turn"] = ""
    return json.dumps(message).encode()
