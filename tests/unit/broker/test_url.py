"""What a broker's URL may say, how each library reads it, and that its password is never shown."""

import logging
import ssl
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from batcher.broker.url import (
    RedactingFormatter,
    celery_url,
    check_url,
    client_url,
    has_secret,
    hide_password,
    read_url_file,
    redact,
)
from batcher.errors import BrokerError, InputError
from workers.queue.app import make_celery


def refusal(url: str) -> str:
    """What is said against a URL, if anything."""
    try:
        check_url(url)
    except BrokerError as exc:
        return str(exc)
    return ""


passwords = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)


@given(passwords)
def test_every_encoded_password_reaches_both_libraries(password: str) -> None:
    url = f"redis://user:{quote(password, safe='')}@host:6379/3"

    pool = redis.ConnectionPool.from_url(client_url(url))
    connection = make_celery(url).connection_for_write()

    assert pool.connection_kwargs["password"] == connection.password == password
    assert pool.connection_kwargs["username"] == connection.userid == "user"
    assert pool.connection_kwargs["host"] == connection.hostname == "host"
    assert (pool.connection_kwargs["db"], connection.virtual_host) == (3, "3")
    assert connection.alt == []


def test_password_with_a_semicolon_is_no_second_broker_for_kombu() -> None:
    connection = make_celery("redis://:one;two@host:6379/0").connection_for_write()

    assert (connection.password, connection.alt) == ("one;two", [])


def test_certificate_is_required_of_both_libraries_without_a_word_about_it() -> None:
    url = "rediss://host:6379/0"

    kwargs = redis.ConnectionPool.from_url(client_url(url)).connection_kwargs
    connection = make_celery(url).connection_for_write()

    assert (kwargs["ssl_cert_reqs"], kwargs["ssl_check_hostname"]) == ("required", True)
    assert connection.ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}


def test_files_of_tls_reach_both_libraries() -> None:
    url = "rediss://host:6379/0?ssl_ca_certs=/etc/my%20ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem"

    kwargs = redis.ConnectionPool.from_url(client_url(url)).connection_kwargs
    connection = make_celery(url).connection_for_write()

    expected = {"ssl_ca_certs": "/etc/my ca.pem", "ssl_certfile": "/c.pem", "ssl_keyfile": "/k.pem"}
    assert expected.items() <= kwargs.items()
    assert expected.items() <= connection.ssl.items()


@pytest.mark.parametrize(
    "query", ["ssl_cert_reqs=none", "ssl_cert_reqs=optional", "ssl_check_hostname=false", "ssl_cert_reqs="]
)
def test_certificate_check_cannot_be_turned_off(query: str) -> None:
    with pytest.raises(BrokerError, match=r"always checked.*ssl_ca_certs="):
        check_url(f"rediss://host:6379/0?ssl_ca_certs=/ca.pem&{query}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a broker URL; use redis://host:6379/0"),
        ("localhost:6379", "broker localhost:6379: not a broker URL"),
        ("amqp://host", "not a broker URL"),
        ("redis+socket:/tmp/x", "not a broker URL"),
        ("redis://host:port/0", "not a broker URL"),
        ("redis://[::1/0", "not a broker URL"),
        ("redis://queue..example:6379/0", "not a broker URL"),
        (f"redis://{'long' * 16}:6379/0", "not a broker URL"),
        ("redis://host:6379/zero", "number of a database"),
        ("redis://host:6379/0/1", "number of a database"),
        ("redis://host:6379/0#1", "number of a database"),
        ("redis://host:6379/0?db=1", "none that Batcher knows"),
        ("redis+socket:///a.sock?db=1", "none that Batcher knows"),
        # Each would be obeyed by one of the libraries: a password that the other does not see, a class to import.
        ("redis://host:6379/0?password=geheim", "none that Batcher knows"),
        ("redis://host:6379/0?credential_provider=os.system", "none that Batcher knows"),
        ("redis://host:6379/0?ssl_ca_certs=/ca.pem", "with rediss://"),
        ("rediss://host:6379/0?ssl_password=geheim", "none that Batcher knows"),
        ("redis://:ge/heim@host:6379/0", "write / as %2F"),
        ("redis://:ge?heim@host:6379/0", "write / as %2F"),
        ("redis://:ge#heim@host:6379/0", "write / as %2F"),
    ],
)
def test_url_that_would_be_misread_is_refused_without_its_secret(url: str, message: str) -> None:
    with pytest.raises(BrokerError) as caught:
        check_url(url)

    assert message in str(caught.value)
    assert "heim" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host/",
        "redis://[::1]:6379/15",
        "redis://queue.example.",
        "redis://b\u00fccher.example",
        "rediss://user@host:1/0",
        "unix:///a@b/c.sock",
    ],
)
def test_usual_urls_are_taken(url: str) -> None:
    check_url(url)


