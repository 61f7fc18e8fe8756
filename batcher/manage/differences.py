"""Two jobs compared row by row: what is equal, what changed, what only one of them has.

Rows are joined by their custom_id, and by their number in the input where no row of one job has an id of the other, and
by the number of the choice. It is a join of Arrow: both jobs' answers, and nothing else of them, are in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.conditions import Column, parse_columns
from batcher.arrow.values import text_column
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import job_schema
from batcher.manage.finished import finished_tables
from batcher.manage.joined import answer_columns, renamed_columns
from batcher.types import RowStatus

#: More different answers than these are no labels.
MAX_LABELS = 12

_FACTS = ("custom_id", "row", "index", "status", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Pair:
    """So many rows have `a` in the one job and `b` in the other. None: there is no answer."""

    a: str | None
    b: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Completion tokens of a job's answers. None where it has none."""

    mean: float | None
    median: float | None


@dataclass(frozen=True, slots=True)
class Diff:
    """How the answers of two jobs differ; a row a choice.

    `column` was compared, joined by `key`: "custom_id" or "row". `statuses` are the changes among `ok` and `error`.
    `labels` are all pairs of answers, those that are equal, too, where the jobs have few different ones; else there are
    none. `changed` has the rows that are in both and differ, in the order of `a`: custom_id, row, index, a, b,
    status_a, status_b.
    """

    column: str
    key: str
    num_equal: int
    num_changed: int
    num_only_a: int
    num_only_b: int
    statuses: tuple[Pair, ...]
    labels: tuple[Pair, ...]
    tokens_a: Lengths
    tokens_b: Lengths
    changed: pa.Table


def diff(a: JobDir, b: JobDir, *, column: str | None = None) -> Diff:
    """Compare what two jobs have finished now.

    `column` is by default the answer: the first of `output`, `label` and `text` that both have. Raises InputError for a
    column that one of them lacks, CorruptFileError, StorageError.
    """
    answers_a, answers_b = (answer_columns(job.manifest) for job in (a, b))
    name = column or next(each for each in answers_a if each in answers_b)
    left, right = (_read(job, name) for job in (a, b))
    key = "custom_id" if _have_common(left, right, "custom_id") else "row"
    joined = left.join(
        right.rename_columns([each if each in (key, "index") else f"{each}_b" for each in right.column_names]),
        keys=[key, "index"],
        join_type="full outer",
    )
    is_in_a, is_in_b = pc.is_valid(joined["status"]), pc.is_valid(joined["status_b"])
    both = joined.filter(pc.and_(is_in_a, is_in_b))
    is_same = pc.and_(_equal(both["answer"], both["answer_b"]), pc.equal(both["status"], both["status_b"]))
    changed = both.filter(pc.invert(is_same))
    return Diff(
        column=name,
        key=key,
        num_equal=both.num_rows - changed.num_rows,
        num_changed=changed.num_rows,
        num_only_a=pc.sum(pc.invert(is_in_b)).as_py() or 0,
        num_only_b=pc.sum(pc.invert(is_in_a)).as_py() or 0,
        statuses=tuple(pair for pair in _pairs(changed, "status") if pair.a != pair.b),
        labels=_labels(both),
        tokens_a=_lengths(left),
        tokens_b=_lengths(right),
        changed=_shown(changed),
    )


def _read(job: JobDir, name: str) -> pa.Table:
    """The facts of all rows of a job, and what is compared, as text."""
    schema = job_schema(job.manifest)
    what = f"{job.job_id}: column"
    columns = parse_columns(_FACTS, schema, what=what)
    answer, *more = parse_columns([name], schema, what=what, renamed=renamed_columns(job.manifest))
    if more:
        raise InputError(f"{what}: {name!r} are several; one is compared")
    compared = Column("answer", answer.source, lambda table: _texts(answer.values(table)))
    tables = list(finished_tables(job, columns=[*columns, compared]))
    if tables:
        return pa.concat_tables(tables)
    types = [*(schema.field(each).type for each in _FACTS), pa.string()]
    return pa.schema(list(zip((*_FACTS, "answer"), types, strict=True))).empty_table()


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if pa.types.is_string(column.type) else text_column(column)


def _have_common(left: pa.Table, right: pa.Table, name: str) -> bool:
    return bool(pc.any(pc.is_in(left[name], value_set=right[name])).as_py())


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Two nulls are equal, too."""
    return pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))


def _pairs(table: pa.Table, name: str) -> Sequence[Pair]:
    counts = table.group_by([name, f"{name}_b"]).aggregate([([], "count_all")])
    found = (Pair(*row.values()) for row in counts.select([name, f"{name}_b", "count_all"]).to_pylist())
    return sorted(found, key=lambda pair: (-pair.count, pair.a or "", pair.b or ""))


def _labels(both: pa.Table) -> tuple[Pair, ...]:
    kinds = pc.unique(pa.chunked_array([*both["answer"].chunks, *both["answer_b"].chunks], pa.string()))
    # Few rows have few answers, and labels come back.
    is_few = len(kinds) <= MAX_LABELS and len(kinds) <= both.num_rows
    return tuple(_pairs(both, "answer")) if is_few else ()


def _lengths(table: pa.Table) -> Lengths:
    tokens = table.filter(pc.equal(table["status"], RowStatus.OK.value))["completion_tokens"].drop_null()
    if not len(tokens):
        return Lengths(None, None)
    return Lengths(pc.mean(tokens).as_py(), pc.quantile(tokens, q=0.5)[0].as_py())


def _shown(changed: pa.Table) -> pa.Table:
    ordered = changed.sort_by([("row", "ascending"), ("index", "ascending")])
    names = {"custom_id": "custom_id", "row": "row", "index": "index", "answer": "a", "answer_b": "b"}
    names |= {"status": "status_a", "status_b": "status_b"}
    return ordered.select(list(names)).rename_columns(list(names.values()))
