"""Tables that have no column keep the number of their rows."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from batcher.arrow.tables import concat_rows, table_of, take_rows, without_columns


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.booleans())
def test_rows_are_counted_with_and_without_columns(positions: list[int], sizes: list[int], has_column: bool) -> None:
    def rows(number: int) -> pa.Table:
        table = pa.table({"x": range(number)}, schema=pa.schema([("x", pa.int64())]))
        return table if has_column else table.select([])

    assert take_rows(rows(10), positions).num_rows == len(positions)
    assert concat_rows([rows(size) for size in sizes]).num_rows == sum(sizes)
    table = table_of(rows(7).columns, rows(7).schema, num_rows=7)
    assert (table.num_rows, table.schema) == (7, rows(7).schema)
    assert without_columns(3).num_rows == 3