def test_socket_urls_are_spelled_for_each_library() -> None:
    for url in ("redis+socket://:pw@/a/b.sock", "unix://:pw@/a/b.sock"):
        assert client_url(url) == "unix://:pw@/a/b.sock"
        assert celery_url(url) == "redis+socket://:pw@/a/b.sock"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss://user:geheim@host:6379/0?ssl_ca_certs=/ca.pem", "rediss://***@host:6379/0"),
        ("rediss://:ge%40heim@host/1?ssl_cert_reqs=none", "rediss://***@host/1"),
        ("redis+socket://:geheim@/tmp/b.sock", "redis+socket://***@/tmp/b.sock"),
        ("redis+socket:///tmp/b.sock?password=geheim", "redis+socket:///tmp/b.sock"),
        # Written wrongly, and still not shown.
        ("redis://:ge/heim@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:ge?heim@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:ge@heim@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:geheim", "redis://***"),
        ("redis://user:geheim", "redis://***"),
        ("user:geheim@host:6379", "(not shown, as it is no URL)"),
        ("geheim", "(not shown, as it is no URL)"),
    ],
)
def test_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert hide_password(url) == shown


@given(st.text(st.sampled_from("/?#@:;%[] ."), max_size=8), st.text(st.sampled_from("/?#@:;%[] ."), max_size=8))
def test_no_way_of_writing_a_password_shows_it(before: str, after: str) -> None:
    url = f"redis://:{before}geheim{after}@host:6379/0"

    assert "geheim" not in hide_password(url)
    assert has_secret(url)
    assert "geheim" not in refusal(url)


@pytest.mark.parametrize("url", ["redis://:x@host", "redis://u:x@host", "redis://host?password=x", "u:x@host:6379"])
def test_secret_is_noticed(url: str) -> None:
    assert has_secret(url)


@pytest.mark.parametrize("url", ["redis://host:6379/0", "redis://user@host", "unix:///a.sock", "localhost:6379"])
def test_url_without_a_secret_is_known_as_such(url: str) -> None:
    assert not has_secret(url)


def test_log_shows_no_password_whoever_writes_it() -> None:
    formatter = RedactingFormatter("%(message)s", "redis://:ge%2Fheim%5C@host:6379/0")
    record = logging.LogRecord(
        "kombu", logging.ERROR, "", 0, "%s %r %s", ("ge/heim\\", "ge/heim\\", "ge%2Fheim%5C"), None
    )

    assert formatter.format(record) == "*** '***' ***"


def test_command_that_an_old_server_repeats_is_not_shown() -> None:
    # Redis cuts it after 128 characters, so that a longer password could not be found in it.
    answer = "unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `" + "x" * 90

    assert redact(answer, "redis://:" + "x" * 300 + "@host") == "unknown command `HELLO`, with ***"


def test_url_file_is_read_up_to_its_first_newline(tmp_path: Path) -> None:
    file = tmp_path / "broker"
    file.write_text("\ufeff redis://:geheim@host:6379/0 \r\nof the queue\n")

    assert read_url_file(file) == "redis://:geheim@host:6379/0"


@pytest.mark.parametrize(("content", "message"), [(b"", "first line is empty"), (b"\xff\xfe", "not UTF-8")])
def test_url_file_without_a_url_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "broker"
    file.write_bytes(content)

    with pytest.raises(InputError, match=message):
        read_url_file(file)


def test_missing_url_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--broker-file .*none: cannot read the file: No such file"):
        read_url_file(tmp_path / "none")
