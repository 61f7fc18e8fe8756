"""What keeps the start of our processes short."""

import subprocess
import sys

import pytest

USES_PYARROW = (
    "import pyarrow as pa; assert pa.array([1, 2]).to_pylist() == [1, 2]; import sys; print('pandas' in sys.modules)"
)


@pytest.mark.parametrize(
    ("first", "is_imported"),
    [("pass", "True"), ("from batcher.startup import start_fast; start_fast()", "False")],
    ids=["as pyarrow does", "in our processes"],
)
def test_pyarrow_does_not_bring_pandas_along(first: str, is_imported: str) -> None:
    script = f"{first}; {USES_PYARROW}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == is_imported
