"""`/v1/files`: what the SDK sends and reads, and what nobody should send."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from batcher.manage.export import write_batch_output
from batcher.server.app import Api
from batcher.server.batches import outputs
from tests.support.api_bench import MAX_BYTES, error_of, served
from tests.support.api_client import ask
from tests.support.batch_bench import BatchBench, line, lines, work
from tests.support.waiting import PATIENCE_S, wait_for

GOOD = lines(line("a"), line("b"))


def form(*parts: tuple[str, str | None, bytes], boundary: str = "b", end: bytes = b"--b--\r\n") -> dict[str, object]:
    """A request of these parts: name, filename, content."""
    body = b""
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return {"content": body + end, "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}


FILE = ("file", "in.jsonl", GOOD)
PURPOSE = ("purpose", None, b"batch")
OTHER = ("other", None, b"1")


def nothing_left(bench: BatchBench) -> bool:
    folder = bench.root / ".files"
    return not folder.exists() or not list(folder.iterdir())


def test_sdk_uploads_describes_lists_downloads_and_deletes(client: openai.OpenAI, bench: BatchBench) -> None:
    file = client.files.create(file=("in.jsonl", GOOD), purpose="batch")

    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(GOOD), "in.jsonl", "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == GOOD
    assert list(client.files.list()) == [file]
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    for asked in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            asked(file.id)
    assert nothing_left(bench)


def test_sdk_gives_a_file_a_time_to_live(client: openai.OpenAI, bench: BatchBench) -> None:
    file = client.files.create(
        file=("in.jsonl", GOOD), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600

    bench.clock.now += 3601

    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_sdk_pages_through_files_in_either_order_and_by_purpose(client: openai.OpenAI, bench: BatchBench) -> None:
    ids = []
    for number in range(5):
        purpose = "batch" if number % 2 else "user_data"
        ids.append(bench.upload(b"x", purpose=purpose).id)
        bench.clock.now += 10

    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    assert [file.id for file in client.files.list(limit=1, order="asc", purpose="batch")] == ids[1::2]
    page = client.files.list(limit=2, order="asc", after=ids[2])
    assert ([file.id for file in page.data], page.has_more) == (ids[3:], False)


def test_file_that_is_too_large_is_refused_in_words_and_leaves_nothing(
    client: openai.OpenAI, bench: BatchBench
) -> None:
    for size in (MAX_BYTES + 1, 12 * MAX_BYTES):
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("in.jsonl", b"x" * size), purpose="batch")
        assert caught.value.status_code == 413
        assert "larger than" in caught.value.message
    wait_for(lambda: nothing_left(bench), what="the upload is cleared away")
    assert client.files.create(file=("in.jsonl", b"x" * MAX_BYTES), purpose="batch").bytes == MAX_BYTES


def test_client_that_hangs_up_in_the_middle_leaves_nothing(app: Api, bench: BatchBench) -> None:
    request = form(PURPOSE, ("file", "in.jsonl", b"x" * 600_000))
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600500\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with served(app) as url:
        with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as connection:
            body = request["content"]
            assert isinstance(body, bytes)
            connection.sendall(head.encode() + body[:500_000])
            wait_for(lambda: not nothing_left(bench), what="the upload has begun")
        wait_for(lambda: nothing_left(bench), what="the upload is cleared away")

    assert bench.files.list_files() == []


@pytest.mark.parametrize("parts", [(PURPOSE, FILE), (FILE, PURPOSE), (OTHER, FILE, OTHER, PURPOSE)])
def test_fields_may_come_in_any_order(
    app: Api, bench: BatchBench, parts: tuple[tuple[str, str | None, bytes], ...]
) -> None:
    response = ask(app, "POST", "/v1/files", **form(*parts))

    assert response.status_code == 200, response.text
    file = bench.files.open(response.json()["id"])
    assert file is not None
    with file:
        assert file.read() == GOOD


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (form(FILE), "purpose"),
        (form(PURPOSE), "file"),
        (form(FILE, FILE, PURPOSE), "file"),
        (form(FILE, PURPOSE, PURPOSE), "purpose"),
        (form(FILE, ("purpose", None, b"other")), None),
        (form(FILE, ("purpose", None, b"\xff\xfe")), None),
        (form(FILE, PURPOSE, ("expires_after[seconds]", None, b"3600")), "expires_after[anchor]"),
        (form(FILE, PURPOSE, ("expires_after[anchor]", None, b"created_at")), "expires_after[seconds]"),
        (
            form(FILE, PURPOSE, ("expires_after[anchor]", None, b"created_at"), ("expires_after[seconds]", None, b"1")),
            None,
        ),
        (form(FILE, PURPOSE, end=b""), None),
        (form(*[(f"f{i}", None, b"") for i in range(100)], FILE, PURPOSE), None),
        ({"content": b"no form", "headers": {"content-type": "multipart/form-data; boundary=b"}}, None),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=b"}}, None),
        (
            {
                "content": b"--b\r\nX: y\r\n\r\n1\r\n--b--",
                "headers": {"content-type": "multipart/form-data;boundary=b"},
            },
            None,
        ),
        ({"content": b"{}", "headers": {"content-type": "application/json"}}, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=" + "b" * 300}}, None),
        ({"content": b"x"}, None),
    ],
)
def test_form_that_is_wrong_is_refused_in_words_and_leaves_nothing(
    app: Api, bench: BatchBench, request_: dict[str, object], param: str | None
) -> None:
    response = ask(app, "POST", "/v1/files", **request_)

    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param
    assert nothing_left(bench)


def test_fields_beside_the_file_are_bounded(app: Api, bench: BatchBench) -> None:
    response = ask(app, "POST", "/v1/files", **form(("purpose", None, b"x" * 70_000), FILE))

    assert response.status_code == 413
    assert nothing_left(bench)


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=10001", "limit"), ("limit=x", "limit"), ("limit=", "limit"), ("order=up", "order")],
)
def test_bad_parameter_is_refused_in_words(app: Api, query: str, param: str) -> None:
    response = ask(app, "GET", f"/v1/files?{query}")

    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_cursor_that_is_no_file_is_not_found(app: Api) -> None:
    assert ask(app, "GET", "/v1/files?after=file-none").status_code == 404


@pytest.mark.parametrize("file_id", ["file-none", "..%2f..%2fetc", "file-output-none", "%00", "file-" + "0" * 24])
def test_unknown_id_is_not_found(app: Api, file_id: str) -> None:
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert ask(app, method, f"/v1/files/{file_id}{path}").status_code == 404


def test_input_of_a_job_of_the_command_line_is_said_not_to_be_kept(app: Api) -> None:
    response = ask(app, "GET", "/v1/files/file-input-nightly/content")

    assert response.status_code == 404
    assert "job of the command line" in error_of(response)["message"]


def test_input_that_a_batch_needs_is_not_deleted(client: openai.OpenAI, bench: BatchBench) -> None:
    batch = bench.create(GOOD)

    with pytest.raises(openai.BadRequestError) as caught:
        client.files.delete(batch.input_file_id)
    assert caught.value.code == "file_in_use"
    bench.keeper.make_round()

    assert client.files.delete(batch.input_file_id).deleted


def test_output_file_is_listed_once_it_was_asked_for(client: openai.OpenAI, bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    work(bench.job(batch.id))
    bench.keeper.make_round()
    file_id = bench.get(batch.id).output_file_id
    assert file_id is not None
    assert file_id not in [file.id for file in client.files.list()]

    file = client.files.retrieve(file_id)
    content = client.files.content(file_id)

    assert content.response.headers["content-type"] == "application/jsonl"
    assert len(content.read()) == file.bytes
    assert [one.id for one in client.files.list(purpose="batch_output")] == [file_id]
    assert client.files.delete(file_id).deleted
    assert list(client.files.list(purpose="batch_output")) == []


def test_output_file_is_made_once_and_who_waits_for_it_is_in_nobodys_way(
    app: Api, bench: BatchBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = bench.started(GOOD)
    work(bench.job(batch.id))
    bench.keeper.make_round()
    may_go_on, num_made = threading.Event(), []

    def write(*args: Any, **kwargs: Any) -> tuple[int, int]:
        num_made.append(1)
        assert may_go_on.wait(PATIENCE_S)
        return write_batch_output(*args, **kwargs)

    monkeypatch.setattr(outputs, "write_batch_output", write)
    path = f"/v1/files/{bench.get(batch.id).output_file_id}"
    with served(app) as url, ThreadPoolExecutor(50) as pool:
        # More than there are threads for work on the disk.
        waiting = [pool.submit(httpx.get, f"{url}{path}", timeout=PATIENCE_S) for _ in range(50)]
        is_open = "batcher_http_requests_open 51.0"
        wait_for(lambda: is_open in httpx.get(f"{url}/metrics").text, what="all are waiting")
        try:
            assert httpx.get(f"{url}/v1/files", timeout=PATIENCE_S / 2).json()["data"] != []
        finally:
            may_go_on.set()

        assert {future.result().status_code for future in waiting} == {200}
        assert httpx.get(f"{url}{path}/content").status_code == 200
    assert num_made == [1]


def test_content_is_never_shown_as_a_page(app: Api, bench: BatchBench) -> None:
    stored = bench.upload(b"<script>", purpose="user_data", filename="x.html")

    response = ask(app, "GET", f"/v1/files/{stored.id}/content")

    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"] == "attachment"
