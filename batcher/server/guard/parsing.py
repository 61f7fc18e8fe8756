"""Parsing of bodies: small ones at once, a large one in a thread of its own, one at a time.

JSON becomes up to thirty times as large where it is read: 10 MB of `[{},{},...]` are 280 MB of objects. So large bodies
are read one after another, and those of more objects and arrays than any request has a use for not at all. More threads
would not be faster, as the parser holds the interpreter's lock.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from batcher.errors import InvalidBodyError
from batcher.openai.bodies import TOO_MANY_CONTAINERS, has_too_many_containers
from batcher.server.guard.errors import ApiError
from batcher.types import ErrorCode

_T = TypeVar("_T")

#: Bytes of a body that are parsed in a moment. A larger one would hold up everybody's streams in the event loop.
MAX_PARSED_AT_ONCE = 64 << 10

# One for the process, whose memory and lock it is about.
_parser = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parser")


async def parse_apart(parse: Callable[[bytes], _T], body: bytes) -> _T:
    """What `parse` makes of `body`, or raises."""
    if len(body) <= MAX_PARSED_AT_ONCE:
        return parse(body)
    return await asyncio.get_running_loop().run_in_executor(_parser, _parse, parse, body)


def _parse(parse: Callable[[bytes], _T], body: bytes) -> _T:
    _check_containers(body)
    try:
        return parse(body)
    except (ApiError, InvalidBodyError) as exc:
        # Its frames and causes hold what was read, which would still be there while the next body is.
        exc.__cause__ = exc.__context__ = None
        raise exc.with_traceback(None) from None


def _check_containers(body: bytes) -> None:
    """Raise ApiError for a body of too many objects and arrays, as far as it is JSON."""
    if has_too_many_containers(body):
        raise ApiError(400, f"the body {TOO_MANY_CONTAINERS}", code=ErrorCode.INVALID_REQUEST)
