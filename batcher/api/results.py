"""The results of a job as tables of Arrow, pandas or Polars: a row a choice, in input order, with its columns."""

import importlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from batcher.arrow.conditions import Column, parse_columns, parse_conditions
from batcher.errors import MissingPackageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import job_schema
from batcher.manage.finished import finished_counts, finished_dataset, selected, tables_in_order
from batcher.manage.joined import renamed_columns
from batcher.types import RowStatus

if TYPE_CHECKING:
    import pandas
    import polars

#: Rows that a notebook shows of a table.
_SHOWN_ROWS = 10


class Results:
    """Result rows of a job, read anew at each use: one for each choice, one for each row that failed.

    Columns are `row` (int64, the number of the input row from 0), `custom_id`, `index` (int32, the number of the
    choice), `status` ("ok" or "error"), `text`, `finish_reason`, the token counts, `error_code`, `error_message` and
    more, as docs/results.md has them, with a schema `output` and with choices `label`, then those of the input with
    their types. Rows are in the order of the input: by
    `row` and `index`.

    Reading raises CorruptFileError, with the remedy, for a file that was damaged, and StorageError where the disk says
    no.
    """

    def __init__(self, job: JobDir, *, errors_only: bool = False, where: str | None = None) -> None:
        """With `where` only the rows for which this condition holds. Raises InputError for one that is wrong."""
        self._job = job
        self._errors_only = errors_only
        wanted = [*([where] if where is not None else []), *(["status = 'error'"] if errors_only else [])]
        self._where = parse_conditions(wanted, self.schema, renamed=renamed_columns(job.manifest))
        self._is_narrowed = where is not None

    def __repr__(self) -> str:
        kind = f" ({self._where.text})" if self._is_narrowed and self._where else " (errors)" * self._errors_only
        return f"<Results of {self._job.job_id!r}{kind}: {', '.join(self.columns)}>"

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return job_schema(self._job.manifest)

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self.schema.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows as dicts of Python's values, in bounded memory (all at once where the job is not complete)."""
        return (row for table in self._tables() for row in table.to_pylist())

    def __len__(self) -> int:
        """The number of rows: by the footers of the files, with a condition by the columns that it reads."""
        if self._is_narrowed:
            return sum(table.num_rows for table in self._tables(self._chosen(["row"])))
        counts = finished_counts(self._job)
        return counts.num_errors if self._errors_only else counts.num_choices + counts.num_errors

    def to_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows, or these columns of them, as record batches, in bounded memory as `__iter__`."""
        chosen = self._chosen(columns)
        return (batch for table in self._tables(chosen) for batch in table.to_batches())

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, or these columns of them, in input order; `output.name` is a field. Shape: (rows, columns)."""
        chosen = self._chosen(columns)
        nothing = self.schema.empty_table()
        first = nothing if chosen is None else selected(nothing, chosen)
        return pa.concat_tables([*self._tables(chosen)] or [first])

    def to_pandas(self, columns: Sequence[str] | None = None, **options: Any) -> "pandas.DataFrame":
        """All rows in input order, as `pyarrow.Table.to_pandas` makes them, which takes `options`.

        Raises MissingPackageError without pandas.
        """
        _need("pandas")
        frame: pandas.DataFrame = self.to_table(columns).to_pandas(**options)
        return frame

    def to_polars(self, columns: Sequence[str] | None = None) -> "polars.DataFrame":
        """All rows in input order. Raises MissingPackageError without Polars."""
        frame: polars.DataFrame = _need("polars").from_arrow(self.to_table(columns))
        return frame

    def dataset(self) -> ds.Dataset:
        """The rows as a pyarrow Dataset, to be scanned with filters and columns, in no particular order.

        Of a job that is complete it reads the files when it is scanned, without a check of their sums; of one that is
        not, or with a condition, it has the rows that are finished now.
        """
        if self._is_narrowed:
            return ds.dataset(list(self._tables()) or [self.schema.empty_table()], schema=self.schema)
        found = finished_dataset(self._job)
        return found.filter(pc.field("status") == RowStatus.ERROR.value) if self._errors_only else found

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """All rows in input order, for whatever takes Arrow tables: `polars.DataFrame(results)`, DuckDB, ..."""
        return self.to_table().__arrow_c_stream__(requested_schema)

    def _repr_html_(self) -> str:
        """The first rows, for a notebook."""
        import html

        manifest = self._job.manifest
        further = (*manifest.optional.names, *manifest.carried.names)
        names = ["row", "custom_id", "status", "text", "error_message", *further]
        rows = (row for batch in self.to_batches(names) for row in batch.slice(0, _SHOWN_ROWS).to_pylist())
        shown = list(itertools.islice(rows, _SHOWN_ROWS))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_cell(row[name]))}</td>' for name in names)}</tr>" for row in shown
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _tables(self, columns: Sequence[Column] | None = None) -> Iterator[pa.Table]:
        """The rows in input order; with `columns` these and no others."""
        return tables_in_order(self._job, columns=columns, where=self._where)

    def _chosen(self, columns: Sequence[str] | None) -> list[Column] | None:
        if columns is None:
            return None
        names = [columns] if isinstance(columns, str) else list(columns)
        return parse_columns(names, self.schema, what="columns", renamed=renamed_columns(self._job.manifest))


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        raise MissingPackageError(f"{package} is not installed here; install it, or use to_table()") from exc
