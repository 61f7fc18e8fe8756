"""What a run of a shard says of itself in the log."""

from batcher.jobdir.results import Counts
from tests.support.clock import Clock
from workers.shard.tally import ShardTally


def test_line_has_rows_tokens_and_their_rate() -> None:
    clock = Clock(100.0)
    tally = ShardTally(clock=clock)
    tally.add(Counts(num_rows=60, num_ok=60, completion_tokens=4000))
    tally.add(Counts(num_rows=4, num_ok=3, num_errors=1, completion_tokens=210))
    clock.now += 8.0

    assert tally.text == ", 64 rows (1 error), 4,210 tokens, 526 tokens/s"
    assert tally.fields == {"rows": 64, "errors": 1, "tokens": 4210, "tokens_per_s": 526.2}


def test_run_that_saved_nothing_says_nothing() -> None:
    tally = ShardTally(clock=Clock(100.0))

    assert tally.text == ""
    assert tally.fields["rows"] == 0
