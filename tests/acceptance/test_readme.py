"""README and docs/ are true: a page's bash blocks run, in order, in one folder; what can't run is none."""

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from batcher.broker.url import check_url
from batcher.cli import cli
from tests.acceptance.conftest import PATIENCE_S, ROOT, clean_environment
from tests.support.hub_server import Repository, hub_server
from tests.support.redis_server import free_port

#: A page's name -> its text.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}

#: The two commands of a fresh clone. The second runs this test; the first runs into a folder of the test's.
SETUP_COMMANDS = {"make test": "true", "make demo": f"make --no-print-directory -C {ROOT} demo DEMO=$PWD/demo"}

#: Ten measurements of the real model take minutes, so the test's small one is tuned in its place.
PAGES_TUNE = "batcher tune --model smollm2-135m"

#: The broker and the server that the pages speak of.
PAGES_BROKER = "redis://localhost:6379/0"
PAGES_SERVER = "127.0.0.1:8000"

#: How the lines of a block begin that needs what the machine of the test has not: Docker, Kubernetes, a GPU, a tool of
#: others.
ELSEWHERE = (
    *("docker ", "install -d -o 1000 ", "RUN_AS=", "helm ", "kubectl ", "CMAKE_ARGS="),
    *("#", "jq ", "lm_eval ", "  model="),
)


def repositories(script: str, model: Path) -> dict[str, Repository]:
    """The repositories of the hub that a page names, with the test's small model in the place of theirs."""
    named = re.findall(r"hf:([\w.-]+/([\w.-]+)-GGUF):(\w+)", script)
    return {name: Repository({f"{stem}-{label}.gguf": model.read_bytes()}) for name, stem, label in named}


def bash_blocks(page: str) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if bash_blocks(page)])
def test_every_bash_block_runs(page: str, tmp_path: Path, redis_url: str, model: Path) -> None:
    """One shell for all blocks of a page, as a reader would; the first failing command fails the test."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "jobs").symlink_to(ROOT / "jobs")
    port = free_port()
    script = "\n".join(bash_blocks(page)).replace(PAGES_BROKER, redis_url)
    script = script.replace(PAGES_SERVER, f"127.0.0.1:{port}")
    script = script.replace(PAGES_TUNE, f"batcher tune --model tiny={model}")
    for command, instead in SETUP_COMMANDS.items():
        script = re.sub(rf"^{command}\b.*$", instead, script, flags=re.MULTILINE)

    with hub_server(repositories(script, model)) as hub:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=clean_environment()
            | {"MAKEFLAGS": "", "BATCHER_PROFILES_DIR": str(tmp_path / "profiles"), "BATCHER_PORT": str(port)}
            | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    if page == "README.md":
        # The demo: all rows in are rows out, a summary and a sample.
        assert re.search(r"Rows +(\d+) in = \1 ok \+ 0 error", done.stdout)
        assert (folder / "demo" / "results" / "_SUCCESS").exists()


def test_pages_name_what_the_test_puts_its_own_in_place_of() -> None:
    text = "\n".join(block for page in PAGES for block in bash_blocks(page))

    assert PAGES_BROKER in text
    assert PAGES_SERVER in text
    assert PAGES_TUNE in text
    assert all(re.search(rf"^{command}\b", text, re.MULTILINE) for command in SETUP_COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_cannot_run_here_are_those_of_docker_and_brokers_of_the_reader(page: str) -> None:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE):
        assert language in {"bash", "python", "text", "sh", "yaml"}
        for line in text.splitlines() if language == "sh" else ():
            if line.startswith("export BATCHER_BROKER="):
                # Nobody listens there, but the URL is one that Batcher takes.
                (assignment,) = shlex.split(line)[1:]
                check_url(assignment.partition("=")[2])
            else:
                assert line.startswith(ELSEWHERE), line


def test_every_command_of_the_cli_is_in_readme() -> None:
    for name in cli.list_commands(click.Context(cli)):
        assert re.search(rf"^\| .*`batcher {name}\b", PAGES["README.md"], re.MULTILINE), name
