"""Whether a broker answers, asked without redis-py: a health check runs often, inside a worker's memory limit.

Speaks the three words of the Redis protocol that this takes (https://redis.io/docs/latest/develop/reference/protocol-spec).
"""

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote

from batcher.broker.url import check_url, hide_password, redact, tls_files
from batcher.errors import BrokerError

_DEFAULT_PORT = 6379
#: Bytes. More than any answer to these commands has.
_LONGEST_ANSWER = 4096


def ping(url: str, *, timeout_s: float) -> None:
    """Connect, log in and PING, blocking for some times `timeout_s` at most. Raises BrokerError; it shows no secret."""
    parts = check_url(url)
    try:
        with _connected(parts, url, timeout_s=timeout_s) as connection, connection.makefile("rb") as answers:
            for command in (*_login(parts), ("PING",)):
                connection.sendall(_encode(command))
                answer = answers.readline(_LONGEST_ANSWER).decode("utf-8", errors="replace").strip()
                if not answer.startswith("+"):
                    said = redact(answer.removeprefix("-"), url) or "nothing"
                    raise BrokerError(f"broker {hide_password(url)}: it answers {command[0]} with {said}")
    except OSError as exc:
        raise BrokerError(f"broker {hide_password(url)}: cannot reach it: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def _connected(parts: SplitResult, url: str, *, timeout_s: float) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        if parts.scheme not in ("redis", "rediss"):
            local = stack.enter_context(socket.socket(socket.AF_UNIX))
            local.settimeout(timeout_s)
            local.connect(unquote(parts.path))
            yield local
            return
        host = parts.hostname or "localhost"
        plain = stack.enter_context(socket.create_connection((host, parts.port or _DEFAULT_PORT), timeout=timeout_s))
        if parts.scheme == "redis":
            yield plain
            return
        # Here, as it takes 5 MB.
        import ssl

        files = tls_files(url)
        context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
        if certificate := files.get("ssl_certfile"):
            context.load_cert_chain(certificate, files.get("ssl_keyfile"))
        yield stack.enter_context(context.wrap_socket(plain, server_hostname=host))


def _login(parts: SplitResult) -> Iterator[tuple[str, ...]]:
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if user:
        yield ("AUTH", user, password)
    elif password:
        yield ("AUTH", password)


def _encode(words: tuple[str, ...]) -> bytes:
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
