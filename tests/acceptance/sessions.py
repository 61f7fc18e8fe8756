"""A server with a key, and the scripts of this folder that talk to it from environments of their own."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import PATIENCE_S, clean_environment
from tests.support.family import Family
from tests.support.serving import Server, serve

KEY = "sk-test-0123456789"


@contextlib.contextmanager
def keyed_server(folder: Path, model: str) -> Iterator[Server]:
    """It completes two requests at a time, and leaves nothing behind."""
    family = Family(folder)
    keys = folder / "keys.txt"
    keys.write_text(f"# one key\n{KEY}\n")
    keys.chmod(0o600)
    with serve(family, "--model", model, "--api-keys-file", keys, "--max-concurrent", 2) as server:
        yield server
        assert server.stop() == 0
    assert family.pids() == []


def run_session(server: Server, name: str, *arguments: object, environment: str) -> dict[str, Any]:
    """What NAME_session.py found, run by the Python of that folder of the .venv."""
    python = Path(sys.prefix) / environment / "bin" / "python"
    assert python.exists(), "run make"
    told = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY, "LITELLM_OFFLINE_MODE": "true"}
    done = subprocess.run(
        [python, "-I", Path(__file__).with_name(f"{name}_session.py"), *map(str, arguments)],
        env=clean_environment() | told,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + server.stderr
    # Before it there can be advice of a library's.
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
