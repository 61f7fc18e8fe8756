"""Which web pages may use the server from a browser."""

import httpx
import pytest

from batcher.errors import InputError
from batcher.server.app import Api, make_api
from batcher.server.guard.auth import ApiKeys
from batcher.server.guard.limits import Limits
from batcher.server.guard.origins import parse_origins
from tests.support.api_client import ask
from tests.support.scripted_engine import ScriptedEngine

KEY = "sk-0123456789abcdef"
PAGE = "https://app.example"
OTHER_PAGE = "https://evil.example"
ASKED_HEADERS = "authorization,content-type,x-stainless-lang"


def api(*origins: str, limits: Limits | None = None) -> Api:
    return make_api(ScriptedEngine(), keys=ApiKeys([KEY]), cors_origins=origins, limits=limits)


def preflight(one: Api, origin: str, path: str = "/v1/completions") -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": ASKED_HEADERS,
    }
    return ask(one, "OPTIONS", path, headers=headers)


def test_listed_page_gets_its_preflight_answered_without_a_key() -> None:
    answer = preflight(api(PAGE, "http://localhost:3000"), PAGE)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == ASKED_HEADERS
    assert {"GET", "POST", "DELETE"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in answer.headers


def test_listed_page_of_the_internet_may_ask_a_server_of_this_machine() -> None:
    headers = {
        "origin": PAGE,
        "access-control-request-method": "GET",
        "access-control-request-private-network": "true",
    }
    answer = ask(api(PAGE), "OPTIONS", "/v1/models", headers=headers)

    assert (answer.status_code, answer.headers["access-control-allow-private-network"]) == (200, "true")
    other = ask(api(PAGE), "OPTIONS", "/v1/models", headers=headers | {"origin": OTHER_PAGE})
    assert other.status_code >= 400
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(("origins", "page"), [((), PAGE), ((PAGE,), OTHER_PAGE), ((PAGE,), f"{PAGE}.evil.example")])
def test_other_pages_get_no_leave(origins: tuple[str, ...], page: str) -> None:
    one = api(*origins)
    headers = {"origin": page, "authorization": f"Bearer {KEY}"}

    before, answer = preflight(one, page), ask(one, "GET", "/v1/models", headers=headers)

    assert before.status_code >= 400
    # A request that came all the same is answered, as its key is right; but the browser keeps the answer from the page.
    assert answer.status_code == 200
    for one_answer in (before, answer):
        assert "access-control-allow-origin" not in one_answer.headers


def test_answer_to_a_listed_page_is_for_it_and_shows_what_clients_read() -> None:
    headers = {"origin": PAGE, "authorization": f"Bearer {KEY}"}

    answer = ask(api(PAGE), "GET", "/v1/models", headers=headers)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    shown = set(answer.headers["access-control-expose-headers"].split(", "))
    assert {"x-request-id", "retry-after", "x-should-retry", "x-batcher-ignored"} <= shown
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    ("limits", "headers", "status"),
    [(None, {}, 401), (Limits(max_concurrent=0), {"authorization": f"Bearer {KEY}"}, 429)],
)
def test_page_can_read_why_it_was_refused(limits: Limits | None, headers: dict[str, str], status: int) -> None:
    answer = ask(api(PAGE, limits=limits), "GET", "/v1/models", headers={"origin": PAGE} | headers)

    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_star_lets_every_page_ask() -> None:
    assert preflight(api("*"), OTHER_PAGE).headers["access-control-allow-origin"] == "*"


def test_server_without_keys_answers_the_listed_page_by_a_name_of_this_machine_alone() -> None:
    one = make_api(ScriptedEngine(), keys=None, cors_origins=(PAGE,))

    cross_site = {"origin": PAGE, "sec-fetch-site": "cross-site"}
    assert ask(one, "GET", "/v1/models", headers=cross_site).status_code == 200
    assert ask(one, "GET", "/v1/models", headers={"origin": OTHER_PAGE}).status_code == 403
    rebound = ask(one, "GET", "/v1/models", headers={"origin": PAGE, "host": "app.example"})
    assert rebound.status_code == 403


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("*", "*"),
        ("https://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("http://app.example:443", "http://app.example:443"),
    ],
)
def test_origin_is_written_as_browsers_send_it(text: str, origin: str) -> None:
    assert parse_origins([text, text]) == (origin,)


@pytest.mark.parametrize(
    "text", ["", "app.example", "https://app.example/", "https://app.example/x", "null", "https://*.example", "a b://c"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--cors-origin .*: not an origin; give scheme://host"):
        parse_origins([text])
