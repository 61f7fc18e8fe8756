"""The answers of a job joined to its input: the input's own columns under their own names, then those asked for.

So a CSV file comes out as it went in, with a column more.
"""

import json
from typing import Any

import pyarrow as pa

from batcher.arrow.conditions import Column, parse_columns
from batcher.errors import InputError
from batcher.jobdir.manifest import InputColumn, Manifest
from batcher.jobdir.results import job_schema

#: Result columns that hold the answers of jobs that have them, in front of the text that all have.
_TYPED_ANSWERS = ("output", "label")
#: In front of a column of the input that has the name of one of ours.
_PREFIX = "input_"


def joined_columns(manifest: Manifest, *, columns: str | None, output_column: str | None) -> list[Column]:
    """The columns of the input, then those of the results that `columns` names, then the answer as `output_column`.

    The answer is the typed `output` of a job with a schema, the `label` of one with choices, else the text. A column of
    the input that has the name of one that is asked for keeps the name that it has in the results. Raises InputError
    for a column that is not there, and for an answer that would have no name, or that of another.
    """
    schema = job_schema(manifest)
    renamed = renamed_columns(manifest)
    asked = parse_columns([columns], schema, what="columns", renamed=renamed) if columns else []
    if output_column is not None:
        if not output_column.strip():
            raise InputError("the column of the answers has no name; give it one, such as answer")
        if any(column.name == output_column for column in asked):
            raise InputError(f"the columns have {output_column!r} already; give the answer another name")
        answer = answer_columns(manifest)[0]
        asked.append(Column(output_column, answer, lambda table: table[answer]))
    taken = {column.name for column in asked}
    found: dict[str, Column] = {}
    for column in input_columns(manifest):
        if column.name == output_column:
            raise InputError(f"the input has a column {output_column!r} itself; give the answer another name")
        if column.column is not None:
            is_free = column.name not in taken
            name = column.name if is_free else column.column
            found.setdefault(name, _column(name, column))
    return [*found.values(), *(column for column in asked if column.name not in found)]


def answer_columns(manifest: Manifest) -> tuple[str, ...]:
    """The columns that hold the answers of a job, the one that says most first.

    A column of the input may be called `output` or `label` where the job has no such column of its own: it is none.
    """
    return (*(name for name in _TYPED_ANSWERS if name in manifest.optional.names), "text")


def input_columns(manifest: Manifest) -> tuple[InputColumn, ...]:
    """The columns of the input; of jobs that did not note them the id, and what went along."""
    if manifest.columns:
        return manifest.columns
    carried = manifest.carried.names
    own = {name: name.removeprefix(_PREFIX) for name in carried}
    return (
        InputColumn("custom_id", "custom_id"),
        *(InputColumn(own[name] if own[name] not in carried else name, name) for name in carried),
    )


def renamed_columns(manifest: Manifest) -> dict[str, str]:
    """The columns of the input that have another name in the results, each with that."""
    columns = input_columns(manifest)
    return {each.name: each.column for each in columns if each.column is not None and each.column != each.name}


def _column(name: str, column: InputColumn) -> Column:
    source = column.column
    assert source is not None
    return Column(name, source, lambda table: _messages(table[source]) if column.is_message else table[source])


def _messages(prompts: pa.ChunkedArray) -> pa.ChunkedArray:
    """What the users said in the chats that were made of it."""
    return pa.chunked_array([pa.array(map(_message, prompts.to_pylist()), pa.string())])


def _message(prompt: str | None) -> str | None:
    try:
        chat: Any = json.loads(prompt or "")
    except ValueError:
        return prompt  # Of a row that was refused before it was a chat.
    last = chat[-1] if isinstance(chat, list) and chat else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return prompt
    content = last.get("content")
    return content if isinstance(content, str) else prompt
