"""A newcomer's way from the demo to a model worth running: by the name that people have for it, in one command."""

import hashlib
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.acceptance.conftest import PATIENCE_S, clean_environment
from tests.support.hub_server import Repository, hub_server
from tests.support.model_stores import OllamaStore
from tests.support.waiting import wait_for

TICKETS = """id,ticket
1,The app closes when I press Save.
2,"Please add a dark theme, my eyes hurt."
3,I was charged twice in May.
"""
#: Runs `batcher` as a new user, whose home folder has nothing in it, with variables.
Newcomer = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    (tmp_path / "home").mkdir()
    (tmp_path / "tickets.csv").write_text(TICKETS)
    theirs = ("HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME")
    clean = {name: value for name, value in clean_environment().items() if name not in theirs}

    def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["batcher", *arguments],
            cwd=tmp_path,
            env=clean | {"HOME": str(tmp_path / "home")} | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


def size_of(path: Path) -> int:
    return path.stat().st_size


def listed(newcomer: Newcomer) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in map(json.loads, newcomer("models", "--json").stdout.splitlines())}


def test_table_is_run_on_a_model_of_the_hub_in_one_command(newcomer: Newcomer, tmp_path: Path, model: Path) -> None:
    weights = model.read_bytes()
    files = {"tiny-Q4_K_M.gguf": weights, "tiny-Q8_0.gguf": weights + b"8", "README.md": b"# Tiny"}
    command = ("run", "tickets.csv", "--prompt-column", "ticket", "-o", "out", "--max-tokens", "4")

    with hub_server({"ORG/REPO": Repository(files)}) as hub:
        done = newcomer(*command, "--model", "hf:ORG/REPO:Q4_K_M", HF_ENDPOINT=hub.url)
        assert done.returncode == 0, done.stderr
        requests = len(hub.requests)
        again = newcomer(*command, "--model", "hf:ORG/REPO:Q4_K_M", HF_ENDPOINT=hub.url)

    # The file is fetched, and no other; the job says which model made its texts.
    assert "Fetching ORG/REPO/tiny-Q4_K_M.gguf" in done.stderr
    assert "Rows       3 in = 3 ok + 0 error" in done.stdout
    table = pq.read_table(tmp_path / "out" / "results")
    assert set(table["model"].to_pylist()) == {"ORG/REPO:Q4_K_M"}
    assert table["input_id"].to_pylist() == [1, 2, 3]
    assert "tiny-Q8_0.gguf" not in {path.name for path in tmp_path.rglob("*.gguf")}
    # A second time nothing is asked of the hub; also without the prefix, and with no hub at all.
    assert again.returncode == 0, again.stderr
    assert len(hub.requests) == requests
    other = newcomer(*command[:5], "out2", *command[6:], "--model", "ORG/REPO:Q4_K_M", HF_ENDPOINT="http://127.0.0.1:1")
    assert other.returncode == 0, other.stderr
    assert listed(newcomer)["ORG/REPO:Q4_K_M"]["source"] == "hf"


def test_download_that_is_stopped_goes_on_by_the_same_command(newcomer: Newcomer, tmp_path: Path) -> None:
    weights = b"GGUF" + bytes(range(256)) * 60_000
    command = ["batcher", "models", "pull", "hf:ORG/REPO:Q8_0"]
    with hub_server({"ORG/REPO": Repository({"large-Q8_0.gguf": weights})}) as hub:
        hub.faults.stall_after = 12_000_000
        environment = clean_environment() | {"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url}
        environment["HF_HOME"] = str(tmp_path / "hub")
        stopped = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: sum(size_of(path) for path in tmp_path.rglob("*.incomplete")), what="the first bytes")
            stopped.send_signal(signal.SIGINT)
            _, said = stopped.communicate(timeout=PATIENCE_S)
        finally:
            stopped.kill()
            hub.faults.released.set()
        hub.faults.stall_after = None
        assert stopped.returncode == 130, said
        (kept,) = [size_of(path) for path in tmp_path.rglob("*.incomplete")]
        again = newcomer(*command[1:], HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hub"))
        offline = newcomer(*command[1:], HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")

    assert "Traceback" not in said
    assert again.returncode == 0, again.stderr
    assert hub.fetched("large-Q8_0.gguf") == [None, f"bytes={kept}-"]
    (found,) = tmp_path.rglob("large-Q8_0.gguf")
    assert found.read_bytes() == weights
    assert offline.returncode == 2
    assert "offline mode forbids to ask the hub; unset HF_HUB_OFFLINE" in offline.stderr


def test_gemma_of_ollama_is_run_by_its_name_without_ollama(
    newcomer: Newcomer, tmp_path: Path, gemma_path: Path
) -> None:
    store = OllamaStore(tmp_path / "home" / ".ollama" / "models")
    store.add("registry.ollama.ai/library/gemma3:270m", store.blob_of(gemma_path))

    # It is a base model, so it goes on with a list that was begun.
    template = "Ticket: I cannot log in.\nKind: bug\n\nTicket: {ticket}\nKind:"
    done = newcomer(
        *("run", "tickets.csv", "--template", template, "-o", "out", "--model", "gemma3:270m"),
        *("--max-tokens", "4", "--temperature", "0"),
    )

    assert done.returncode == 0, done.stderr
    assert "Rows       3 in = 3 ok + 0 error" in done.stdout
    table = pq.read_table(tmp_path / "out" / "results")
    assert set(table["model"].to_pylist()) == {"gemma3:270m"}
    # The real model, by what it answers, and to each row.
    assert [text.strip().splitlines()[0] for text in table["text"].to_pylist()] == ["bug"] * 3
    found = listed(newcomer)["gemma3:270m"]
    assert (found["source"], found["architecture"], found["quantization"]) == ("ollama", "gemma3", "Q4_K_M")
    assert found["context_length"] == 32768
    # Nothing in the store was changed.
    digest = Path(str(found["path"])).name.removeprefix("sha256-")
    with gemma_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def test_mistyped_name_is_answered_with_the_right_one(newcomer: Newcomer, tmp_path: Path, model: Path) -> None:
    store = OllamaStore(tmp_path / "home" / ".ollama" / "models")
    store.add("registry.ollama.ai/library/gemma3:270m", store.blob_of(model))

    done = newcomer("run", "tickets.csv", "--prompt-column", "ticket", "-o", "out", "--model", "gema3:270m")

    assert done.returncode == 2
    assert "model 'gema3:270m': no such file, and not a known name; near it: gemma3:270m." in done.stderr
    assert "`batcher models pull hf:OWNER/REPO:QUANT` gets one from the hub" in done.stderr
    assert not (tmp_path / "out").exists()
