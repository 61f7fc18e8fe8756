"""`batcher workers`: the table, JSON, and who works elsewhere."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from batcher.broker.presence import Announcer
from batcher.jobdir.heartbeats import HeldShard, heartbeat_path, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from tests.unit.api.test_fleet import BEAT, presence
from tests.unit.conftest import Run


def test_table_has_a_line_for_each_worker_and_how_it_crashed(tmp_path: Path, run: Run) -> None:
    shards = tuple(HeldShard("tickets-20261130T183920Z-abcdef", number, 1) for number in range(8))
    write_heartbeat(tmp_path, replace(BEAT, shards=shards))
    loading = replace(BEAT, name="w2", state=WorkerState.LOADING, models=("a", "b", "c", "d"), num_slots=0, shards=())
    write_heartbeat(tmp_path, replace(loading, num_crashes=0, last_crash="", tokens_per_s=0.0))
    write_heartbeat(tmp_path, replace(BEAT, name="w3", num_crashes=0, last_crash=""))
    os.utime(heartbeat_path(tmp_path, "w3"), (time.time() - 90,) * 2)

    code, stdout, stderr = run(f"workers --jobs-dir {tmp_path}")

    assert (code, stderr) == (0, "")
    header, first, second, third, crash = stdout.splitlines()
    assert " ".join(header.split()) == "NAME HOST MODELS STATE SHARDS SLOTS TOKENS/S UPTIME CRASHES VERSION"
    assert first.split()[:8] == [
        "w1",
        "host-a",
        "tiny",
        "alive",
        "tickets-20…0Z-abcdef:0,1,2,3,4,5",
        "and",
        "2",
        "more",
    ]
    assert "  3/4    99.5 " in first
    assert "w2    host-a  a, b, c and 1 more  loading          -  " in second
    assert " gone 1 min 3" in third
    assert crash == "w1 crashed last by: signal SIGSEGV"


def test_json_has_a_line_a_worker(tmp_path: Path, run: Run) -> None:
    write_heartbeat(tmp_path, BEAT)

    code, stdout, _ = run(f"workers --json --jobs-dir {tmp_path}")

    assert code == 0
    found = json.loads(stdout)
    assert (found["name"], found["state"], found["num_running"], found["num_slots"]) == ("w1", "alive", 3, 4)
    (shard,) = found["shards"]
    assert (shard["job_id"], shard["shard"], shard["attempt"]) == ("job", 3, 1)


def test_nobody_is_said_on_stderr(tmp_path: Path, run: Run) -> None:
    assert run(f"workers --jobs-dir {tmp_path}") == (0, "", f"No workers under {tmp_path}.\n")


def test_who_works_elsewhere_is_named_with_folder_and_remedy(tmp_path: Path, run: Run, redis_url: str) -> None:
    here, wrong, copy = (tmp_path / name for name in ("here", "wrong", "copy"))
    for folder in (here, wrong, copy):
        folder.mkdir()
    Announcer(redis_url, presence(wrong, replace(BEAT, name="w2")), pause_s=4).renew()
    command = f"workers --broker {redis_url} --jobs-dir {here}"

    code, stdout, stderr = run(command)

    assert (code, stderr) == (0, f"No workers under {here}.\n")
    assert stdout.splitlines() == [
        f"1 worker works at the broker and not in {here}:",
        f"  w2 on host-a: in {wrong} (tiny)",
        "Where that is not meant, start it again with the --jobs-dir that leads, on its machine, to the folder "
        f"{here}.",
    ]

    (here / ".scope").write_text("shared")
    Announcer(redis_url, presence(copy, replace(BEAT, name="w3"), scope="shared"), pause_s=4).renew()
    _, stdout, _ = run(command)
    assert f"w3 on host-a: in {copy} (tiny), a copy by its .scope" in stdout
    assert "delete the file .scope before" in stdout


def test_doctor_names_who_works_elsewhere(tmp_path: Path, run: Run, redis_url: str) -> None:
    here, wrong = tmp_path / "here", tmp_path / "wrong"
    wrong.mkdir()
    command = f"doctor --json --broker {redis_url} --jobs-dir {here}"

    def finding() -> dict[str, str]:
        checks = [json.loads(line) for line in run(command)[1].splitlines()]
        (found,) = [check for check in checks if check["name"] == "workers elsewhere"]
        return dict(found)

    assert finding()["level"] == "ok"

    Announcer(redis_url, presence(wrong, replace(BEAT, name="w2")), pause_s=4).renew()
    found = finding()
    assert found["level"] == "warn"
    assert f"w2 on host-a: in {wrong} (tiny)" in found["message"]
    assert str(here) in found["remedy"]
