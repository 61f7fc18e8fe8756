"""What of a message reaches Celery: two ids, or nothing."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batcher.ids import ID_PATTERN
from workers.queue.app import RUN_SHARD
from workers.queue.messages import MAX_BODY, MessageError, ShardMessage, _replace

EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
TASK_ID = "b20921ee-f539-4f0d-abea-ed9778e7144b"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


def make_message(**changes: Any) -> SimpleNamespace:
    """A message as kombu hands it over, with headers as Celery sends them."""
    usual: dict[str, Any] = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "headers": {"lang": "py", "task": RUN_SHARD, "id": TASK_ID, "eta": None, "retries": 0, "origin": "gen1@host"},
        "body": json.dumps([[], {"job_id": "job-1", "shard": 7}, EMBEDDED]).encode(),
    }
    return SimpleNamespace(**(usual | changes))


def body(*values: Any) -> bytes:
    return json.dumps(values).encode()


def test_our_own_message_passes_as_two_ids() -> None:
    message = make_message()

    _replace(message)

    assert json.loads(message.body) == [[], {"job_id": "job-1", "shard": 7}, {}]
    assert message.headers == {"lang": "py", "task": RUN_SHARD, "id": TASK_ID, "root_id": TASK_ID}


def test_whatever_else_a_message_asks_of_celery_is_not_passed_on() -> None:
    wishes = {"eta": "2099-01-01T00:00:00", "expires": {"a": 1}, "timelimit": "x", "shadow": "ls", "stamps": [1]}
    message = make_message(headers={"task": RUN_SHARD, "id": TASK_ID, **wishes}, content_encoding="rot13")

    _replace(message)

    assert wishes.keys().isdisjoint(message.headers)
    assert message.content_encoding == "utf-8"


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "application/x-python-serialize"},
        {"content_type": None},
        {"headers": {}},
        {"headers": {"task": "celery.map", "id": TASK_ID}},
        {"headers": {"task": [RUN_SHARD], "id": TASK_ID}},
        {"headers": {"task": RUN_SHARD}},
        {"headers": {"task": RUN_SHARD, "id": {"a": 1}}},
        {"headers": {"task": RUN_SHARD, "id": "one\ntwo"}},
        {"body": None},
        {"body": b"\x80\x04."},
        {"body": b"["},
        {"body": b"[" * MAX_BODY},
        {"body": b'[[], {"job_id": "job-1", "shard": ' + b"9" * MAX_BODY + b"}, {}]"},
        {"body": body()},
        {"body": body([], {"job_id": "job-1", "shard": 7})},
        {"body": body([], {"job_id": "job-1", "shard": 7}, None)},
        {"body": body([], {"job_id": "job-1", "shard": 7}, {"callbacks": [{"task": "celery.map"}]})},
        {"body": body([], {"job_id": "job-1", "shard": 7, "path": "/etc"}, EMBEDDED)},
        {"body": body(["job-1", 7], {}, EMBEDDED)},
        {"body": body([], {"job_id": "job-1"}, EMBEDDED)},
        {"body": body([], {"job_id": "../job-1", "shard": 7}, EMBEDDED)},
        {"body": body([], {"job_id": "job-1", "shard": True}, EMBEDDED)},
        {"body": body([], {"job_id": "job-1", "shard": -1}, EMBEDDED)},
        {"body": body([], {"job_id": "job-1", "shard": 1e3}, EMBEDDED)},
    ],
)
def test_anything_but_two_ids_is_refused_in_one_short_line(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError) as caught:
        _replace(make_message(**changes))

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(json_values, json_values)
@example("job-1\n", 0)
@example("job-1", 10**30)
def test_two_values_are_two_ids_or_refused(job_id: Any, shard: Any) -> None:
    try:
        message = ShardMessage.from_values(job_id, shard)
    except MessageError:
        return
    assert ID_PATTERN.fullmatch(message.job_id)
    assert message.shard >= 0
    assert ShardMessage.from_body(message.to_body()) == message


@given(json_values.map(json.dumps).map(str.encode) | st.binary(), st.dictionaries(st.text(), json_values))
def test_no_message_does_more_than_be_refused(content: bytes, headers: dict[str, Any]) -> None:
    for message in (make_message(body=content), make_message(headers=headers), make_message(content_type=content)):
        with pytest.raises(MessageError):
            _replace(message)
