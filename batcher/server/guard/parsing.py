"""Parsing of bodies: small ones at once, a large one in a thread of its own, one at a time.

JSON becomes up to thirty times as large where it is read: 10 MB of `[{},{},...]` are 280 MB of objects. So large bodies
are read one after another, and those of more objects and arrays than any request has a use for not at all. More threads
would not be faster, as the parser holds the interpreter's lock.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from batcher.errors import InvalidBodyError
from batcher.openai.bodies import TOO_MANY_CONTAINERS, has_too_many_containers
from batcher.rounds import Rounds
from batcher.server.guard.errors import ApiError
from batcher.types import ErrorCode

_T = TypeVar("_T")

#: Bytes of a body that are parsed in a moment. A larger one would hold up everybody's streams in the event loop.
MAX_PARSED_AT_ONCE = 64 << 10

# One for the process, whose memory and lock it is about.
_parser = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parser")
#: Bodies that wait for it.
_waiting: Rounds[Callable[[], None]] = Rounds()
_lock = threading.Lock()


async def parse_apart(parse: Callable[[bytes], _T], body: bytes, *, client: str) -> _T:
    """What `parse` makes of `body`, or raises. Large bodies of several clients take turns."""
    if len(body) <= MAX_PARSED_AT_ONCE:
        return parse(body)
    future: Future[_T] = Future()
    with _lock:
        _waiting.put(client, partial(_parse_into, future, parse, body))
    _parser.submit(_parse_next)
    return await asyncio.wrap_future(future)


def _parse_next() -> None:
    with _lock:
        parse = _waiting.pop()
    parse()


def _parse_into(future: "Future[_T]", parse: Callable[[bytes], _T], body: bytes) -> None:
    # Where it was cancelled, its client is gone.
    if not future.set_running_or_notify_cancel():
        return
    try:
        _check_containers(body)
        future.set_result(parse(body))
    except (ApiError, InvalidBodyError) as exc:
        # Its frames and causes hold what was read, which would still be there while the next body is.
        exc.__cause__ = exc.__context__ = None
        future.set_exception(exc.with_traceback(None))
    except BaseException as exc:
        future.set_exception(exc)


def _check_containers(body: bytes) -> None:
    """Raise ApiError for a body of too many objects and arrays, as far as it is JSON."""
    if has_too_many_containers(body):
        raise ApiError(400, f"the body {TOO_MANY_CONTAINERS}", code=ErrorCode.INVALID_REQUEST)
