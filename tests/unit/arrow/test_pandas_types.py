"""Extension types of pandas come back as such, though Batcher knows none of them."""

from pathlib import Path

import pandas
import pytest

from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from tests.support.completing import complete
from tests.support.manual_engine import ManualEngine
from tests.support.submitted import make_options


@pytest.mark.parametrize("shard_rows", [None, 1])
def test_periods_and_intervals_come_back(tmp_path: Path, shard_rows: int | None) -> None:
    frame = pandas.DataFrame(
        {
            "prompt": ["a", "b"],
            "period": pandas.period_range("2024-01", periods=2, freq="M"),
            "interval": pandas.interval_range(0, 2),
            "moment": pandas.to_datetime([1_700_000_000_123_456_717, None], unit="ns"),
        }
    )
    frame.to_parquet(tmp_path / "in.parquet")
    job = JobDir(tmp_path / "job")

    submit(job, [str(tmp_path / "in.parquet")], make_options(shard_rows=shard_rows))
    complete(job, ManualEngine())

    found = pandas.read_parquet(job.path / "results").sort_values("row", ignore_index=True)
    pandas.testing.assert_frame_equal(found[frame.columns.to_list()], frame)
