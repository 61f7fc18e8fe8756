"""Input batches -> validated rows: joins the reading of files (`readers`) to the rules of the API (`openai`).

Every input row gives exactly one `ShardRow`: a request, or what is known of it together with the error that refuses it.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from batcher.arrow import cells
from batcher.arrow.plain import plain_table
from batcher.errors import InputError, InvalidBodyError, InvalidRowError
from batcher.ids import MODEL_NAME_REMEDY, is_model_name
from batcher.jobdir.shards import ShardRow
from batcher.openai import bodies, parameters
from batcher.openai.fields import PARAM_FIELDS
from batcher.openai.parameters import CHAT_URL, COMPLETIONS_URL, ROW_FIELDS, BatchLine, float_id, shown
from batcher.openai.row_params import RowParams, check_fields, table_values
from batcher.submission.chats import MESSAGES, ChatRows
from batcher.submission.columns import bad_positions, field_values, id_values, template_values, without_bad_text
from batcher.submission.input_columns import InputColumns
from batcher.submission.readers.files import LineBatch, Origin, TableBatch
from batcher.submission.readers.raw_rows import too_long
from batcher.submission.template import Template
from batcher.types import ErrorCode, Reasoning, Request, RowError, SamplingParams

_BATCH_LINE_KEYS = frozenset({"method", "url", "body"})


class _UnknownModelError(InvalidRowError):
    """A row names a model that this job can't use."""


