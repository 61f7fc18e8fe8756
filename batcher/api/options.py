"""The options of a job and of its workers: those of the command line, by the same names, checked once.

Numbers have the bounds of `batcher run --help`. None, for an option that can be None, is the same as leaving it out.
"""

import difflib
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from batcher.api.constraint import read_constraint
from batcher.constraints import find_unscorable
from batcher.errors import InputError, InvalidBodyError
from batcher.jobdir.standing import Standing, parse_finish_by, parse_priority
from batcher.machine import parse_size
from batcher.openai.fields import MAX_INT32, MAX_MAX_TOKENS, MAX_SEED, MAX_STOPS
from batcher.openai.parameters import shown
from batcher.openai.request_params import template_variables
from batcher.selection import RowSelection
from batcher.submission.readers.bounds import MAX_RATIO, MAX_UNPACKED_BYTES, UnpackLimits
from batcher.submission.readers.files import FORMATS, ReadOptions
from batcher.submission.source import SubmitOptions
from batcher.types import AnswerRules, OnTruncation, SamplingParams

F = TypeVar("F", bound=Callable[..., Any])

#: Values of these look in a message as they were given.
_JSON_TYPES = (str, int, float, list, tuple, dict, type(None))

#: Each is a computation of the whole row.
MAX_RETRIES = 100

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]
_Text = Annotated[str, Field(min_length=1)]


def _size(value: int | str) -> int:
    try:
        return parse_size(str(value))
    except ValueError as exc:
        raise PydanticCustomError("size", str(exc)) from exc


class JobOptions(TypedDict, total=False):
    """How rows become requests, for those that don't say themselves."""

    #: Most tokens to generate. [16; of a chat 1024]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_MAX_TOKENS)]
    #: 0 takes the likeliest token. [1]
    temperature: Annotated[float, Field(ge=0, le=2)]
    #: Draw from the likeliest tokens that hold this probability; 0 takes the likeliest. [1]
    top_p: Annotated[float, Field(ge=0, le=1)]
    #: Draw from this many of the likeliest tokens; 0 for all. [0]
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT32)]
    #: Draw from the tokens that are at least this share as likely as the likeliest. [0]
    min_p: Annotated[float, Field(ge=0, le=1)]
    #: Above 1, tokens of the prompt and the text become less likely; below, likelier. [1]
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)]
    #: End before this text, or the first of several, of at most 16. [none]
    stop: _Text | Sequence[_Text]
    #: What becomes of a model's thoughts in chats: "split", "keep" or "off". [split where the model is known to reason]
    reasoning: Literal["split", "keep", "off"] | None
    #: Further variables for chat templates: {"enable_thinking": False}. [none]
    chat_template_kwargs: dict[str, Any] | None
    #: Of the job, from which each row derives its own. [drawn]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None
    #: JSON schema that every text keeps to: an object, a pydantic model, a file's path, or JSON text. [none]
    json_schema: dict[str, Any] | str | os.PathLike[str] | type | None
    #: The texts of which every text is one. [none]
    choice: Sequence[_Text]
    #: Compute the probability of each text of `choice`, and take the likeliest; nothing is drawn. [False]
    scores: bool
    #: Regular expression that every text matches as a whole. [none]
    regex: _Text | None
    #: Context-free grammar of every text, of Lark or GBNF: a file's path, or the grammar. [none]
    grammar: str | os.PathLike[str] | None
    #: What becomes of a row with an answer that `max_tokens` cut off: "mark", "fail", or "retry" with twice the tokens,
    #: once. ["mark"]
    on_truncation: Literal["mark", "fail", "retry"]
    #: Ask this function of each answer, by itself or as "module:function"; False, a text or an exception refuse it.
    #: [none]
    validate: Callable[[Any], object] | str | None
    #: How often a row is computed again whose answer was refused, or does not fit its schema's type. [0]
    retry_invalid: Annotated[int, Field(ge=0, le=MAX_RETRIES)]
    #: Take the first so many rows. [all]
    limit: _Count | None
    #: Take so many rows, drawn from all by `seed`, or by 0: the same ones each time. [all]
    sample: _Count | None
    #: How urgent the job is, 0 to 9, of which 9 is the most, or "urgent", "normal", "low". ["normal"]
    priority: int | str | None
    #: When it has to be finished: a datetime, a timedelta from now, "2027-01-31T18:00" or "+2h". [any time]
    finish_by: datetime | timedelta | str | None
    #: Column that holds the prompt. ["prompt"]
    prompt_column: str | None
    #: Column that holds the custom_id. ["custom_id", else the row]
    id_column: str | None
    #: Build each prompt from columns: "Summarize: {text}".
    template: str | None
    #: Make each prompt the user's message of a chat. [False]
    chat: bool
    #: System message of the chats that have none of their own.
    system: str | None
    #: Columns that are fields of the request: ["top_k", "min_p"]. [none]
    fields: Sequence[str]
    #: Carry the path of each row's file along, in a column of this name.
    file_column: str | None
    #: What separates the cells of CSV and TSV files, one ASCII character. [",", "\t"]
    csv_delimiter: str | None
    #: What files without a known suffix are: "jsonl", "csv" or "tsv". ["jsonl"]
    input_format: str | None
    #: Most bytes that a compressed or Parquet file may unpack to. [256 GB]
    max_unpacked: _Count
    #: Most times its own size that a compressed file of more than 1 GB unpacked may unpack to; 0 is any. [1000]
    max_ratio: Annotated[int, Field(ge=0)]
    #: Make a job of error rows also where all rows have the same mistake. [False]
    allow_bad_rows: bool
    #: Refuse the whole input if a row is bad. [False]
    strict: bool
    #: Requests in a shard, the unit of scheduling. [32 to 512]
    shard_rows: _Count | None


