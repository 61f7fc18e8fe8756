"""`batcher serve` refuses what can't be, with the remedy, before anything is started."""

import socket
from pathlib import Path

import pytest

from batcher.cli.serve import _take_limits, serve_command
from batcher.server.guard.limits import Limits
from tests.unit.conftest import Run

KEY = "sk-0123456789abcdef"


@pytest.fixture
def model(workplace: Path) -> Path:
    path = workplace / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "openssl rand"),
        ("--no-auth --host 0.0.0.0", "--api-keys-file"),
        ("--no-auth --host example.com", "--api-keys-file"),
        ("--no-auth --api-keys-file keys", "leave out one"),
        ("--api-keys-file none", "cannot read"),
        ("--no-auth --host nowhere.invalid --port 0", "--api-keys-file"),
        ("--no-auth --max-body 1", "--max-body"),
        ("--no-auth --cors-origin *", "name the origins"),
        ("--no-auth --cors-origin app.example", "https://app.example"),
        ("--no-auth --request-timeout 0", "--request-timeout"),
    ],
)
def test_what_contradicts_itself_is_refused(run: Run, line: str, words: str) -> None:
    code, out, err = run(f"serve --model tiny.gguf {line}")

    assert code == 2
    assert out == ""
    assert words in err


@pytest.mark.usefixtures("model")
def test_taken_port_is_told_before_the_model_is_loaded(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run(f"serve --model tiny.gguf --no-auth --port {taken.getsockname()[1]}")

    assert code == 2
    assert "--port" in err


@pytest.mark.usefixtures("model")
def test_broker_that_is_not_there_is_told(run: Run) -> None:
    code, _, err = run("serve --no-auth --port 0 --broker redis://127.0.0.1:1/0")

    assert code == 3
    assert "cannot reach it" in err


def test_help_ends_with_an_example(run: Run) -> None:
    _, out, _ = run("serve --help")

    assert "batcher serve --model" in out
    assert "BATCHER_MAX_CONCURRENT" in out


def test_limits_of_the_command_are_those_of_the_server() -> None:
    defaults = serve_command.make_context("serve", [], resilient_parsing=True).params

    assert _take_limits(defaults) == Limits()
