"""Options that say what the rows of a job are: how they are read, and what is asked of the model."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from batcher.cli.options import Number, chain, option
from batcher.errors import InputError
from batcher.submission.readers.bounds import MAX_LINE_BYTES, MAX_RATIO, MAX_UNPACKED_BYTES
from batcher.types import (
    DEFAULT_CHAT_MAX_TOKENS,
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Reasoning,
)

if TYPE_CHECKING:
    from batcher.selection import RowSelection
    from batcher.submission.source import Input, SubmitOptions


def _no_empty_text(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if "" in values:
        raise click.BadParameter("an empty stop string would end every completion before its first token", ctx, param)
    return values


def _split_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def _one_character(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (len(value.encode(errors="replace")) != 1 or value in '"\r\n'):
        raise click.BadParameter(f"{value!r} is not one ASCII character that can separate cells", ctx, param)
    return value


prompt_column_option = option("--prompt-column", metavar="NAME", help="Column that holds the prompt. [default: prompt]")

template_option = option(
    "--template",
    metavar="TEXT|@FILE",
    help="Build each prompt from columns, e.g. 'Summarize: {text}'; @FILE reads it from a file, whose last "
    "newline is left out.",
)

_reading_options = chain(
    option("--file-column", metavar="NAME", help="Carry the path of each row's file along, in a column of this name."),
    option(
        "--csv-delimiter",
        metavar="CHAR",
        callback=_one_character,
        help="What separates the cells of CSV and TSV files; in bash, $'\\t' is a tab. [default: , and for TSV a tab]",
    ),
    option(
        "--input-format",
        type=click.Choice(["jsonl", "csv", "tsv"]),
        help="What standard input and files without a known suffix are. [default: jsonl]",
    ),
    option(
        "--max-unpacked",
        type=click.IntRange(min=1),
        default=MAX_UNPACKED_BYTES,
        help="Most bytes that a compressed or Parquet file may unpack to.",
    ),
    option(
        "--max-ratio",
        type=click.IntRange(min=0),
        default=MAX_RATIO,
        help="Most times its own size that a compressed file of more than 1 GB unpacked, or a Parquet column of more "
        "than 256 MB in a row group, may unpack to; 0 is any.",
    ),
)


#: Which rows of the input files are taken, and how their prompts are read. Parameters: limit, sample, prompt_column,
#: id_column, template, chat, system, fields, file_column, csv_delimiter, input_format, max_unpacked, max_ratio,
#: allow_bad_rows, strict, shard_rows.
input_options = chain(
    option(
        "--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N rows of the input. [default: all]"
    ),
    option(
        "--sample",
        type=click.IntRange(min=1),
        metavar="N",
        help="Take N rows, drawn from the whole input: the same ones each time, or others by another --seed.",
    ),
    prompt_column_option,
    option("--id-column", metavar="NAME", help="Column that holds the custom_id. [default: custom_id, else the row]"),
    template_option,
    option(
        "--chat",
        is_flag=True,
        help="Make each prompt the user's message of a chat, so that an instruct model gets it by its own template. "
        "Rows with `messages` instead of a prompt are chats anyway.",
    ),
    option(
        "--system",
        metavar="TEXT|@FILE",
        help="System message of the chats in plain rows that have none of their own; @FILE as in --template.",
    ),
    option(
        "--fields",
        multiple=True,
        metavar="NAMES",
        callback=_split_names,
        help="Columns of plain rows that are fields of the request, e.g. top_k,min_p; other columns are your own. "
        "docs/serving.md has the fields; can be given several times.",
    ),
    _reading_options,
    option(
        "--allow-bad-rows",
        is_flag=True,
        help="Make a job of error rows also where all rows, or the first 1,000, have the same mistake.",
    ),
    option("--strict", is_flag=True, help="Refuse the whole input if a row is bad, listing the first of them."),
    option(
        "--shard-rows",
        type=click.IntRange(min=1),
        help="Requests in a shard, the unit of scheduling. [default: 32 to 512, growing with the input]",
    ),
)

#: What every completion must be, for rows that don't say. Parameters: json_schema, choice, scores,
#: regex, grammar.
_constraint_options = chain(
    option("--json-schema", metavar="FILE|JSON", help="Have every text be JSON that keeps to this JSON schema."),
    option(
        "--choice",
        multiple=True,
        metavar="TEXT",
        help="Have every text be one of these; given once for each.",
    ),
    option(
        "--scores",
        is_flag=True,
        help="Compute how probable each --choice is, and take the likeliest: columns label_probability and scores.",
    ),
    option("--regex", metavar="PATTERN", help="Have every text match this regular expression as a whole."),
    option(
        "--grammar",
        metavar="FILE|TEXT",
        help="Have every text be one of this context-free grammar, of Lark or of llama.cpp (GBNF).",
    ),
)

#: Which answers are not taken as they are. Parameters: on_truncation, validate, retry_invalid.
_answer_options = chain(
    option(
        "--on-truncation",
        type=click.Choice(["mark", "fail", "retry"]),
        default="mark",
        help="What becomes of a row with an answer that reached max_tokens: `finish_reason` is length, or it is an "
        "error row, or it is computed again with twice the tokens, once, and then marked.",
    ),
    option(
        "--validate",
        metavar="MODULE:FUNCTION",
        help="Ask this Python function of each answer, which refuses it by False, by a text that says why, or by an "
        "exception.",
    ),
    option(
        "--retry-invalid",
        type=click.IntRange(min=0, max=100),
        default=0,
        help="How often a row is computed again, with other seeds, whose answer was refused or does not fit the type "
        "of `output`; then it is an error row.",
    ),
)

#: Defaults for rows that don't say. Parameters: max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop,
#: chat_template_kwargs, reasoning, seed, and those of `_constraint_options` and `_answer_options`.
sampling_options = chain(
    option(
        "--max-tokens",
        type=click.IntRange(min=1, max=2**31 - 1),
        default=DEFAULT_MAX_TOKENS,
        help=f"Most tokens to generate, for rows that don't say; for chats {DEFAULT_CHAT_MAX_TOKENS}, unless given.",
    ),
    option(
        "--temperature",
        type=Number(min=0, max=2),
        default=DEFAULT_TEMPERATURE,
        help="Sampling temperature; 0 takes the likeliest token.",
    ),
    option(
        "--top-p",
        type=Number(min=0, max=1),
        default=DEFAULT_TOP_P,
        help="Nucleus sampling: draw from the likeliest tokens that hold this probability; 0 takes the likeliest.",
    ),
    option(
        "--top-k",
        type=click.IntRange(min=-1, max=2**31 - 1),
        default=0,
        callback=lambda ctx, param, value: max(value, 0),
        help="Draw from this many of the likeliest tokens; 0 for all.",
    ),
    option(
        "--min-p",
        type=Number(min=0, max=1),
        default=0.0,
        help="Draw from the tokens that are at least this share as likely as the likeliest.",
    ),
    option(
        "--repetition-penalty",
        type=Number(min=0.01, max=100),
        default=1.0,
        help="Above 1, tokens of the prompt and the text become less likely; below, likelier.",
    ),
    option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=_no_empty_text,
        help="End before this text; can be given several times. In bash, $'\\n' is a newline.",
    ),
    option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="Further variables for the chat template, an object such as '{\"enable_thinking\": false}'; those of "
        "a row go before them.",
    ),
    option(
        "--reasoning",
        type=click.Choice([each.value for each in Reasoning]),
        help="What becomes of a model's thoughts in chats: a column `reasoning` beside the text, a part of the "
        "text, or none are to be had. [default: split where the model is known here and reasons, else keep]",
    ),
    option(
        "--seed",
        type=click.IntRange(min=0, max=2**63 - 1),
        help="Seed of the job, from which every row without a seed derives its own. [default: drawn at submit, and "
        "noted in manifest.json]",
    ),
    _constraint_options,
    _answer_options,
)


def read_template(value: str | None) -> str | None:
    """The template that `--template` gives: the text itself, or that of `@FILE`. Raises InputError.

    The newline that editors end a file with is left out: as the last character of a prompt it changes completions.
    """
    return None if value is None else _read_text("--template", value, what="the template")


def _read_text(option: str, value: str, *, what: str) -> str:
    """The text that an option gives: its value, or what is in `@FILE`. Raises InputError."""
    from batcher.paths import expand_home
    from batcher.submission.readers.paths import shown_path

    if not value.startswith("@"):
        return value
    path = Path(expand_home(value[1:]))
    value = shown_path(value)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LINE_BYTES + 1)
        if len(data) > MAX_LINE_BYTES:
            raise InputError(
                f"{option} {value}: is longer than {MAX_LINE_BYTES >> 20} MB, as no prompt may be; shorten it"
            )
        # Not "utf-8": Windows' editors put a byte order mark in front, which would be in every prompt.
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as exc:
        raise InputError(f"{option} {value}: not UTF-8 at byte {exc.start}; save the file as UTF-8") from exc
    except OSError as exc:
        raise InputError(
            f"{option} {value}: cannot read the file: {exc.strerror or exc}; "
            f"give its path after the @, or {what} itself"
        ) from exc
    return text.removesuffix("\n")


def submit_options(
    *,
    default_model: str | None,
    known_models: frozenset[str] | None,
    context_lengths: Mapping[str, int] | None = None,
    models_reason: bool | None = None,
    template: str | None,
    system: str | None,
    allow_bad_rows: bool,
    strict: bool,
    limit: int | None,
    sample: int | None,
    stop: tuple[str, ...],
    chat_template_kwargs: str | None,
    **others: Any,
) -> "SubmitOptions":
    """What the planner takes, from the parameters of `input_options` and `sampling_options` as click gives them.

    A command declares `**rows: Any` and calls `submit_options(default_model=..., known_models=..., **rows)`. `others`
    are taken as Python callers give them.
    """
    from batcher.api import options as api
    from batcher.openai.fields import MAX_STOPS

    if strict and allow_bad_rows:
        raise click.UsageError("--strict and --allow-bad-rows contradict each other; give one of them")
    if limit and sample:
        raise click.UsageError("--limit and --sample contradict each other; give one of them")
    if len(stop) > MAX_STOPS:
        raise click.BadParameter(f"{len(stop)} stop strings; at most {MAX_STOPS}", param_hint="--stop")
    context = click.get_current_context(silent=True)
    if context is not None and context.get_parameter_source("max_tokens") is ParameterSource.DEFAULT:
        del others["max_tokens"]  # So that chats have their own.
    given = {
        **others,
        "template": read_template(template),
        "system": None if system is None else _read_text("--system", system, what="the message"),
        "allow_bad_rows": allow_bad_rows,
        "strict": strict,
        "limit": limit,
        "sample": sample,
        "stop": stop,
        "chat_template_kwargs": None if chat_template_kwargs is None else _read_object(chat_template_kwargs),
    }
    return api.submit_options(
        {name: value for name, value in given.items() if value is not None},
        default_model=default_model,
        known_models=known_models,
        context_lengths=context_lengths or {},
        models_reason=models_reason,
    )


def _read_object(text: str) -> dict[str, Any]:
    """The object that `--chat-template-kwargs` gives. Raises InputError."""
    from batcher.openai.bodies import read_json

    try:
        value, _ = read_json(text.encode(errors="replace"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        example = '{"enable_thinking": false}'
        raise InputError(f"--chat-template-kwargs {text}: not a JSON object; write one, such as {example}")
    return value


def say_shortage(selection: "RowSelection", num_rows: int) -> None:
    """Say where an input gave fewer rows than were asked for."""
    if shortage := selection.find_shortage(num_rows):
        click.echo(f"Note: {shortage}.", err=True)


def with_stdin(files: Sequence[str]) -> "list[Input]":
    """FILE... with standard input in place of `-`. Raises InputError where it is named twice."""
    from batcher.submission.readers.files import NamedStream

    if files.count("-") > 1:
        raise InputError("standard input (-) is named twice; it can be read once")
    return [NamedStream(sys.stdin.buffer) if name == "-" else name for name in files]
