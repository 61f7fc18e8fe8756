"""Web pages that may use the server from a browser (CORS): those of the origins that are listed, by default none.

A browser asks before it sends a request with a key from one origin to another (a preflight, which can bring no key),
and shows a page only those answers whose headers name its origin. So this is the outermost layer: it answers
preflights, and what refuses a request further in can be read by the page. It protects no server; the keys do that.
"""

import re
from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from batcher.errors import InputError

ANY_ORIGIN = "*"

# As browsers send it: no path, and no port that is the scheme's own.
_ORIGIN = re.compile(r"^[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?\Z")
_OWN_PORTS = {"http": ":80", "https": ":443"}

#: Headers of answers that a page may read, beside those that every page may: all that clients go by.
_EXPOSED = ("x-request-id", "retry-after", "x-should-retry", "x-batcher-ignored", "allow")


def parse_origins(texts: Iterable[str]) -> tuple[str, ...]:
    """The origins as browsers name them. Raises InputError for what is not an origin."""
    return tuple(dict.fromkeys(map(_parse, texts)))


def _parse(text: str) -> str:
    origin = text.strip().lower()
    if origin == ANY_ORIGIN:
        return origin
    if not _ORIGIN.match(origin):
        raise InputError(
            f"--cors-origin {text[:80]!r}: not an origin; give scheme://host or scheme://host:port without a path, "
            "such as https://app.example, or * for every page"
        )
    return origin.removesuffix(_OWN_PORTS.get(origin.partition(":")[0], "none"))


def allow_origins(origins: tuple[str, ...]) -> Middleware:
    """The layer that lets pages of `origins` ask. Without credentials of the browser's: a key is in a header."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        # SDKs send a dozen headers about themselves.
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        # Browsers that ask by it mean a page of the internet and a server of this machine or network.
        allow_private_network=True,
    )
