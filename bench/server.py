"""llama.cpp's own `llama-server` as a peer: a fresh server for each pass, and clients that keep its slots full."""

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.sides import WARM_UP, Pass, Setup
from bench.workloads import Row

#: Seconds that the server may take to load the model, or to answer one request.
PATIENCE_S = 600.0
_POLL_INTERVAL_S = 0.05
HOST = "127.0.0.1"
BATCH_OPTIONS = ("-b", "2048", "-ub", "512")

#: Runs in a fresh interpreter that then becomes the server. The kernel kills it when this process ends, however that
#: happens (PR_SET_PDEATHSIG is 1; Linux only).
_EXEC_SCRIPT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


#: What each request has beside its prompt and max_tokens.
GREEDY: Mapping[str, Any] = {"temperature": 0}


def run_server(
    program: Path,
    rows: list[Row],
    setup: Setup,
    *,
    num_clients: int,
    environment: dict[str, str],
    params: Mapping[str, Any] = GREEDY,
) -> Pass:
    """Start a server, let the clients take the rows in their order, and end the server. Blocks for minutes."""
    waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    num_clients = min(num_clients, len(rows))
    # The pool outside: where something fails, the server goes first, and so the clients have nothing to wait for.
    with ThreadPoolExecutor(num_clients) as pool, llama_server(program, setup, environment=environment) as port:
        _complete(_connect(port), WARM_UP, params)
        begin = time.perf_counter()
        usages = list(pool.map(lambda _: _complete_all(port, waiting, params), range(num_clients)))
        seconds = time.perf_counter() - begin
    return Pass(sum(prompt for prompt, _ in usages), sum(completion for _, completion in usages), seconds)


@contextmanager
def llama_server(program: Path, setup: Setup, *, environment: dict[str, str]) -> Iterator[int]:
    """A server that has loaded the model; gives its port. It is gone afterwards. Exits if it can't be started."""
    port = _free_port()
    command = [sys.executable, "-c", _EXEC_SCRIPT, str(os.getpid()), str(program), "-m", str(setup.model)]
    command += ["--host", HOST, "--port", str(port), "--parallel", str(setup.slots), "-t", str(setup.threads)]
    command += ["-c", str(setup.slots * setup.ctx), *BATCH_OPTIONS, "--no-ui", "--offline", "--verbosity", "1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            if not _wait_until_healthy(process, port):
                log.seek(0)
                sys.exit(f"{program} did not start: {log.read().decode(errors='replace')}")
            yield port
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = _connect(port)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return True
        except OSError:
            pass  # It does not listen yet.
        finally:
            connection.close()
        time.sleep(_POLL_INTERVAL_S)
    return False


def _connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)


def _complete_all(port: int, waiting: "queue.SimpleQueue[Row]", params: Mapping[str, Any]) -> tuple[int, int]:
    """One client: takes rows until there are none. Returns its tokens of prompts and of completions."""
    connection = _connect(port)
    prompt_tokens = completion_tokens = 0
    while True:
        try:
            row = waiting.get_nowait()
        except queue.Empty:
            connection.close()
            return prompt_tokens, completion_tokens
        usage = _complete(connection, row, params)
        prompt_tokens += usage["prompt_tokens"]
        completion_tokens += usage["completion_tokens"]


def _complete(connection: http.client.HTTPConnection, row: Row, params: Mapping[str, Any]) -> dict[str, Any]:
    """The usage of one completion. Keeps the connection open. Raises RuntimeError with what the server said."""
    body = json.dumps({"prompt": row.prompt, "max_tokens": row.max_tokens, **params})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"llama-server: {response.status}: {answer.decode(errors='replace')}")
    usage: dict[str, Any] = json.loads(answer)["usage"]
    return usage
