"""Whatever bytes a client sends, it is answered in words or hung up on, and the next client is served."""

import contextlib
import logging
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.server.batches.uploads import FileStore
from batcher.server.guard.errors import ApiError
from batcher.server.guard.limits import Limits
from batcher.server.routes.multipart import UploadForm
from tests.support.live_server import LiveServer, live_server, post, read_all
from tests.support.scripted_engine import ScriptedEngine

MAX_FILE_BYTES = 100

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n{"a": 1}\r\n--b--\r\n'
)
REQUEST = b"GET /v1/models?limit=1 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n"
CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    b'20;x=y\r\n{"model": "tiny", "prompt": "a"}\r\n0\r\nx: y\r\n\r\n'
)
WHOLE = post("/v1/completions", b'{"model": "tiny", "prompt": "a"}')

#: What a piece of a message is replaced by.
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b":", b" ", b"--b", b"--", b"0", b"-1", b"f" * 20]),
    st.sampled_from([b"host: a\r\n", b"content-length: 5\r\n", b"transfer-encoding: gzip\r\n"]),
    st.sampled_from([b"expect: 100-continue\r\n", b"connection: upgrade\r\nupgrade: h2c\r\n", b"HTTP/1.0"]),
)


@st.composite
def spoilt(draw: st.DrawFn, *messages: bytes) -> bytes:
    """A good message with up to four of its pieces replaced."""
    data = draw(st.sampled_from(messages))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 8)))
        data = data[:begin] + draw(PIECES) + data[end:]
    return data


def outcome(form: bytes, cuts: list[int]) -> tuple[str, object]:
    """What becomes of a form that comes in these pieces: the file, or the refusal."""
    with tempfile.TemporaryDirectory() as folder:
        files = FileStore(Path(folder))
        upload = files.begin()
        try:
            parser = UploadForm(b"b", upload, max_bytes=MAX_FILE_BYTES)
            for begin, end in zip([0, *cuts], [*cuts, len(form)], strict=True):
                parser.feed(form[begin:end])
            stored = parser.commit()
            file = files.open(stored.id)
            assert file is not None
            with file:
                return stored.filename, file.read()
        except (ApiError, InputError) as exc:
            return type(exc).__name__, getattr(exc, "status", 400)
        finally:
            upload.discard()


@given(form=spoilt(FORM), cuts=st.lists(st.integers(0, len(FORM)), max_size=4))
def test_form_is_stored_or_refused_however_it_is_cut(form: bytes, cuts: list[int]) -> None:
    cuts = sorted(min(cut, len(form)) for cut in cuts)

    name, content = outcome(form, cuts)

    assert outcome(form, []) == (name, content)
    assert not isinstance(content, bytes) or len(content) <= MAX_FILE_BYTES


class Errors(logging.Handler):
    """What was logged as an error."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Says nothing of errors in its log to the end."""
    handler = Errors(logging.ERROR)
    logging.getLogger().addHandler(handler)
    with live_server(ScriptedEngine(), limits=Limits(max_body_bytes=1000)) as server:
        yield server
    logging.getLogger().removeHandler(handler)
    assert handler.messages == []


@given(data=spoilt(REQUEST, CHUNKED, WHOLE))
def test_request_is_answered_in_words_or_hung_up_on(server: LiveServer, data: bytes) -> None:
    client = server.connect()
    with contextlib.suppress(ConnectionError, OSError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
    answer = read_all(client)
    client.close()

    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
    assert not answer or statuses
    assert all(status < 500 or status == 501 for status in statuses), answer
    with server.client() as good:
        assert good.get("/health").status_code == 200
