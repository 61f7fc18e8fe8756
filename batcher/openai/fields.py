"""The fields of the bodies of both requests, live and in batch lines: what each means, and what becomes of it.

A field is *honoured*; or *harmless*: accepted, as no answer depends on it; or *refused*: it would change the answer and
is not supported, so it is taken only at a value that asks for nothing. A field that is in no table is unknown, and
refused as well: nobody can say what it would have changed. Null is the default of every field, and of unknown ones.

This is the one place of a field. The models that check bodies and rows (`parameters`), what becomes a request
(`bodies`), the columns that plain rows may opt in to (`row_params`), the OpenAPI schemas and docs/serving.md follow
from it. To add a parameter: `SamplingParams`, an entry here, and what it changes in `workers/engines/llama/sampling`.
Its column in shard files follows from its type.

Names, types and bounds are OpenAI's, else vLLM's (vllm/entrypoints/openai/completion/protocol.py, sampling_params.py).
"""

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from batcher.openai.body_field import BodyField, Of, Use, array, integer, number, text
from batcher.openai.constraint_fields import CONSTRAINTS
from batcher.openai.tool_fields import TOOL_FIELDS
from batcher.openai.unsupported_fields import HARMLESS, REFUSED

MAX_STOPS = 16
#: Each completion of a request keeps them as bytes.
MAX_STOP_CHARS = 1024
#: The shard format keeps counts and token ids in 32 bits and seeds in 64, signed. Of a seed the lower 32 bits matter.
MAX_INT32 = 2**31 - 1
MAX_MAX_TOKENS = MAX_INT32
MAX_SEED = 2**63 - 1
#: Of the documented API, as the bounds below.
MAX_CHOICES = 128
MAX_BIASES = 1024
MAX_MESSAGES = 2048
#: Each step of a completion looks for them.
MAX_STOP_TOKENS = 1024
MAX_BAD_WORDS = 1024


def _few_entries(value: Any) -> Any:
    # Before its entries are checked, so that a long object of wrong ones makes no long list of errors.
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"more than {MAX_BIASES} entries")
    return value


_Tokens = integer(1, MAX_MAX_TOKENS)
_Text = text(MAX_STOP_CHARS)
_Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")], Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_few_entries),
    Field(json_schema_extra={"maxProperties": MAX_BIASES, "additionalProperties": False}),
]


