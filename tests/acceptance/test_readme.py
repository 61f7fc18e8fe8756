"""README is true: each of its bash blocks runs, in order, in one folder; what can't run here is no bash block."""

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from batcher.broker.url import check_url
from batcher.cli import cli
from tests.acceptance.conftest import PATIENCE_S, ROOT, clean_environment
from tests.support.redis_server import RedisServer

README = (ROOT / "README.md").read_text()

#: The two commands of a fresh clone. The second runs this test; the first runs into a folder of the test's.
SETUP_COMMANDS = {"make test": "true", "make demo": f"make --no-print-directory -C {ROOT} demo DEMO=$PWD/demo"}

#: The broker and the server that README speaks of.
README_BROKER = "redis://localhost:6379/0"
README_SERVER = "127.0.0.1:8000"


def bash_blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def broker_url(tmp_path: Path) -> Iterator[str]:
    server = RedisServer(tmp_path)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()


def test_every_bash_block_runs(tmp_path: Path, broker_url: str) -> None:
    """One shell for all blocks, as a reader would; the first failing command fails the test."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "jobs").symlink_to(ROOT / "jobs")
    port = free_port()
    script = "\n".join(bash_blocks()).replace(README_BROKER, broker_url)
    assert README_SERVER in script
    script = script.replace(README_SERVER, f"127.0.0.1:{port}")
    for command, instead in SETUP_COMMANDS.items():
        assert re.search(rf"^{command}\b.*$", script, re.MULTILINE)
        script = re.sub(rf"^{command}\b.*$", instead, script, flags=re.MULTILINE)

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=clean_environment()
        | {"MAKEFLAGS": "", "BATCHER_PROFILES_DIR": str(tmp_path / "profiles"), "BATCHER_PORT": str(port)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    # The demo: all rows in are rows out, a summary and a sample.
    assert re.search(r"Rows +(\d+) in = \1 ok \+ 0 error", done.stdout)
    assert (folder / "demo" / "results" / "_SUCCESS").exists()


def test_commands_that_cannot_run_here_are_those_of_docker_and_brokers_of_the_reader() -> None:
    others = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for language, text in others:
        if language == "bash":
            continue
        assert language in {"text", "sh"}
        for line in text.splitlines():
            if language == "sh" and line.startswith("export BATCHER_BROKER="):
                # Nobody listens there, but the URL is one that Batcher takes.
                (assignment,) = shlex.split(line)[1:]
                check_url(assignment.partition("=")[2])
                continue
            assert language == "text" or line.startswith(("docker ", "#", "CMAKE_ARGS=")), line


def test_every_command_of_the_cli_is_in_readme() -> None:
    for name in cli.list_commands(click.Context(cli)):
        assert f"`batcher {name}" in README or f"\nbatcher {name} " in README, name


def test_relative_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert os.path.lexists(ROOT / target), target
