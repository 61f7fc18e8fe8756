"""`batcher drain`: what is said of each worker, and the exit code of waiting."""

import os
import time
from dataclasses import replace
from pathlib import Path

from batcher.jobdir.drains import is_to_drain
from batcher.jobdir.heartbeats import HeldShard, heartbeat_path, write_heartbeat
from tests.unit.api.test_fleet import BEAT
from tests.unit.conftest import Run


def test_each_worker_is_named_with_its_shards_and_a_second_wish_changes_nothing(tmp_path: Path, run: Run) -> None:
    beat = replace(BEAT, instance="a1", shards=(HeldShard("job", 3, 1),))
    write_heartbeat(tmp_path, beat)

    first = run(f"drain w1 --jobs-dir {tmp_path}")
    second = run(f"drain w1 --jobs-dir {tmp_path}")

    assert first == (0, f"Draining: w1 (on {BEAT.host}, pid {BEAT.pid}), which has 1 shard.\n", "")
    assert second[1].startswith("Draining already: w1")
    assert is_to_drain(tmp_path, "w1", "a1")


def test_nobody_is_drained_where_one_name_is_wrong(tmp_path: Path, run: Run) -> None:
    write_heartbeat(tmp_path, replace(BEAT, instance="a1"))

    code, stdout, stderr = run(f"drain w1 w7 --jobs-dir {tmp_path}")

    assert (code, stdout) == (2, "")
    assert "w7: no worker of" in stderr
    assert not is_to_drain(tmp_path, "w1", "a1")


def test_waiting_for_one_that_is_gone_ends_with_its_exit_code(tmp_path: Path, run: Run) -> None:
    write_heartbeat(tmp_path, replace(BEAT, instance="a1", interval_s=0.01))
    # As good as gone: not yet at the first look.
    moment = time.time() - 4.7
    os.utime(heartbeat_path(tmp_path, "w1", "a1"), (moment, moment))

    code, _, stderr = run(f"drain w1 --wait --jobs-dir {tmp_path}")

    assert code == 3
    assert stderr == "Gone: w1 gives no sign of life any more; its shards go to others.\n"
