"""What of a message reaches kombu and Celery: two ids, or nothing."""

import json
from base64 import b64decode, b64encode
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batcher.broker.client import open_client
from batcher.broker.messages import RUN_SHARD, encode_body, encode_message
from batcher.ids import ID_PATTERN
from workers.queue.app import make_celery
from workers.queue.messages import MAX_BODY, MAX_MESSAGE, MessageError, ShardMessage, checked

EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
TASK_ID = "b20921ee-f539-4f0d-abea-ed9778e7144b"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


def make_message(**changes: Any) -> dict[str, Any]:
    """A message as kombu writes it, with headers as Celery sends them; a `body` in `changes` is given as bytes."""
    usual: dict[str, Any] = {
        "body": json.dumps([[], {"job_id": "job-1", "shard": 7}, EMBEDDED]).encode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": RUN_SHARD, "id": TASK_ID, "eta": None, "retries": 0, "origin": "gen1@host"},
        "properties": {"body_encoding": "base64", "delivery_tag": "tag", "delivery_info": {"routing_key": "elsewhere"}},
    }
    found = usual | changes
    if isinstance(found["body"], bytes):
        found["body"] = b64encode(found["body"]).decode()
    return found


def check(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(checked(json.dumps(message).encode(), queue="batcher.tiny"))
    return found


def body(*values: Any) -> bytes:
    return json.dumps(values).encode()


def test_our_own_message_passes_as_two_ids() -> None:
    message = check(make_message())

    assert json.loads(b64decode(message["body"])) == [[], {"job_id": "job-1", "shard": 7}, {}]
    assert message["headers"] == {"lang": "py", "task": RUN_SHARD, "id": TASK_ID, "root_id": TASK_ID, "of": "job-1/7"}
    assert message["properties"]["delivery_info"]["routing_key"] == "batcher.tiny"


def test_what_we_send_passes_and_a_turn_is_not_passed_on() -> None:
    message = check(json.loads(encode_message("job-1", 7, queue="batcher.tiny")))

    assert json.loads(b64decode(message["body"])) == [[], {"job_id": "job-1", "shard": 7}, {}]
    assert "turn" not in message["headers"], "put back, it goes before all others"


def test_what_celery_sends_and_what_was_passed_once_pass(redis_url: str) -> None:
    job_id = "j" * 128
    with make_celery(redis_url) as app, open_client(redis_url) as client:
        app.send_task(RUN_SHARD, kwargs={"job_id": job_id, "shard": 10**9 - 1}, queue="batcher.tiny")
        data = client.rpop("batcher:batcher.tiny")

    assert isinstance(data, bytes)
    assert len(data) < MAX_MESSAGE / 2
    once = checked(data, queue="batcher.tiny")
    twice = checked(once, queue="batcher.tiny")
    assert ShardMessage.from_body(b64decode(json.loads(twice)["body"])) == ShardMessage(job_id, 10**9 - 1)


def test_two_messages_of_one_tag_get_two() -> None:
    tags = {check(make_message())["properties"]["delivery_tag"] for _ in range(2)}

    assert len(tags) == 2


def test_whatever_else_a_message_asks_of_celery_is_not_passed_on() -> None:
    wishes = {"eta": "2099-01-01T00:00:00", "expires": {"a": 1}, "timelimit": "x", "shadow": "ls", "stamps": [1]}
    headers = {"task": RUN_SHARD, "id": TASK_ID, "compression": "bzip2", **wishes}
    message = check(make_message(headers=headers, **{"content-encoding": "rot13"}))

    assert (wishes.keys() | {"compression"}).isdisjoint(message["headers"])
    assert message["content-encoding"] == "utf-8"


@pytest.mark.parametrize(
    "changes",
    [
        {"content-type": "application/x-python-serialize"},
        {"content-type": None},
        {"headers": None},
        {"headers": {}},
        {"headers": {"task": "celery.map", "id": TASK_ID}},
        {"headers": {"task": [RUN_SHARD], "id": TASK_ID}},
        {"headers": {"task": RUN_SHARD}},
        {"headers": {"task": RUN_SHARD, "id": {"a": 1}}},
        {"headers": {"task": RUN_SHARD, "id": "one\ntwo"}},
        {"properties": None},
        {"properties": {"body_encoding": ["base64"], "delivery_tag": "tag"}},
        {"properties": {"body_encoding": "utf-8", "delivery_tag": "tag"}},
        {"body": None},
        {"body": {"a": 1}},
        {"body": "no base64!"},
        {"body": "é"},
        {"padding": "x" * MAX_MESSAGE},
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
        check(make_message(**changes))

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
    assert ShardMessage.from_body(encode_body(message.job_id, message.shard)) == message


@pytest.mark.parametrize(
    "data", [b"", b"null", b"\xff\x00", b"[" * MAX_MESSAGE, b"[]", b'"x"', b"9" * MAX_MESSAGE, b"NaN"]
)
def test_what_is_no_message_is_refused_in_one_short_line(data: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        checked(data, queue="batcher.tiny")

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(json_values.map(json.dumps).map(str.encode) | st.binary(), json_values, st.sampled_from(list(make_message())))
def test_no_message_does_more_than_be_refused(content: bytes, value: Any, name: str) -> None:
    with pytest.raises(MessageError):
        checked(content, queue="batcher.tiny")
    with pytest.raises(MessageError):
        check(make_message(body=content))
    # An encoding of theirs is not looked at.
    if name != "content-encoding":
        with pytest.raises(MessageError):
            check(make_message(**{name: value}))