@dataclass(frozen=True, slots=True)
class RefusedRow(ShardRow):
    """A row with an error; `kind` is that of the `InvalidRowError` which refuses it."""

    kind: str = "value"


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Validated rows, where they are from, and their carried values: a dict for each, or one table for all.

    `num_bytes` is about what each row takes, carried values included.
    """

    origin: Origin
    rows: list[ShardRow]
    carried: list[dict[str, Any]] | pa.Table
    num_bytes: list[int]


class RowParser:
    """Turns raw rows into requests. What is wrong with a row becomes its error; only whole files raise.

    `params` and `default_model` are the job's defaults, `chat_max_tokens` and `endpoint` are as in
    `SubmitOptions`. A row naming a model outside `known_models` gets `model_not_found`; None takes any name that a
    model can have. The prompt comes from `template`, else from `prompt_column`; where either is given, no row is taken
    for a batch line, and none for a chat by its messages. `chat` makes the prompts of plain rows chats, and `system`
    goes before the messages of those that have no system message. `fields` are columns of plain rows that are fields of
    the request rather than the user's own. `reasoning` is the default of chats; unless a row `can_split` thoughts from
    its text, there is no column for them.
    Raises InputError for options that contradict each other.
    """

    def __init__(
        self,
        *,
        params: SamplingParams,
        default_model: str | None,
        chat_max_tokens: int | None = None,
        known_models: frozenset[str] | None = None,
        prompt_column: str | None = None,
        id_column: str | None = None,
        template: Template | None = None,
        endpoint: str | None = None,
        chat: bool = False,
        system: str | None = None,
        fields: Sequence[str] = (),
        reasoning: str = Reasoning.KEEP.value,
        can_split: bool = True,
    ) -> None:
        fields = check_fields(fields)
        _check_columns(prompt_column, id_column, template, fields)
        self._params = params
        self._chat_params = bodies.chat_defaults(params, max_tokens=chat_max_tokens, reasoning=reasoning)
        self._can_split = can_split
        self._row_params = RowParams(params=params, chat_params=self._chat_params, opted=fields)
        self._default_model = default_model
        self._known_models = known_models
        self._template = template
        self._endpoint = endpoint
        self._takes_batch_lines = prompt_column is None and template is None
        self._prompt_column = None if template else prompt_column or "prompt"
        self._makes_chats, self._has_system = chat, system is not None
        self._chats = ChatRows(
            prompt_column=self._prompt_column,
            reads_messages=self._takes_batch_lines,
            makes_chats=chat,
            system=system,
        )
        self._id_column = id_column or "custom_id"
        self.columns = InputColumns(
            id_column=self._id_column, prompt_column=self._prompt_column, makes_chats=self._makes_chats
        )
        #: Whether a row so far has given a value for its id, be it a good one or not.
        self.has_ids = False
        self._needed = {*(template.columns if template else (prompt_column or "prompt",))}
        if id_column is not None:
            self._needed.add(id_column)
        #: Column or key -> the field it is read into.
        self._fields = {name: name for name in (*ROW_FIELDS, *fields) if name not in ("custom_id", "prompt")}
        self._fields[self._id_column] = "custom_id"
        if self._prompt_column is not None:
            self._fields[self._prompt_column] = "prompt"
        usual: dict[str, Any] = {"id_column": self._id_column, "fields": (*PARAM_FIELDS, *fields)}
        row_model = parameters.row_model(prompt_column=self._prompt_column, **usual)
        self._validate_json = row_model.__pydantic_validator__.validate_json
        self._validate = row_model.__pydantic_validator__.validate_python
        # A chat's prompt or messages are read by `_chats`.
        chat_model = parameters.row_model(prompt_column=None, is_chat=True, **usual)
        self._validate_chat_json = chat_model.__pydantic_validator__.validate_json
        self._validate_chat = chat_model.__pydantic_validator__.validate_python
        batch_model = parameters.batch_line_model(id_column=self._id_column)
        self._validate_batch_line = batch_model.__pydantic_validator__.validate_python

    def parse(self, batch: LineBatch | TableBatch, *, numbers: Iterable[int]) -> RowBatch:
        """The rows of a batch, `numbers` being theirs in the input. Raises InputError for a table that lacks a needed
        column."""
        if isinstance(batch, TableBatch):
            return self._parse_table(batch, numbers=numbers)
        rows: list[ShardRow] = []
        carried: list[dict[str, Any]] = []
        for (position, line), row in zip(enumerate(batch.lines), numbers, strict=False):
            try:
                if line is None:
                    raise too_long(batch.max_bytes, what="line")
                if bodies.has_too_many_containers(line):
                    # Nor is it read to find its id.
                    line = None
                    raise InvalidRowError(f"the line {bodies.TOO_MANY_CONTAINERS}", kind="too_many_containers")
                if batch.columns:
                    line = _with_columns(line, batch)
                parsed, extras = self._parse_line(line, row)
            except (ValueError, InvalidRowError, InvalidBodyError) as exc:
                parsed, extras = self._refuse_line(line, exc, row, batch.origin.source(position))
                extras = {key: item for key, item in batch.columns.items() if key not in self._fields} | extras
            rows.append(parsed)
            carried.append(extras)
        return RowBatch(batch.origin, rows, carried, [len(line) if line else 0 for line in batch.lines])

    # -- lines --------------------------------------------------------------------------------------------------------

    def _parse_line(self, line: bytes, row: int) -> tuple[ShardRow, dict[str, Any]]:
        """The row in a line, and those of its keys that go along to the results. Raises ValueError, InvalidRowError."""
        found: Any
        # Only lines with this key can be batch lines; the others are parsed and checked in one go.
        if self._takes_batch_lines and b'"body"' in line and self._is_batch_line((read := bodies.read_json(line))[0]):
            value, is_json = read
            if not is_json and isinstance(value["body"], dict):
                _refuse_non_numbers(value["body"])
            batch_line: BatchLine = self._validate_batch_line(value)
            self._check_endpoint(batch_line.url)
            if self._has_system:
                raise _cant_have_system("the row is a batch line", "write the message into its body")
            return self._build_batch_line(batch_line, row), batch_line.__pydantic_extra__ or {}
        extras: dict[str, Any]
        # As above: other lines are checked in one go, and so are those of a job that makes chats of all.
        if self._makes_chats or (self._takes_batch_lines and b'"messages"' in line):
            found = self._validate_chat_json(line)
            extras = found.__pydantic_extra__
            if self._chats.is_chat(extras):
                self._check_endpoint(CHAT_URL)
                column = self._chats.column(extras)
                self.columns.see_prompt(column)
                parsed = self._build(found, extras, row, custom_id=found.custom_id, is_chat=True)
                return parsed, {key: item for key, item in extras.items() if key not in (column, self._prompt_column)}
        found = self._validate_json(line)
        self._check_endpoint(COMPLETIONS_URL)
        if self._has_system:
            raise _cant_have_system("the prompt is a completion", "give --chat too, which makes it a chat")
        extras = found.__pydantic_extra__
        self.columns.see_prompt(self._prompt_column)
        return self._build(found, extras, row, custom_id=found.custom_id), extras

    def _check_endpoint(self, url: str) -> None:
        """Raise InvalidRowError for a row that is meant for another endpoint than its batch. Plain rows complete."""
        if self._endpoint is not None and url != self._endpoint:
            problem = f"url is {shown(url)}; the batch is for {self._endpoint}: use that, or another batch"
            raise InvalidRowError(problem, param="url")

    def _refuse_line(
        self, line: bytes | None, exc: Exception, row: int, source: str
    ) -> tuple[ShardRow, dict[str, Any]]:
        try:
            value = from_json(line) if line is not None else None
        except ValueError as json_error:
            no_json = InvalidRowError(_not_json(line or b"", json_error), kind="not_json")
            return self._refused({self._id_column: _unread_id(line or b"", self._id_column)}, no_json, row, source), {}
        if not isinstance(value, dict):
            if line is not None:
                problem = f"not a JSON object but {shown(value)}; write one object on each line"
                exc = InvalidRowError(problem, kind="not_object")
            return self._refused({}, exc, row, source), {}
        error = self._explain(exc, value)
        if not self._is_batch_line(value):
            column = self._chats.column(value)
            extras = {key: item for key, item in value.items() if key not in self._fields and key != column}
            return self._refused(value, error, row, source), extras
        extras = {k: item for k, item in value.items() if k not in _BATCH_LINE_KEYS and k != self._id_column}
        known = dict(value["body"]) if isinstance(value["body"], dict) else {}
        known[self._id_column] = value.get(self._id_column)
        is_chat = value.get("url") == CHAT_URL
        if is_chat:
            # What a chat's prompt is in the results, as far as it goes.
            messages = known.get("messages")
            known["prompt"] = bodies.compact_json(messages) if isinstance(messages, list) else None
        return self._refused(known, error, row, source, is_chat=is_chat), extras

    def _is_batch_line(self, value: Any) -> bool:
        if not self._takes_batch_lines or not isinstance(value, dict) or "prompt" in value:
            return False
        return isinstance(value.get("body"), dict) or value.keys() >= _BATCH_LINE_KEYS

    # -- tables -------------------------------------------------------------------------------------------------------

    def _parse_table(self, batch: TableBatch, *, numbers: Iterable[int]) -> RowBatch:
        origin = batch.origin
        self._check_table(origin.file, batch.table.column_names)
        self.columns.see(batch.table.column_names)
        try:
            table = batch.table if batch.is_text else plain_table(batch.table)
        except InputError as exc:
            raise InputError(f"{origin.file}: {exc}; cast it, or leave it out") from exc
        can_be_chats = self._chats.is_among(table.column_names)
        read, taken = {*self._fields, *(self._template.columns if self._template else ())}, {*self._fields}
        if can_be_chats and self._chats.reads_messages:
            read.add(MESSAGES)
            # Beside prompts it is a column of the user's, though where one is null the row is a chat.
            if self._prompt_column not in table.column_names:
                taken.add(MESSAGES)
        names = [name for name in table.column_names if name in read]
        columns = [self._values(name, table[name], is_text=batch.is_text) for name in names]
        carried, unreadable = without_bad_text(table.select([n for n in table.column_names if n not in taken]))
        for name, column in zip(names, columns, strict=True):
            unreadable |= bad_positions(name, column)
        rows = []
        for (position, row_values), row in zip(enumerate(zip(*columns, strict=True)), numbers, strict=False):
            values = dict(zip(names, row_values, strict=True))
            try:
                if position in batch.broken:
                    raise batch.broken[position]
                if position in unreadable:
                    name = unreadable[position]
                    problem = f"{name} is not UTF-8 text; write the column as UTF-8"
                    raise InvalidRowError(problem, param=name, kind="not_utf8")
                rows.append(self._parse_values(values, row, can_be_chat=can_be_chats))
            except (ValueError, InvalidRowError, InvalidBodyError) as exc:
                rows.append(self._refused(values, self._explain(exc, values), row, origin.source(position)))
        row_bytes = table.nbytes // len(rows)
        return RowBatch(origin, rows, carried, [row_bytes + sum(map(len, row.request.prompts)) for row in rows])

    def _parse_values(self, values: dict[str, Any], row: int, *, can_be_chat: bool) -> ShardRow:
        is_chat = can_be_chat and self._chats.is_chat(values)
        found: Any = self._validate_chat(values) if is_chat else self._validate(values)
        if self._has_system and not is_chat:
            raise _cant_have_system("the prompt is a completion", "give --chat too, which makes it a chat")
        return self._build(found, values, row, custom_id=found.custom_id, is_chat=is_chat)

    def _check_table(self, file: str, columns: Sequence[str]) -> None:
        missing = sorted(self._needed.difference(columns))
        if self._chats.reads_messages and MESSAGES in columns:
            missing = [name for name in missing if name != self._prompt_column]
        if not missing:
            return
        if self._template is not None and missing[0] in self._template.columns:
            remedy = "correct the template"
        elif missing[0] == self._prompt_column:
            remedy = "name the prompt's column with --prompt-column, or build the prompt with --template"
        else:
            remedy = "correct --id-column"
        raise InputError(f"{file}: no column {missing[0]!r}; it has: {', '.join(columns) or 'none'}; {remedy}")

    def _values(self, name: str, column: pa.ChunkedArray, *, is_text: bool) -> list[Any]:
        field = self._fields.get(name)
        if is_text and (field is not None or name == MESSAGES):
            return cells.field_values(field or name, column.to_pylist())
        if field == "custom_id":
            return id_values(column)
        if name == MESSAGES and self._chats.reads_messages:
            return field_values(column, is_of_chats=True)
        if name in self._row_params.opted:
            return table_values(name, field_values(column, is_of_chats=True))
        return template_values(column) if field is None else field_values(column, is_of_chats=field == "prompt")

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _build(
        self, found: Any, values: Mapping[str, Any], row: int, *, custom_id: str | int | None, is_chat: bool = False
    ) -> ShardRow:
        """The request in a validated row. `values` holds what a template or a chat may use beside the fields."""
        fields = found.__dict__
        model = fields["model"]
        if model is None or self._known_models is not None or not is_model_name(model):
            model = self._check_model(model)
        prompt: Any
        if self._template is not None:
            prompt = self._template.render({key: fields[field] for key, field in self._fields.items()} | dict(values))
            if is_chat:
                prompt = self._chats.of_user(prompt)
        else:
            prompt = self._chats.prompt(values) if is_chat else fields["prompt"]
        prompts, is_array, is_token_ids = bodies.split_prompt(prompt)
        params = self._check_split(self._row_params.merge(found, is_chat=is_chat))
        return ShardRow(
            Request(
                row,
                self._name(custom_id, row),
                model,
                prompts,
                is_array,
                params,
                is_chat,
                is_token_ids=is_token_ids,
            )
        )

    def _build_batch_line(self, line: BatchLine, row: int) -> ShardRow:
        """The request in a batch line whose frame is checked. Raises InvalidRowError."""
        if line.custom_id is None:
            problem = f"{self._id_column} is missing; a batch line needs one, by which its answer is found"
            raise InvalidRowError(problem, param="custom_id")
        is_chat = line.url == CHAT_URL
        try:
            body = bodies.parse_line_body(line.body, url=line.url)
            request = bodies.build_request(
                body,
                row=row,
                custom_id=self._name(line.custom_id, row),
                model=self._check_model(body.model),
                defaults=self._chat_params if is_chat else self._params,
            )
        except InvalidBodyError as exc:
            raise InvalidRowError(f"body.{exc}", param=exc.param) from exc
        self._check_split(request.params)
        return ShardRow(request)

    def _check_split(self, params: SamplingParams) -> SamplingParams:
        if params.reasoning == Reasoning.SPLIT and not self._can_split:
            problem = 'reasoning is "split", and the results of this job have no column for it; give --reasoning split'
            raise InvalidRowError(problem, param="reasoning")
        return params

    def _name(self, custom_id: str | float | None, row: int) -> str:
        """The id of a row that gives this one, or none."""
        if custom_id is None:
            return f"row-{row}"
        self.has_ids = True
        return str(custom_id)

    def _check_model(self, model: str | None) -> str:
        if model is None:
            if self._default_model is None:
                problem = "model is missing; name one in the row, or one for all rows with --model"
                raise InvalidRowError(problem, param="model", kind="missing")
            return self._default_model
        if self._known_models is None:
            if is_model_name(model):
                return model
            raise InvalidRowError(f"model is {shown(model)}; {MODEL_NAME_REMEDY}", param="model")
        if model not in self._known_models and model != self._default_model:
            known = ", ".join(sorted(self._known_models)) or "none"
            problem = f"model {shown(model)} is not known here; use one of: {known}"
            raise _UnknownModelError(problem, param="model")
        return model

    def _explain(self, exc: Exception, values: Mapping[str, Any]) -> Exception:
        if isinstance(exc, ValidationError):
            problem = parameters.explain(exc, values, self._fields, is_chat=self._chats.is_chat(values))
            kind = "missing" if problem.is_missing else "value"
            return InvalidRowError(problem.message, param=problem.label, kind=kind)
        if isinstance(exc, InvalidBodyError):
            return InvalidRowError(str(exc), param=exc.param)
        return exc

    def _refused(
        self, values: Mapping[str, Any], exc: Exception, row: int, source: str, *, is_chat: bool = False
    ) -> ShardRow:
        """The error row: as much of the request as can be known, so that the user finds the row again."""
        known = {field: values.get(key) for key, field in self._fields.items()}
        custom_id, model, prompt = known["custom_id"], known["model"], known.get("prompt")
        if not is_chat and self._chats.is_chat(values):
            is_chat, prompt = True, self._chats.refused_prompt(values)
        # Also of one that can't be an id it is true that the row has a value there.
        self.has_ids |= custom_id is not None
        prompts: tuple[str, ...] = ()
        is_array, is_token_ids = isinstance(prompt, list), False
        if bodies.is_prompt(prompt):
            prompts, is_array, is_token_ids = bodies.split_prompt(prompt)
        request = Request(
            row=row,
            custom_id=_known_id(custom_id) or f"row-{row}",
            model=model if isinstance(model, str) else self._default_model or "",
            prompts=prompts,
            is_array=is_array,
            params=self._params,
            is_chat=is_chat,
            is_token_ids=is_token_ids,
        )
        code = ErrorCode.MODEL_NOT_FOUND if isinstance(exc, _UnknownModelError) else ErrorCode.INVALID_REQUEST
        error = RowError(code, f"{source}: {exc}", getattr(exc, "param", None))
        return RefusedRow(request, error, exc.kind if isinstance(exc, InvalidRowError) else type(exc).__name__)


def _known_id(custom_id: Any) -> str | None:
    """The id in a row that is refused for whatever reason, if it has one."""
    if type(custom_id) is float:
        return None if math.isinf(custom_id) else float_id(custom_id)
    return str(custom_id) if isinstance(custom_id, str) or type(custom_id) is int else None


def _unread_id(line: bytes, id_column: str) -> Any:
    """The id in a line that holds what can't be read, such as half of an emoji or a byte of Latin-1; None if not found.

    Python's parser goes on where the other stops, so that whoever sent the line finds its error by the id.
    """
    try:
        value = json.loads(line.decode(errors="surrogateescape"))
        custom_id = value.get(id_column) if isinstance(value, dict) else None
        # It may itself be what can't be read.
        str(custom_id).encode()
    except (ValueError, RecursionError):
        return None
    return custom_id


def _check_columns(
    prompt_column: str | None, id_column: str | None, template: Template | None, fields: Sequence[str]
) -> None:
    if template is not None and prompt_column is not None:
        raise InputError("--template and --prompt-column both say where the prompt comes from; give one of them")
    for option, column in (("--prompt-column", prompt_column), ("--id-column", id_column)):
        if column is not None and column in {*PARAM_FIELDS, *fields, "model", "stream"}:
            raise InputError(f"{option} {column}: that column is a parameter of the request; rename the column")
    if template is None and (prompt_column or "prompt") == (id_column or "custom_id"):
        raise InputError(f"column {prompt_column or 'prompt'!r} can't be both prompt and id; name another")


def _with_columns(line: bytes, batch: LineBatch) -> bytes:
    """The line with the columns of its file, where it has no such keys itself. One that is no object stays as it is."""
    try:
        value = from_json(line)
    except ValueError:
        return line
    if not isinstance(value, dict):
        return line
    if batch.file_column in value:
        remedy = "choose another name for --file-column"
        raise InvalidRowError(
            f"has a key {batch.file_column!r}, which would get the file's path; {remedy}", kind="file_column"
        )
    return to_json({**batch.columns, **value}, inf_nan_mode="constants")


def _refuse_non_numbers(body: dict[str, Any]) -> None:
    """Hold the body of a batch line that is no strict JSON to what the server takes. Raises InvalidRowError."""
    try:
        bodies.refuse_non_numbers(body)
    except InvalidBodyError as exc:
        raise InvalidRowError(f"body.{exc}", param=exc.param) from exc


def _cant_have_system(what: str, remedy: str) -> InvalidRowError:
    return InvalidRowError(f"{what}, to which --system can't be added; {remedy}", kind=f"system: {what}")


def _not_json(line: bytes, exc: ValueError) -> str:
    problem = re.sub(r" at line \d+ column (\d+)\)$", r" at position \1)", bodies.not_json(line, exc))
    remedy = "write one JSON object on each line" if problem.startswith("not JSON") else "save the file as UTF-8"
    return f"{problem}; {remedy}"
