"""What RFC 9112 asks of the head of a request, beyond what the parser checks."""

import re
from collections.abc import Sequence

from batcher.server.guard.errors import ApiError

#: uri-host [":" port] of RFC 9110, section 7.2: no user, no path, no blank.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?\Z")


def check_head(headers: Sequence[tuple[bytes, bytes]], *, http_version: str) -> None:
    """Raise ApiError for a Host and for transfer codings that a server has to refuse. Names are in small letters."""
    _check_host([value.strip() for name, value in headers if name == b"host"], http_version=http_version)
    listed = b",".join(value for name, value in headers if name == b"transfer-encoding")
    _check_codings([coding for text in listed.split(b",") if (coding := text.strip().lower())], http_version)


def _check_host(hosts: list[bytes], *, http_version: str) -> None:
    """RFC 9112, section 3.2: HTTP/1.1 has exactly one, and it is a host."""
    if len(hosts) > 1 or (not hosts and http_version == "1.1"):
        raise ApiError(400, f"the request has {f'{len(hosts)} headers' if hosts else 'no header'} Host; send one")
    if hosts and not _HOST.match(hosts[0]):
        raise ApiError(400, "the header Host is not a host with or without a port, as in localhost:8000")


def _check_codings(codings: list[bytes], http_version: str) -> None:
    """RFC 9112, section 6.1: what is not understood is 501; HTTP/1.0 has none, and `chunked` comes once."""
    if any(coding != b"chunked" for coding in codings):
        raise ApiError(501, "the body's Transfer-Encoding is not chunked, the only one that this server understands")
    if len(codings) > 1 or (codings and http_version == "1.0"):
        raise ApiError(400, "Transfer-Encoding is for HTTP/1.1, and chunked comes once")
