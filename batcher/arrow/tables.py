"""Operations on Arrow tables that keep the number of rows also where there is no column.

Arrow counts the rows of a table without columns, but loses the count in `take`, `slice`, `concat_tables` and
`from_arrays`. A file of nothing but prompts has no other column to carry.
"""

from collections.abc import Sequence

import pyarrow as pa


def without_columns(num_rows: int) -> pa.Table:
    """A table of that many rows and no column."""
    return pa.table({"": pa.nulls(num_rows)}).select([])


def table_of(columns: Sequence[pa.ChunkedArray | pa.Array], schema: pa.Schema, *, num_rows: int) -> pa.Table:
    """The table of these columns, each of `num_rows` rows."""
    return pa.Table.from_arrays(list(columns), schema=schema) if columns else without_columns(num_rows)


def take_rows(table: pa.Table, positions: Sequence[int]) -> pa.Table:
    """The rows at `positions`, in that order."""
    if not table.num_columns:
        return without_columns(len(positions))
    # With its type: of no positions at all, Arrow would make an array of nulls.
    return table.take(pa.array(positions, pa.int64()))


def concat_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables, which have the same schema; at least one table."""
    if not tables[0].num_columns:
        return without_columns(sum(table.num_rows for table in tables))
    return pa.concat_tables(tables)
