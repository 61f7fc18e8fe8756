"""The broker's URL: what it may say, how each library spells it, and how it may be shown.

Two libraries read it: redis-py for leases and sweeps, kombu for the queue. They don't agree. kombu takes a bare
`rediss://` for a connection whose certificate nobody checks, and splits a URL at each `;`; each obeys query parameters
that the other drops. So a URL is checked here, once, and means the same to both.
"""

import logging
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from batcher.errors import BrokerUrlError, InputError

#: Parameters of a `rediss://` URL, each the path of a PEM file: the CA to trust, our own certificate and its key.
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
#: Said aloud in every `rediss://` URL, as the defaults of the libraries differ. A URL may repeat them, not change them.
_CERTIFICATE_CHECK = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}

_EXAMPLES = "use redis://host:6379/0, rediss://host:6379/0 or redis+socket:///path/to.sock"
_SOCKET_SCHEMES = ("redis+socket", "unix")
_AUTHORITY = re.compile(r"(?:\[[^\]]*\]|[^:/\[\]]*)(?::[0-9]*)?")


def check_url(url: str) -> SplitResult:
    """`url` in parts. Raises BrokerUrlError where a library would misread it; no message shows a secret."""
    shown = f"broker {hide_password(url)}"
    try:
        parts = urlsplit(url)
        _ = parts.port
        # As the socket module will, whose error would be none of ours.
        (parts.hostname or "").encode("idna")
    except ValueError:
        # Without a cause: its message may hold a piece of the password.
        raise BrokerUrlError(f"{shown}: not a broker URL; {_EXAMPLES}{_hint(url)}") from None
    is_socket = parts.scheme in _SOCKET_SCHEMES
    # An @ behind the host: the host is a piece of a password that was not encoded.
    is_misread = not is_socket and "@" in f"{parts.path}{parts.query}{parts.fragment}"
    if parts.scheme not in ("redis", "rediss", *_SOCKET_SCHEMES) or "://" not in url or is_misread:
        raise BrokerUrlError(f"{shown}: not a broker URL; {_EXAMPLES}{_hint(url)}")
    if parts.fragment or not (is_socket or re.fullmatch(r"/?|/[0-9]+", parts.path)):
        raise BrokerUrlError(f"{shown}: what follows the host must be the number of a database, such as /0{_hint(url)}")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if parts.scheme != "rediss" or name not in (*TLS_FILES, *_CERTIFICATE_CHECK):
            known = f"{', '.join(TLS_FILES)}, with rediss://"
            raise BrokerUrlError(f"{shown}: a parameter behind the ? is none that Batcher knows; it knows {known}")
        if value != _CERTIFICATE_CHECK.get(name, value):
            raise BrokerUrlError(
                f"{shown}: {name}: the certificate is always checked; give the CA that signed it as "
                "?ssl_ca_certs=/path/to/ca.pem, and the host by the name in the certificate"
            )
    return parts


def client_url(url: str) -> str:
    """The URL as redis-py spells it (`unix://` for a socket). Raises BrokerUrlError."""
    return _spell(check_url(url), socket_scheme="unix")


def celery_url(url: str) -> str:
    """The URL as kombu spells it (`redis+socket://` for a socket). Raises BrokerUrlError."""
    # kombu takes what stands between semicolons for URLs of their own.
    return _spell(check_url(url), socket_scheme="redis+socket").replace(";", "%3B")


def tls_files(url: str) -> dict[str, Path]:
    """The files that a `rediss://` URL names, by parameter. Raises BrokerUrlError."""
    return {name: Path(value) for name, value in parse_qsl(check_url(url).query) if name in TLS_FILES}


def hide_password(url: str) -> str:
    """`url` as it may be shown: user, password and query left out, and what may be a password written wrongly."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]+|", url) else "(not shown, as it is no URL)"
    # The last @ whatever precedes it: a password may hold a / or ? that nobody encoded.
    _, at, place = rest.rpartition("@")
    authority, slash, path = re.split("[?#]", place, maxsplit=1)[0].partition("/")
    host = authority if _AUTHORITY.fullmatch(authority) else "***"
    return f"{scheme}://{'***@' if at else ''}{host}{slash}{path}"


def has_secret(url: str) -> bool:
    """Whether `url` holds a password, also one written where none is read from."""
    return ":" in url.partition("://")[2].rpartition("@")[0] or "password=" in url or ("@" in url and "://" not in url)


def redact(text: str, url: str) -> str:
    """`text` without the password of `url`.

    A server may repeat what it was sent: Redis before 6 answers "unknown command `HELLO`, with args beginning with" and
    then up to 128 characters, the password among them.
    """
    text = re.sub(r"with args beginning with.*", "with ***", text)
    try:
        password = urlsplit(url).password or ""
    except ValueError:
        return text
    plain = unquote(password)
    spellings = {password, plain, quote(plain, safe=""), repr(plain)[1:-1]} - {""}
    for spelling in sorted(spellings, key=len, reverse=True):
        text = text.replace(spelling, "***")
    return text


class RedactingFormatter(logging.Formatter):
    """A formatter that writes no password of `url`, whichever library logs it, its tracebacks included."""

    def __init__(self, fmt: str, url: str) -> None:
        super().__init__(fmt)
        self._url = url

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._url)


def read_url_file(path: Path) -> str:
    """The URL in the first line of `path`, which may hold a password. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"--broker-file {path}: not UTF-8; its first line must be a broker URL") from exc
    except OSError as exc:
        raise InputError(f"--broker-file {path}: cannot read the file: {exc.strerror or exc}") from exc
    url = text.partition("\n")[0].strip()
    if not url:
        raise InputError(f"--broker-file {path}: the first line is empty; it must be a broker URL: {_EXAMPLES}")
    return url


def _spell(parts: SplitResult, *, socket_scheme: str) -> str:
    """The URL of `parts`; if it is a `rediss://` URL, with the certificate check said aloud."""
    # Not `geturl`, which leaves out the slashes of a scheme that it does not know.
    if parts.scheme in _SOCKET_SCHEMES:
        return f"{socket_scheme}://{parts.netloc}{parts.path}"
    query = {**dict(parse_qsl(parts.query)), **_CERTIFICATE_CHECK} if parts.scheme == "rediss" else {}
    return f"{parts.scheme}://{parts.netloc}{parts.path}{'?' if query else ''}{urlencode(query)}"


def _hint(url: str) -> str:
    return "; in a password write / as %2F, ? as %3F and # as %23" if "@" in url else ""
