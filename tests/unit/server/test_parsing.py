"""Large bodies are parsed apart from the event loop, one at a time."""

import asyncio
import threading
import weakref

import pytest

from batcher.errors import InvalidBodyError
from batcher.server.guard.errors import ApiError
from batcher.server.guard.parsing import MAX_PARSED_AT_ONCE, parse_apart
from tests.support.waiting import PATIENCE_S

LARGE = b"x" * (MAX_PARSED_AT_ONCE + 1)


def test_large_bodies_are_parsed_one_at_a_time_and_small_ones_meanwhile() -> None:
    may_end, begun = threading.Event(), threading.Event()
    num_at_once: list[int] = []
    num_now = 0

    def parse(body: bytes) -> int:
        nonlocal num_now
        num_now += 1
        num_at_once.append(num_now)
        begun.set()
        assert may_end.wait(PATIENCE_S)
        num_now -= 1
        return len(body)

    async def run() -> list[int]:
        waiting = [asyncio.create_task(parse_apart(parse, LARGE, client="1")) for _ in range(20)]
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        # Were one of them in the event loop, this would not come back.
        assert await parse_apart(len, b"small", client="1") == 5
        may_end.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [len(LARGE)] * 20
    assert num_at_once == [1] * 20


def test_large_bodies_of_several_clients_take_turns() -> None:
    read: list[bytes] = []
    has_begun, may_go_on = threading.Event(), threading.Event()

    def parse(body: bytes) -> None:
        has_begun.set()
        assert may_go_on.wait(PATIENCE_S)
        read.append(body[-2:])

    def ask(*names: str) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(parse_apart(parse, LARGE + name.encode(), client=name[0])) for name in names]

    async def run() -> None:
        first = ask("a0")
        await asyncio.to_thread(has_begun.wait, PATIENCE_S)
        others = ask("a1", "a2", "a3", "b0", "c0", "c1")
        await asyncio.sleep(0)  # so that they all wait
        may_go_on.set()
        await asyncio.gather(*first, *others)

    asyncio.run(run())
    assert read == [b"a0", b"a1", b"b0", b"c0", b"a2", b"c1", b"a3"]


class Read:
    """What was read of a body."""


@pytest.mark.parametrize("error", [ApiError(400, "bad"), InvalidBodyError("bad"), ValueError("bad")])
@pytest.mark.parametrize("body", [b"small", LARGE])
def test_what_the_parser_raises_comes_out(body: bytes, error: Exception) -> None:
    def refuse(body: bytes) -> None:
        raise error

    with pytest.raises(type(error), match="bad"):
        asyncio.run(parse_apart(refuse, body, client="1"))


def test_refusal_of_a_large_body_keeps_nothing_of_it() -> None:
    alive: list[weakref.ref[Read]] = []

    def refuse(body: bytes) -> None:
        read = Read()
        alive.append(weakref.ref(read))
        try:
            raise ValueError(read)
        except ValueError as exc:
            raise ApiError(400, "bad") from exc

    with pytest.raises(ApiError) as caught:
        asyncio.run(parse_apart(refuse, LARGE, client="1"))

    assert caught.value.message == "bad"
    assert alive[0]() is None


def refuse_reading(body: bytes) -> None:
    raise AssertionError("it was read")


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": [' + b"{}," * 120_000 + b"{}]}",
        b'{"prompt": "' + b'\\"' * 10 + b'", "stop": ' + b"[" * 120_000,
        b"[[]," * 60_000 + b'"' + b"{" * 10,
        # A string without an end, full of escaped quotes.
        b"[[]," * 60_000 + b'"' + b'\\"' * 1_000_000,
    ],
)
def test_body_of_more_objects_than_any_request_has_is_refused_unread(body: bytes) -> None:
    with pytest.raises(ApiError, match="more than 100,000 objects") as caught:
        asyncio.run(parse_apart(refuse_reading, body, client="1"))
    assert caught.value.status == 400


def test_text_may_have_as_many_brackets_as_it_likes() -> None:
    body = b'{"prompt": "' + b'{[\\"[{' * 100_000 + b'", "n": 1}'
    assert asyncio.run(parse_apart(len, body, client="1")) == len(body)
