"""What the app answers beside completions: models, health, metrics, its own description, and what there is not."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from batcher.server.app import Api, make_api
from batcher.server.batches.service import Batches
from batcher.server.batches.states import BatchReader
from batcher.server.batches.uploads import FileStore
from batcher.server.census import CensusTaker
from batcher.server.guard.auth import ApiKeys
from batcher.server.routes.batches import batches_router
from batcher.server.routes.files import files_router
from tests.support.api_client import ask, complete
from tests.support.scripted_engine import ScriptedEngine

KEY = "sk-0123456789abcdef"


def whole_app(root: Path, *, keys: ApiKeys | None = None) -> Api:
    files = FileStore(root)
    batches = Batches(root, files, reader=BatchReader(root), wake=lambda: None)
    routers = (files_router(files, batches, max_bytes=1 << 20), batches_router(batches))
    return make_api(ScriptedEngine(), keys=keys, census=CensusTaker(root), routers=routers)


def test_models_are_listed_and_described() -> None:
    api = make_api(ScriptedEngine("small", "large"), keys=None)

    listed = ask(api, "GET", "/v1/models").json()
    one = ask(api, "GET", "/v1/models/large").json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["small", "large"]
    assert one == listed["data"][1]
    assert (one["object"], one["owned_by"]) == ("model", "batcher")


@pytest.mark.parametrize("name", ["gemma3:27b", "Qwen/Qwen3-0.6B", "org/name@rev", "a%2Fb?c#d", "名前"])
def test_model_of_any_name_is_found_and_completes(name: str) -> None:
    api = make_api(ScriptedEngine(name), keys=None)

    for path in (quote(name), quote(name, safe="")):
        assert ask(api, "GET", f"/v1/models/{path}").json()["id"] == name
    assert complete(api, model=name).json()["model"] == name
    assert f'model="{name}"' in ask(api, "GET", "/metrics").text


@pytest.mark.parametrize("name", ["none", "org/none", "%C3%A9"])
def test_unknown_model_is_not_found(name: str) -> None:
    answer = ask(make_api(ScriptedEngine(), keys=None), "GET", f"/v1/models/{name}")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_health_follows_the_engine() -> None:
    engine = ScriptedEngine()
    api = make_api(engine, keys=None)

    engine.is_ready = False
    loading = ask(api, "GET", "/health")
    engine.is_ready = True
    ready = ask(api, "GET", "/health")

    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ok"})


def test_server_without_an_engine_is_well() -> None:
    assert ask(make_api(None, keys=None), "GET", "/health").status_code == 200


ALLOWED = {"/v1/completions": "POST", "/v1/models": "GET", "/health": "GET"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions/", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("TRACE", "/health", 405),
    ],
)
def test_what_there_is_not_is_told_as_an_error_object(method: str, path: str, status: int) -> None:
    answer = ask(make_api(ScriptedEngine(), keys=None), method, path)

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert status != 405 or answer.headers.get_list("allow") == [ALLOWED[path]]


def test_metrics_count_requests_by_route_and_status(tmp_path: Path) -> None:
    api = whole_app(tmp_path)

    complete(api)
    complete(api, model="none")
    ask(api, "GET", "/v1/models/a/b/c")
    text = ask(api, "GET", "/metrics").text

    assert 'batcher_http_requests_total{method="POST",route="/v1/completions",status="200"} 1.0' in text
    assert 'batcher_http_requests_total{method="POST",route="/v1/completions",status="404"} 1.0' in text
    assert 'route="/v1/models/{model:path}"' in text
    assert "a/b/c" not in text


def test_metrics_tell_of_engines_and_jobs(tmp_path: Path) -> None:
    text = ask(whole_app(tmp_path), "GET", "/metrics").text

    for line in (
        'batcher_slots{model="tiny"} 4.0',
        'batcher_kv_cells_used{model="tiny"} 17.0',
        'batcher_prompt_tokens_total{model="tiny"} 30.0',
        'batcher_preemptions_total{model="tiny"} 2.0',
        'batcher_jobs{state="running"} 0.0',
        'batcher_workers{health="alive"} 0.0',
    ):
        assert line in text.splitlines()


def test_streams_are_timed_to_their_first_token() -> None:
    api = make_api(ScriptedEngine(), keys=None)

    complete(api, stream=True)

    assert 'batcher_time_to_first_token_seconds_count{model="tiny"} 1.0' in ask(api, "GET", "/metrics").text


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, found) for path, of_path in document["paths"].items() for method, found in of_path.items()]


def test_description_names_every_route_with_its_errors(tmp_path: Path) -> None:
    api = whole_app(tmp_path, keys=ApiKeys([KEY]))

    document = ask(api, "GET", "/openapi.json").json()

    found = operations(document)
    assert len(found) > 14
    for path, _, operation in found:
        assert "422" not in operation["responses"]
        if path.startswith("/v1/"):
            assert {"400", "401", "404", "405", "413", "429", "500", "503"} <= set(operation["responses"])
            assert operation["security"] == [{"key": []}, {"x-api-key": []}, {"api-key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_description_refers_only_to_what_it_holds(tmp_path: Path) -> None:
    answer = ask(whole_app(tmp_path), "GET", "/openapi.json")

    schemas = answer.json()["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', answer.text)) <= set(schemas)


def test_documentation_is_a_page() -> None:
    answer = ask(make_api(None, keys=None), "GET", "/docs")

    assert answer.headers["content-type"].startswith("text/html")


def test_path_that_is_none_is_not_found_whatever_the_host_is_called() -> None:
    api = make_api(ScriptedEngine(), keys=ApiKeys([KEY]))

    answer = ask(api, "GET", "/v1/none", headers={"authorization": f"Bearer {KEY}", "host": "["})

    assert answer.status_code == 404
    assert "/v1/none" in answer.json()["error"]["message"]
