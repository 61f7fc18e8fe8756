"""Servers as whoever starts workers chooses them: URLs, the key, the models, and what the whole job asks of them."""

import asyncio
from pathlib import Path

import pytest

from batcher.api.servers import check_asked, choose_served, read_servers
from batcher.errors import InputError, ModelError
from batcher.types import RemoteModel, RemoteServers, SamplingParams
from tests.support.dialect_shapes import server_of
from tests.support.openai_server import OpenAIServer
from workers.engines.remote.dialects import OLLAMA, VLLM


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host/v1", "http://", "http://host/v1?key=1", "http://[::1/v1"]
)
def test_what_is_no_url_of_an_api_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:8000/v1"):
        read_servers(url, None)


def test_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="BATCHER_ENGINE_KEY") as caught:
        read_servers("http://user:geheim@host/v1", None)

    assert "geheim" not in str(caught.value)


def test_key_is_of_the_file_else_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHER_ENGINE_KEY", "mine")
    (tmp_path / "key").write_text("geheim\n")

    assert read_servers("http://host/v1/", None) == RemoteServers(("http://host/v1",), "mine")
    found = read_servers(["http://host/v1", "http://host/v1/"], tmp_path / "key")
    assert found == RemoteServers(("http://host/v1",), "geheim")
    assert "geheim" not in repr(found)
    (tmp_path / "key").write_text("\n")
    with pytest.raises(InputError, match="first line is empty"):
        read_servers("http://host/v1", tmp_path / "key")
    with pytest.raises(InputError, match="--engine"):
        read_servers((), tmp_path / "key")


def test_models_are_those_of_the_server_by_its_names_or_ours() -> None:
    server = server_of(VLLM)
    with server.running():
        servers = RemoteServers((server.url,))
        assert choose_served([], servers) == [RemoteModel("tiny", "tiny", 4096)]
        assert choose_served(["mine=tiny"], servers) == [RemoteModel("mine", "tiny", 4096)]
        with pytest.raises(ModelError, match="it serves tiny"):
            choose_served(["tinny"], servers)


def test_servers_are_looked_at_where_an_event_loop_runs_as_in_a_notebook() -> None:
    async def cell(url: str) -> list[RemoteModel]:
        return choose_served([], RemoteServers((url,)))

    server = OpenAIServer()
    with server.running():
        assert asyncio.run(cell(server.url)) == choose_served([], RemoteServers((server.url,)))


def test_server_that_is_away_is_taken_at_the_users_word_and_needs_a_name() -> None:
    server = OpenAIServer()
    with server.running():
        servers = RemoteServers((server.url,))

    assert choose_served(["mine"], servers) == [RemoteModel("mine", "mine", None)]
    with pytest.raises(InputError, match="which model"):
        choose_served([], servers)


def test_option_of_the_job_that_the_server_would_drop_is_refused_before_a_row_is_read() -> None:
    server = server_of(OLLAMA)
    with server.running():
        servers = RemoteServers((server.url,))
        check_asked(SamplingParams(), servers, is_chat=False)
        with pytest.raises(InputError, match="top_k: Ollama at "):
            check_asked(SamplingParams(top_k=40), servers, is_chat=False)