class SubmitJobOptions(JobOptions, total=False):
    """Of a job for workers elsewhere."""

    #: Seconds that a completion may take once it has begun.
    row_timeout: _Seconds | None


class EngineOptions(TypedDict, total=False):
    """How workers of this machine load models and stop. [as tuned, or by what the machine has room for]"""

    #: URL of a server of the OpenAI API that computes, or of several. [llama.cpp in the worker]
    engine: _Text | Sequence[_Text]
    #: File whose first line is the key of the servers. [BATCHER_ENGINE_KEY of the environment]
    engine_key_file: str | os.PathLike[str] | None
    #: Prompts decoded at a time.
    slots: _Count | None
    #: CPU threads of a worker.
    threads: _Count | None
    #: Layers on the GPU. [all, where there is one]
    gpu_layers: Annotated[int, Field(ge=0)] | None
    #: Tokens of a prompt and its completion together. [2048]
    ctx: _Count | None
    #: Most tokens of one step.
    batch_tokens: _Count | None
    #: Most tokens that llama.cpp computes at once.
    micro_batch_tokens: _Count | None
    #: Bytes that a worker may take, with its weights: 2**30, or "1G". [what is free]
    memory: Annotated[int | str, AfterValidator(_size)] | None
    #: Most models in memory at a time, each loaded when rows wait for it. [all, from the start]
    max_loaded: _Count | None
    #: Seconds in which a worker stops. [8]
    grace: Annotated[float, Field(ge=0)]
    #: Seconds without a step after which an engine is restarted. [120]
    stall_timeout: _Seconds | None
    #: Seconds after which the shards of a worker that says nothing go to another. [30]
    lease_ttl: Annotated[float, Field(ge=1)] | None
    #: Seconds that a completion may take once it has begun.
    row_timeout: _Seconds | None
    #: File with a chat template in Jinja, or the name of one, in place of the model's own; MODEL=FILE for one.
    chat_template: str | Sequence[str]
    #: SHA-256 that the model's file must have, as HEX or NAME=HEX.
    model_sha256: str | Sequence[str]
    #: Functions, as "module:function", that jobs may have called of their answers. [those of the job]
    allow_validator: Sequence[_Text]


class RunOptions(JobOptions, EngineOptions, total=False):
    """Of a job that workers of this machine complete."""


class _Unsaid:
    """Stands for the default of an option in a signature: what the command line has."""

    def __repr__(self) -> str:
        return "..."


def shows_options(kind: type) -> Callable[[F], F]:
    """Have `help` and notebooks show each of the options that a function takes as `**options`, by name and type."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_Unsaid(), annotation=hint)
            for name, hint in get_type_hints(kind).items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return function

    return decorate


#: What an option has to be, by pydantic's name of what is wrong with it, or by the class that it is none of.
_WANTED = {
    "bool_type": "True or False",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "dict_type": "a dict",
    "is_type": "a class",
    "callable_type": "a function",
    "sequence_str": "a list",
    "Sequence": "a list",
    "PathLike": "a path",
    "literal_error": "{expected}",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
}


def check_options(function: str, kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, if they are what `kind`, a TypedDict of this module, says; those that are None are left out.

    Raises TypeError for a name that it does not have, as Python does, and InputError for a value.
    """
    names = kind.__annotations__
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
            raise TypeError(f"{function}() got an unexpected option {name!r}; {remedy}")
    options = {name: _plain_number(value) for name, value in options.items()}
    try:
        found: dict[str, Any] = _model(kind)(**options).model_dump(exclude_none=True, by_alias=True)
    except ValidationError as exc:
        name, wanted = _wanted(exc.errors(include_url=False))
        kind_of = "" if isinstance(options[name], _JSON_TYPES) else f" of type {type(options[name]).__name__}"
        raise InputError(f"{name} is {shown(options[name])}{kind_of}: {wanted}") from exc
    return found


