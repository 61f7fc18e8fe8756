"""Who is let in."""

import logging
from pathlib import Path

import pytest

from batcher.errors import InputError
from batcher.server.app import make_api
from batcher.server.guard.auth import ApiKeys, is_loopback, read_keys
from tests.support.api_client import ask
from tests.support.scripted_engine import ScriptedEngine

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


def status(headers: dict[str, str], path: str = "/v1/models", *, keys: ApiKeys | None = None) -> int:
    return ask(make_api(ScriptedEngine(), keys=keys), "GET", path, headers=headers).status_code


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {OTHER}", f"Bearer   {KEY} "])
def test_each_of_the_keys_opens(header: str) -> None:
    assert status({"authorization": header}, keys=ApiKeys([KEY, OTHER])) == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"X-Api-Key": f" {KEY} "},
        # What an SDK sends of its own accord beside the key.
        {"authorization": "Bearer none", "api-key": KEY},
        {"authorization": f"Basic {KEY}", "x-api-key": KEY},
    ],
)
def test_key_opens_from_the_headers_of_other_clients(headers: dict[str, str]) -> None:
    assert status(headers, keys=ApiKeys([KEY, OTHER])) == 200


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
def test_wrong_key_is_refused_in_any_header(name: str) -> None:
    answer = ask(make_api(ScriptedEngine(), keys=ApiKeys([KEY])), "GET", "/v1/models", headers={name: OTHER})

    assert answer.status_code == 401
    assert "is not known" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xe9"]
)
def test_anything_else_is_refused(header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1").decode("latin-1")}
    api = make_api(ScriptedEngine(), keys=ApiKeys([KEY]))

    answer = ask(api, "GET", "/v1/models", headers={k: v.encode("latin-1") for k, v in headers.items()})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/metrics", 401),
        ("/nothing", 401),
        ("/v1/files", 401),
        ("/health", 200),
        ("/docs", 200),
        ("/openapi.json", 200),
    ],
)
def test_all_but_health_and_documentation_needs_a_key(path: str, expected: int) -> None:
    assert status({}, path, keys=ApiKeys([KEY])) == expected


def test_keys_never_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        status({"authorization": f"Bearer {OTHER}"}, keys=ApiKeys([KEY]))

    assert KEY not in caplog.text
    assert OTHER not in caplog.text


def test_keys_come_from_file_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\ufeff{KEY}  # of Ann\n\n# ours\n", encoding="utf-8")
    file.chmod(0o600)

    keys = read_keys(file, f" {OTHER} ,")

    assert keys is not None
    assert len(keys) == 2
    assert {keys.find(KEY), keys.find(OTHER)} == {1, 2}
    assert keys.find("# ours") is None


def test_no_keys_at_all_are_none() -> None:
    assert read_keys(None, " , ") is None


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"short\n", b"two words of a key\n", b"\xff\xfe\n"])
def test_file_without_good_keys_is_refused_without_showing_them(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    file.chmod(0o600)

    with pytest.raises(InputError) as caught:
        read_keys(file, "")

    assert "short" not in str(caught.value)


def test_missing_file_of_keys_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_keys(tmp_path / "none", "")


def test_file_that_everyone_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    file.chmod(0o644)

    read_keys(file, "")

    assert "chmod 600" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "attacker.example"}, 403),
        ({"host": "127.0.0.1.attacker.example"}, 403),
        ({"host": "user@127.0.0.1"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "[bad"}, 403),
    ],
)
def test_server_without_keys_answers_only_this_machine(headers: dict[str, str], expected: int) -> None:
    assert status(headers) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "", "localhost.example")],
)
def test_loopback_is_told_from_other_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
