"""Who may use the server: whoever has one of its keys, or without keys whoever is on this machine.

Keys are kept as SHA-256 digests, and one that is offered is compared with all of them, each in constant time: how long
a refusal takes says nothing about any key. No key is ever logged or told.
"""

import hashlib
import hmac
import ipaddress
import logging
import stat
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from batcher.errors import InputError
from batcher.server.guard.clients import CLIENT, connection_of
from batcher.server.guard.errors import ApiError

logger = logging.getLogger(__name__)

#: What needs no key: what a load balancer asks, and what people read before they have a key.
PUBLIC_PATHS = frozenset({"/health", "/docs", "/docs/oauth2-redirect", "/openapi.json"})

#: Where clients of other APIs put their key: Anthropic's and Azure's.
KEY_HEADERS = ("x-api-key", "api-key")

#: A shorter key can be guessed by trying.
MIN_KEY_LENGTH = 16

#: Where in a request's scope its connection has a function to be called when the request is let in.
ON_ADMITTED = "batcher.on_admitted"

HOW_TO_MAKE_A_KEY = "openssl rand -hex 24 > keys.txt && chmod 600 keys.txt"


class ApiKeys:
    """The keys that are accepted."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, key: str) -> int | None:
        """Which of them `key` is, from 1 on; None where it is none."""
        offered = hashlib.sha256(key.encode()).digest()
        # All of them, whichever matches.
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        return matches.index(True) + 1 if sum(matches) else None


def read_keys(file: Path | None, listed: str) -> ApiKeys | None:
    """The keys of `file` (one a line, # begins a comment) and of `listed` (comma-separated); None where there are none.

    Raises InputError for a file that can't be read and for bad keys. Warns of a file that others can read.
    """
    keys = [(f"BATCHER_API_KEYS, key {i}", key.strip()) for i, key in enumerate(listed.split(","), start=1)]
    if file is not None:
        keys += _read_file(file)
    found = [(place, key) for place, key in keys if key]
    for place, key in found:
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(
                f"{place}: not a key of at least {MIN_KEY_LENGTH} printable ASCII characters without spaces; "
                f"make one with: {HOW_TO_MAKE_A_KEY}"
            )
    if file is not None and not any(place.startswith(str(file)) for place, _ in found):
        raise InputError(f"{file}: holds no key; put one on each line, made with: {HOW_TO_MAKE_A_KEY}")
    return ApiKeys(key for _, key in found) if found else None


def _read_file(file: Path) -> list[tuple[str, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        mode = stat.S_IMODE(file.stat().st_mode)
    except UnicodeDecodeError as exc:
        raise InputError(f"--api-keys-file {file}: not UTF-8 at byte {exc.start}; write one key a line") from exc
    except OSError as exc:
        raise InputError(f"--api-keys-file {file}: cannot read the file: {exc.strerror or exc}") from exc
    if mode & stat.S_IROTH:
        logger.warning("everyone on this machine can read %s (mode %o); chmod 600 %s", file, mode, file)
    return [(f"{file}:{number}", line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1)]


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or `localhost`, can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class KeyCheck:
    """Lets requests pass that bring a key: as `Authorization: Bearer KEY`, or in one of the headers `KEY_HEADERS`."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC_PATHS:
            scope[CLIENT] = str(self._find(Headers(scope=scope)))
            _note_admitted(scope)
        await self._app(scope, receive, send)

    def _find(self, headers: Headers) -> int:
        """The number of the key that a request brings. Raises ApiError."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        offered = [bearer] if scheme.lower() == "bearer" else []
        offered += [headers.get(name, "") for name in KEY_HEADERS]
        found = [key for text in offered if (key := text.strip())]
        numbers = [number for key in found if (number := self._keys.find(key)) is not None]
        if numbers:
            return numbers[0]
        what = "this API key is not known" if found else "no API key was given"
        raise ApiError(
            401,
            f"{what}; send the header `Authorization: Bearer KEY` with a key of this server",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


class LoopbackCheck:
    """In the place of KeyCheck in a server without keys: lets requests pass that name this machine as their host.

    A web page in a browser of this machine could otherwise use the server: by a name of its own that it lets point to
    127.0.0.1 (DNS rebinding), or by what a browser sends without an Origin, such as an image or a link. Browsers mark
    that by Sec-Fetch-Site. Pages of `origins` may, under this machine's name.
    """

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(Headers(scope=scope))
            scope[CLIENT] = connection_of(scope)
            _note_admitted(scope)
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        origin = headers.get("origin")
        is_listed = origin is not None and origin in self._origins
        if not _is_local(f"//{headers.get('host', 'localhost')}"):
            raise _not_local("the header host does not name this machine")
        if not is_listed and origin is not None and not _is_local(origin):
            raise _not_local("the header origin does not name this machine")
        if not is_listed and headers.get("sec-fetch-site", "").lower() == "cross-site":
            raise _not_local("the request comes from a page of another site (sec-fetch-site)")


def _note_admitted(scope: Scope) -> None:
    on_admitted = scope.get(ON_ADMITTED)
    if on_admitted is not None:
        on_admitted()


def _not_local(what: str) -> ApiError:
    return ApiError(
        403,
        f"{what}, and a server without keys answers nobody else; "
        "ask it as http://127.0.0.1:PORT, or start it with --api-keys-file",
        code="not_local",
    )


def _is_local(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return "@" not in parts.netloc and is_loopback(parts.hostname or "")
    except ValueError:
        return False