def _wanted(errors: Sequence[Any]) -> tuple[str, str]:
    """The first option that is wrong, and what it has to be instead."""
    name = errors[0]["loc"][0]
    of_option = [error for error in errors if error["loc"][0] == name]
    # Where a value can be of several kinds, of those that it is nearest to.
    depth = max(len(error["loc"]) for error in of_option)
    nearest = [error for error in of_option if len(error["loc"]) == depth]
    kinds = [error["ctx"]["class"] if error["type"] == "is_instance_of" else error["type"] for error in nearest]
    if not {*kinds} <= _WANTED.keys():
        return str(name), str(nearest[0]["msg"]).lower()
    words = [_WANTED[kind].format(**error.get("ctx", {})) for kind, error in zip(kinds, nearest, strict=True)]
    return str(name), f"use {' or '.join(dict.fromkeys(words))}"


def _plain_number(value: object) -> object:
    """Python's own number in place of numpy's or another library's."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def submit_options(
    options: Mapping[str, Any],
    *,
    default_model: str | None,
    known_models: frozenset[str] | None,
    context_lengths: Mapping[str, int],
    models_reason: bool | None = None,
) -> SubmitOptions:
    """What the planner takes, of checked options. Raises InputError for those that contradict each other."""
    if options.get("strict") and options.get("allow_bad_rows"):
        raise InputError("strict and allow_bad_rows contradict each other; give one of them")
    selection = RowSelection(options.get("limit"), options.get("sample"))
    if selection.limit and selection.sample:
        raise InputError("limit and sample contradict each other; give one of them")
    stop = options.get("stop", ())
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise InputError(f"stop has {len(stops)} texts; at most {MAX_STOPS}")
    names = ("max_tokens", "temperature", "top_p", "min_p", "repetition_penalty")
    given = {name: options[name] for name in names if name in options}
    usual = (
        "prompt_column",
        "id_column",
        "template",
        "chat",
        "system",
        "allow_bad_rows",
        "strict",
        "shard_rows",
        "seed",
        "reasoning",
    )
    if variables := options.get("chat_template_kwargs"):
        given["chat_template_kwargs"] = _variables_text(variables)
    params = SamplingParams(
        **given, stop=stops, top_k=max(0, options.get("top_k", 0)), constraint=read_constraint(options)
    )
    if name := find_unscorable(params):
        raise InputError(f"{name} has no effect where labels are scored, as nothing is drawn; leave it out, or scores")
    return SubmitOptions(
        default_model=default_model,
        params=params,
        known_models=known_models,
        context_lengths=context_lengths,
        models_reason=models_reason,
        selection=selection,
        standing=_standing(options),
        row_timeout_s=options.get("row_timeout"),
        # The documented default would cut off most answers of a chat.
        chat_max_tokens=options.get("max_tokens"),
        fields=tuple(options.get("fields", ())),
        reading=_read_options(options),
        answers=_answer_rules(options),
        unpack_limits=UnpackLimits(
            options.get("max_unpacked", MAX_UNPACKED_BYTES), options.get("max_ratio", MAX_RATIO)
        ),
        **{"allow_bad_rows": False} | {name: options[name] for name in usual if name in options},
    )


def _standing(options: Mapping[str, Any]) -> Standing:
    priority, finish_by = options.get("priority"), options.get("finish_by")
    return Standing(
        None if priority is None else parse_priority(priority),
        None if finish_by is None else parse_finish_by(finish_by),
    )


def _variables_text(variables: Mapping[str, Any]) -> str:
    try:
        return template_variables(variables)
    except InvalidBodyError as exc:
        raise InputError(str(exc)) from exc


def _answer_rules(options: Mapping[str, Any]) -> AnswerRules:
    validator = options.get("validate") or ""
    if validator:
        from workers.shard.validators import check_name, name_validator

        validator = check_name(validator) if isinstance(validator, str) else name_validator(validator)
    return AnswerRules(
        on_truncation=OnTruncation(options.get("on_truncation", OnTruncation.MARK)),
        retry_invalid=options.get("retry_invalid", 0),
        validator=validator,
    )


def _read_options(options: Mapping[str, Any]) -> ReadOptions:
    format_, delimiter = options.get("input_format"), options.get("csv_delimiter")
    if format_ is not None and format_ not in FORMATS:
        raise InputError(f"input_format is {shown(format_)}; use one of {', '.join(FORMATS)}")
    if delimiter is not None and (len(delimiter.encode(errors="replace")) != 1 or delimiter in '"\r\n'):
        raise InputError(f"csv_delimiter is {shown(delimiter)}, not one ASCII character that can separate cells")
    return ReadOptions(file_column=options.get("file_column"), csv_delimiter=delimiter, format=format_)


@cache
def _model(kind: type) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    # By other names, as some are those of methods of every model.
    fields = {f"{name}_": (Annotated[hint, Field(alias=name)], None) for name, hint in hints.items()}
    config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", arbitrary_types_allowed=True)
    return create_model(kind.__name__, __config__=config, **fields)  # type: ignore[call-overload]
