"""How many shards a worker holds."""

import pytest

from batcher.submission.splitter import MIN_SHARD_ROWS
from workers.queue.app import concurrency


@pytest.mark.parametrize("num_slots", [1, 4, 8, 31, 32, 100, 128, 256])
def test_small_shards_fill_all_slots_while_one_of_them_drains(num_slots: int) -> None:
    held = concurrency(num_slots)

    assert 2 <= held <= 16
    # Three times, unless that were more shards than it should take from other workers.
    assert held == 16 or (held - 1) * MIN_SHARD_ROWS >= 3 * num_slots