def _strings(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _biases(value: dict[str, float]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted((int(token), bias) for token, bias in value.items()))


def _all_if_negative(top_k: int) -> int:
    return max(top_k, 0)


def variables_text(value: Mapping[str, Any]) -> str:
    """The JSON text of a template's variables, the same for equal ones; empty for none.

    Raises ValueError for numbers that are not finite.
    """
    return (
        json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")) if value else ""
    )


def _honoured(name: str, annotation: Any, remedy: str, **more: Any) -> BodyField:
    return BodyField(name, Use.HONOURED, remedy, annotation=annotation, **{"param": name, **more})


def _by_hand(name: str, remedy: str, **more: Any) -> BodyField:
    """A field that sets no parameter of its own."""
    return BodyField(name, Use.HONOURED, remedy, **more)


_BOOLEAN = "use true or false"
_PENALTY = "use a number from -2 to 2"
_REPETITION = "use a number from 0.01 to 100"
_STOPS = f"a string of 1 to {MAX_STOP_CHARS} characters, or an array of at most {MAX_STOPS} of them"
_OPENAIS_PENALTY = "by OpenAI's formula, over the tokens generated"
_REASONING = 'use "split", "keep" or "off"; how much a model reasons is said by reasoning_effort'
_LOGPROBS = "log-probabilities of the tokens, by the model's own softmax, before temperature, bias and penalties"
_FOR_THE_TEMPLATE = "a variable for the chat template, which may have no use for it"

#: The parameters that plain rows have without being asked.
_OF_ROWS = (
    _honoured(
        "max_tokens",
        _Tokens,
        "use a positive integer",
        values="integer from 1",
        default="16; of chats 1024, or what the context has room for",
        meaning="most tokens to generate",
    ),
    _honoured(
        "temperature",
        number(0, 2),
        "use a number from 0 to 2",
        values="0 to 2",
        default="1",
        meaning="0 takes the likeliest token",
    ),
    _honoured(
        "top_p",
        number(0, 1),
        "use a number from 0 to 1",
        values="0 to 1",
        default="1",
        meaning="draw from the likeliest tokens that hold this probability; 0 takes the likeliest",
    ),
    _honoured(
        "stop",
        _Text | array(_Text, MAX_STOPS),
        f"use {_STOPS}",
        values=_STOPS,
        default="none",
        meaning="the text ends before the first of these",
        convert=_strings,
    ),
    _honoured(
        "seed",
        integer(-MAX_SEED - 1, MAX_SEED),
        "use an integer of at most 64 bits",
        values="integer of 64 bits",
        default="drawn",
        meaning="the same seed draws the same",
    ),
)

_OF_BODIES = (
    _by_hand("model", "use a string", values="string", meaning="a model that is served"),
    _by_hand(
        "prompt",
        "use a string, or a non-empty array of strings or of token ids",
        of=Of.TEXT,
        values="string, array of token ids, or array of those",
        meaning="an array of several completes each",
    ),
    _by_hand(
        "messages",
        f"use an array of 1 to {MAX_MESSAGES} objects with role and content",
        of=Of.CHAT,
        values=f"array of 1 to {MAX_MESSAGES} objects",
        meaning="the model's own chat template makes a prompt of them",
    ),
    _by_hand("stream", _BOOLEAN, values="boolean", default="false", meaning="send the answer as it is generated"),
    _by_hand(
        "stream_options",
        'use an object such as {"include_usage": true}',
        values="object",
        default="none",
        meaning='`{"include_usage": true}`: one more chunk with the usage; only with `stream`',
    ),
    _honoured(
        "max_completion_tokens",
        _Tokens,
        "use a positive integer",
        param="max_tokens",
        values="integer from 1",
        meaning="the same as `max_tokens`",
    ),
    _honoured(
        "n",
        integer(1, MAX_CHOICES),
        f"use an integer from 1 to {MAX_CHOICES}",
        values=f"1 to {MAX_CHOICES}",
        default="1",
        meaning="choices of each prompt; choice i belongs to prompt i // n",
    ),
    _honoured(
        "best_of",
        integer(1, MAX_CHOICES),
        f"use an integer from n to {MAX_CHOICES}",
        of=Of.TEXT,
        values=f"`n` to {MAX_CHOICES}",
        default="`n`",
        meaning="completions made of each prompt, of which the n likeliest by the token are given; not streamed",
    ),
    _honoured(
        "echo",
        bool,
        _BOOLEAN,
        of=Of.TEXT,
        values="boolean",
        default="false",
        meaning="the prompt in front of the text, token ids as what they stand for; with it `max_tokens` may be 0",
    ),
    _honoured(
        "suffix",
        str,
        "use a string",
        of=Of.TEXT,
        values="string",
        default="none",
        meaning="what comes after the text; only for models trained to fill in",
    ),
    _honoured(
        "logprobs",
        integer(0, 5),
        "use an integer from 0 to 5",
        of=Of.TEXT,
        values="0 to 5",
        default="none",
        meaning=_LOGPROBS,
    ),
    _honoured(
        "logprobs",
        bool,
        "use true or false, and top_logprobs for how many",
        of=Of.CHAT,
        param=None,
        values="boolean",
        default="false",
        meaning=_LOGPROBS,
    ),
    _honoured(
        "top_logprobs",
        integer(0, 20),
        "use an integer from 0 to 20",
        of=Of.CHAT,
        param=None,
        values="0 to 20",
        default="0",
        meaning="how many of the likeliest tokens `logprobs` gives at each place",
    ),
)

_PENALTIES_AND_BIAS = (
    _honoured("presence_penalty", number(-2, 2), _PENALTY, values="-2 to 2", default="0", meaning=_OPENAIS_PENALTY),
    _honoured("frequency_penalty", number(-2, 2), _PENALTY, values="-2 to 2", default="0", meaning=_OPENAIS_PENALTY),
    _honoured(
        "logit_bias",
        _Bias,
        f"use an object of at most {MAX_BIASES} token ids, as strings, each with a number from -100 to 100",
        values="object of token ids with -100 to 100",
        default="none",
        meaning="added to the logits of these tokens",
        convert=_biases,
    ),
)

#: What OpenAI does not document; the names and meanings are vLLM's.
_EXTENSIONS = (
    _honoured(
        "top_k",
        integer(-1, MAX_INT32),
        "use a positive integer, or 0 for all tokens",
        values="integer from -1",
        default="0",
        meaning="draw from this many of the likeliest tokens; 0 and -1 mean all",
        convert=_all_if_negative,
    ),
    _honoured(
        "min_p",
        number(0, 1),
        "use a number from 0 to 1",
        values="0 to 1",
        default="0",
        meaning="draw from the tokens that are at least this share as likely as the likeliest",
    ),
    _honoured(
        "repetition_penalty",
        number(0.01, 100),
        _REPETITION,
        values="0.01 to 100",
        default="1",
        meaning="above 1, tokens of the prompt and the text become less likely; below, likelier",
    ),
    _honoured(
        "repeat_penalty",
        number(0.01, 100),
        _REPETITION,
        param="repetition_penalty",
        values="0.01 to 100",
        meaning="the same as `repetition_penalty`",
    ),
    _honoured(
        "min_tokens",
        integer(0, MAX_INT32),
        "use an integer from 0 to max_tokens",
        values="0 to `max_tokens`",
        default="0",
        meaning="nothing ends the text before so many tokens",
    ),
    _honoured(
        "ignore_eos",
        bool,
        _BOOLEAN,
        values="boolean",
        default="false",
        meaning="the model's own end does not end the text",
    ),
    _honoured(
        "stop_token_ids",
        array(integer(0, MAX_INT32), MAX_STOP_TOKENS),
        f"use an array of at most {MAX_STOP_TOKENS} token ids",
        values=f"array of at most {MAX_STOP_TOKENS} token ids",
        default="none",
        meaning="tokens that end the text as the model's own end does",
        convert=_distinct,
    ),
    _honoured(
        "include_stop_str_in_output",
        bool,
        _BOOLEAN,
        values="boolean",
        default="false",
        meaning="the stop string that ended the text stays in it",
    ),
    _honoured(
        "bad_words",
        array(_Text, MAX_BAD_WORDS),
        f"use an array of at most {MAX_BAD_WORDS} strings, each of 1 to {MAX_STOP_CHARS} characters",
        values=f"array of at most {MAX_BAD_WORDS} strings",
        default="none",
        meaning="what is never generated",
        convert=_distinct,
    ),
)

_OF_CHATS = (
    _honoured(
        "add_generation_prompt",
        bool,
        _BOOLEAN,
        of=Of.CHAT,
        values="boolean",
        default="true; false with `continue_final_message`",
        meaning="the template opens the answer",
    ),
    _honoured(
        "continue_final_message",
        bool,
        _BOOLEAN,
        of=Of.CHAT,
        values="boolean",
        default="false",
        meaning="the answer goes on with the text of the last message",
    ),
    _honoured(
        "chat_template_kwargs",
        dict[str, Any],
        "use an object of variables for the chat template",
        of=Of.CHAT,
        param=None,
        values="object",
        default="none",
        meaning='further variables for the chat template, such as `{"enable_thinking": false}`',
    ),
    _honoured(
        "reasoning",
        Literal["split", "keep", "off"],
        _REASONING,
        of=Of.CHAT,
        values="`split`, `keep` or `off`",
        default="`split`; of rows as in docs/results.md",
        meaning="what becomes of a model's thoughts: told apart, left in the text, or not thought",
    ),
    _honoured(
        "reasoning_effort",
        _Text,
        'use a string such as "low"',
        of=Of.CHAT,
        param=None,
        values="string",
        default="none",
        meaning=f'{_FOR_THE_TEMPLATE}; so is `enable_thinking`, false at `"none"`',
    ),
    _honoured(
        "verbosity",
        _Text,
        'use a string such as "low"',
        of=Of.CHAT,
        param=None,
        values="string",
        default="none",
        meaning=_FOR_THE_TEMPLATE,
    ),
    _honoured(
        "documents",
        array(dict[str, Any], MAX_MESSAGES),
        f"use an array of at most {MAX_MESSAGES} objects",
        of=Of.CHAT,
        param=None,
        values="array of objects",
        default="none",
        meaning=_FOR_THE_TEMPLATE,
    ),
)

HONOURED = (*_OF_ROWS, *_OF_BODIES, *_PENALTIES_AND_BIAS, *_EXTENSIONS, *CONSTRAINTS, *_OF_CHATS, *TOOL_FIELDS)
FIELDS: tuple[BodyField, ...] = (*HONOURED, *HARMLESS, *REFUSED)


def _by_name(request: Of) -> dict[str, BodyField]:
    return {field.name: field for field in FIELDS if request in field.of}


#: By whether the request is a chat, then by name.
BY_NAME: Mapping[bool, Mapping[str, BodyField]] = {False: _by_name(Of.TEXT), True: _by_name(Of.CHAT)}
#: The fields that set one parameter each, by whether the request is a chat.
PARAMETERS: Mapping[bool, Mapping[str, BodyField]] = {
    is_chat: {name: field for name, field in known.items() if field.param is not None}
    for is_chat, known in BY_NAME.items()
}

#: The fields that say how a request is sampled: what may change where the rest of it stays as it is.
SAMPLING_FIELDS = (
    *(field.name for field in (*_OF_ROWS, *_PENALTIES_AND_BIAS, *_EXTENSIONS)),
    "max_completion_tokens",
)

#: The fields that a plain row has anyway, beside its prompt and model, and those that it has where it is asked to.
PARAM_FIELDS = tuple(field.name for field in _OF_ROWS)
OPTIONAL_ROW_FIELDS = tuple(
    dict.fromkeys(field.name for field in HONOURED if field.annotation is not None and field not in _OF_ROWS)
)


def closest(name: str, *, is_chat: bool) -> str | None:
    """The honoured field that an unknown one may have been meant for."""
    known = [field.name for field in BY_NAME[is_chat].values() if field.use is Use.HONOURED]
    return next(iter(difflib.get_close_matches(name[:60], known, n=1, cutoff=0.75)), None)
