"""`/v1/batches`: what the SDK sends and reads, and what nobody should send."""

import json
from typing import Any

import openai
import pytest
from openai.types import Batch

from batcher.server.app import Api
from tests.support import job_files
from tests.support.api_bench import error_of, make_files_and_batches
from tests.support.api_client import ask
from tests.support.batch_bench import TIMEOUT, BatchBench, line, lines, work

GOOD = lines(line("a"), line("b"), line("c"))


def body(bench: BatchBench, **changes: Any) -> dict[str, Any]:
    usual = {"input_file_id": bench.upload(GOOD).id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return usual | changes


def test_sdk_makes_a_batch_and_reads_its_results(client: openai.OpenAI, bench: BatchBench) -> None:
    file = client.files.create(file=("in.jsonl", GOOD), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"who": "me"}
    )
    assert (batch.status, batch.metadata, batch.usage) == ("validating", {"who": "me"}, None)
    bench.keeper.make_round()
    assert client.batches.retrieve(batch.id).status == "in_progress"
    work(bench.job(batch.id), answer=lambda request: TIMEOUT if request.custom_id == "b" else "text")
    bench.keeper.make_round()

    done = client.batches.retrieve(batch.id)

    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert done.usage is not None
    assert done.usage.to_dict() == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 16,
    }
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    results = client.files.content(done.output_file_id).text.splitlines()
    assert [json.loads(result)["custom_id"] for result in results] == ["a", "c"]
    assert json.loads(client.files.content(done.error_file_id).text)["custom_id"] == "b"


def test_object_has_every_field_that_the_sdk_names_and_no_other(app: Api, bench: BatchBench) -> None:
    found = ask(app, "POST", "/v1/batches", json=body(bench)).json()

    assert set(found) == set(Batch.model_fields)
    assert Batch.model_validate(found).to_dict() == found


def test_sdk_reads_why_an_input_failed(client: openai.OpenAI, bench: BatchBench) -> None:
    batch = bench.started(lines(line("a"), line("a")))

    failed = client.batches.retrieve(batch.id)

    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    error = failed.errors.data[0]
    assert (error.code, error.line, error.param) == ("duplicate_custom_id", 2, "custom_id")


def test_sdk_pages_through_batches_and_jobs(client: openai.OpenAI, bench: BatchBench) -> None:
    job_files.make_job(bench.root / "nightly", (2,))
    ids = ["nightly"]
    for _ in range(4):
        bench.clock.now += 10
        ids.append(bench.create(GOOD).id)

    # The job's manifest says when it was made: long ago, in 2026.
    found = [batch.id for batch in client.batches.list(limit=2)]

    assert sorted(found) == sorted(ids)
    assert [one for one in found if one != "nightly"] == ids[:0:-1]


def test_sdk_cancels_a_batch_once(client: openai.OpenAI, bench: BatchBench) -> None:
    batch = bench.started(GOOD)

    assert client.batches.cancel(batch.id).status == "cancelling"
    bench.keeper.make_round()
    assert client.batches.retrieve(batch.id).status == "cancelled"

    with pytest.raises(openai.BadRequestError, match="cancelled already"):
        client.batches.cancel(batch.id)


def test_unknown_batch_is_not_found(client: openai.OpenAI) -> None:
    for asked in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="No such batch"):
            asked("batch_none")
    with pytest.raises(openai.NotFoundError, match="No such file"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/completions", completion_window="24h")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"priority": "soon"}, "priority"),
        ({"finish_by": "soon"}, "finish_by"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, None),
    ],
)
def test_body_that_is_wrong_is_refused_in_words(
    app: Api, bench: BatchBench, changes: dict[str, Any], param: str | None
) -> None:
    response = ask(app, "POST", "/v1/batches", json=body(bench, **changes))

    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"a": "\xff"}', b"[" * 100_000, b'{"input_file_id": "\\ud800"}']
)
def test_body_that_is_no_object_is_refused_in_words(app: Api, content: bytes) -> None:
    response = ask(app, "POST", "/v1/batches", content=content)

    assert response.status_code == 400
    error_of(response)


def test_body_that_is_too_large_is_refused(app: Api) -> None:
    assert ask(app, "POST", "/v1/batches", content=b" " * (2 << 20)).status_code == 413


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x"])
def test_bad_parameter_is_refused_in_words(app: Api, query: str) -> None:
    response = ask(app, "GET", f"/v1/batches?{query}")

    assert response.status_code == 400
    assert error_of(response)["param"] == "limit"


def test_damaged_batch_is_an_error_that_tells_nothing_internal(app: Api, bench: BatchBench) -> None:
    batch = bench.create(GOOD)
    bench.job(batch.id).batch_path.write_text("{")
    fresh = make_files_and_batches(BatchBench(bench.root))

    response = ask(fresh, "GET", f"/v1/batches/{batch.id}")

    assert response.status_code == 500
    assert str(bench.root) not in error_of(response)["message"]


def test_documentation_names_no_status_that_is_never_given(app: Api) -> None:
    paths = app.app.openapi()["paths"]

    assert set(paths) >= {"/v1/files", "/v1/files/{file_id}/content", "/v1/batches/{batch_id}/cancel"}
    statuses = {status for path in paths.values() for one in path.values() for status in one["responses"]}
    assert "422" not in statuses
    assert {"200", "400", "401", "404", "413", "429", "500", "503"} <= statuses
