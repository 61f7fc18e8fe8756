"""Result columns that only some jobs have: which ones, of which types, and what is in them.

They come behind the fixed columns and before the carried ones. The manifest has their schema, so a job keeps its
columns whatever a later Batcher would give it; without any the results are those of a job that asks for nothing.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from batcher.arrow.json_schema import TypedColumn, typed_column
from batcher.arrow.json_texts import JsonColumn
from batcher.constraints import label_scores
from batcher.openai.answers import calls_of
from batcher.types import Choice, Constraint, ConstraintKind, FinishReason, Reasoning, Request, SamplingParams

#: No optional column at all.
NONE = pa.schema([])
#: The documented calls of an answer as JSON text; null where it calls nothing.
TOOL_CALLS = pa.field("tool_calls", pa.string())

_CHOICES = (ConstraintKind.CHOICE, ConstraintKind.SCORED_CHOICE)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What a result row is made of; `choice` None where the request failed. `response_id` is that of the response."""

    request: Request
    choice: Choice | None
    response_id: str = ""

    @property
    def scores(self) -> dict[str, float] | None:
        """The probability of each label, if they were scored."""
        return None if self.choice is None else label_scores(self.choice, self.request.params)

    @property
    def answer(self) -> str | None:
        """The text if it is whole: not where `max_tokens` cut it off. Without the prompt that an echo puts in front."""
        if self.choice is None or self.choice.finish_reason is not FinishReason.STOP:
            return None
        return self.choice.text[self.choice.num_echoed :]


@dataclass(frozen=True, slots=True)
class _OptionalColumn:
    """`field` gives the column of jobs with these parameters, None where they have none; `fill` its values. `refusal`
    says what is wrong with a whole answer that has none."""

    field: Callable[[SamplingParams], pa.Field | None]
    fill: Callable[[pa.Field, Sequence[ResultRow]], pa.Array]
    refusal: str = ""


def optional_schema(params: SamplingParams, *, has_tools: bool = False) -> pa.Schema:
    """The optional columns of a job with these defaults, any of whose rows may call functions if it `has_tools`."""
    fields = [column.field(params) for column in _COLUMNS.values()]
    return pa.schema([field for field in (*fields, TOOL_CALLS if has_tools else None) if field is not None])


def asked_fields(params: SamplingParams) -> list[pa.Field]:
    """The optional columns that a single request asks for, whatever the job's defaults: what else its answer has."""
    scores = [] if params.constraint is None else [column.field(params) for column in _SCORES.values()]
    return [field for field in (*scores, TOOL_CALLS if params.tools is not None else None) if field is not None]


def extended(schema: pa.Schema, fields: Iterable[pa.Field]) -> pa.Schema:
    """The optional columns of `schema` and `fields`, in their order in the results."""
    named = {field.name: field for field in (*fields, *schema)}
    return pa.schema([named[name] for name in _COLUMNS if name in named])


def fill(schema: pa.Schema, rows: Sequence[ResultRow]) -> list[pa.Array]:
    """A value of each row for each column of `schema`."""
    return [_COLUMNS[field.name].fill(field, rows) for field in schema]


def misfit(schema: pa.Schema, row: ResultRow) -> str:
    """Why an answer that is whole has no place in the columns that hold answers of this job; "" where it has."""
    for field in schema:
        column = _COLUMNS[field.name]
        # A schema may allow null itself.
        if column.refusal and row.answer != "null" and column.fill(field, [row])[0].as_py() is None:
            return column.refusal
    return ""


def json_parts(params: SamplingParams) -> tuple[str, ...]:
    """The parts of `output` that are JSON text, as their schema has no Arrow type, each with the reason."""
    output = _output(params)
    return () if output is None else output.json_parts


def _output(params: SamplingParams) -> TypedColumn | None:
    constraint = params.constraint
    if constraint is None or constraint.kind is not ConstraintKind.JSON_SCHEMA:
        return None
    return typed_column("output", json.loads(constraint.text))


def _output_field(params: SamplingParams) -> pa.Field | None:
    output = _output(params)
    return None if output is None else output.field


def _outputs(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    # By the bytes: fields that differ in their metadata alone are equal.
    return _json_column(pa.schema([field]).serialize().to_pybytes()).read(row.answer for row in rows)


@lru_cache(maxsize=16)
def _json_column(schema: bytes) -> JsonColumn:
    return JsonColumn(pa.ipc.read_schema(pa.py_buffer(schema)).field(0))


def _label_field(params: SamplingParams) -> pa.Field | None:
    is_choice = params.constraint is not None and params.constraint.kind in _CHOICES
    return pa.field("label", pa.string()) if is_choice else None


def _labels(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    return pa.array([row.answer if row.answer in _labels_of(row.request) else None for row in rows], field.type)


def _labels_of(request: Request) -> frozenset[str]:
    constraint = request.params.constraint
    return frozenset() if constraint is None else _distinct_labels(constraint)


@lru_cache(maxsize=16)
def _distinct_labels(constraint: Constraint) -> frozenset[str]:
    return frozenset(constraint.labels)


def _if_scored(field: pa.Field) -> Callable[[SamplingParams], pa.Field | None]:
    def find(params: SamplingParams) -> pa.Field | None:
        constraint = params.constraint
        return field if constraint is not None and constraint.kind is ConstraintKind.SCORED_CHOICE else None

    return find


def _label_probabilities(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    found = (row.scores for row in rows)
    return pa.array([None if scores is None else max(scores.values()) for scores in found], field.type)


def _scores(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    found = (row.scores for row in rows)
    return pa.array([None if scores is None else list(scores.items()) for scores in found], field.type)


def _only_split(type_: pa.DataType, name: str) -> Callable[[SamplingParams], pa.Field | None]:
    return lambda params: pa.field(name, type_) if params.reasoning == Reasoning.SPLIT else None


def _reasonings(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    return pa.array([row.choice and row.choice.reasoning for row in rows], field.type)


def _reasoning_tokens(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    return pa.array([row.choice and row.choice.usage.reasoning_tokens for row in rows], field.type)


def _calls(field: pa.Field, rows: Sequence[ResultRow]) -> pa.Array:
    found = (calls_of(row.choice, response_id=row.response_id) if row.choice is not None else None for row in rows)
    return pa.array([None if calls is None else json.dumps(calls, ensure_ascii=False) for calls in found], field.type)


_SCORES = {
    "label_probability": _OptionalColumn(_if_scored(pa.field("label_probability", pa.float64())), _label_probabilities),
    "scores": _OptionalColumn(_if_scored(pa.field("scores", pa.map_(pa.string(), pa.float64()))), _scores),
}

#: By name, in their order in the results.
_COLUMNS = {
    "output": _OptionalColumn(_output_field, _outputs, "it does not fit the type of `output`"),
    "label": _OptionalColumn(_label_field, _labels, "it is none of the choices"),
    **_SCORES,
    "reasoning": _OptionalColumn(_only_split(pa.string(), "reasoning"), _reasonings),
    "reasoning_tokens": _OptionalColumn(_only_split(pa.int32(), "reasoning_tokens"), _reasoning_tokens),
    # What no default says: the rows of a job have tools of their own.
    TOOL_CALLS.name: _OptionalColumn(lambda params: None, _calls),
}
