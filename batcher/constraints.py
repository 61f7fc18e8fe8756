"""What a completion can be held to, as users write it: schemas, choices, regular expressions, grammars.

The functions make a `Constraint` of a value, or raise ValueError that says what it is instead and what to do: it goes
behind the name of the option or field. They look at the value's form alone, in time and memory in proportion to it.
Whether a schema or a grammar can be kept to is known where it is compiled.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from batcher.types import Choice, Constraint, ConstraintKind, SamplingParams

#: Characters of a constraint. Each request has it along, and its engine compiles it.
MAX_CHARS = 1_000_000
#: Of a grammar, and of a regular expression or of all patterns of a schema: to compile one can take time and memory
#: that grow with the square of it.
MAX_GRAMMAR_CHARS = 100_000
MAX_PATTERN_CHARS = 10_000
#: Strings of a choice.
MAX_CHOICES = 10_000
#: Those that are scored: each takes a step or more of every prompt.
MAX_SCORED = 1_000
#: Objects and arrays inside of each other in a schema.
MAX_DEPTH = 100

#: Parameters that mean something where labels are scored, or don't matter.
_BESIDE_SCORES = frozenset(
    (
        *("constraint", "temperature", "seed", "max_tokens", "clips_max_tokens", "suffix"),
        # Behind the prompt of a chat no thoughts come.
        *("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "reasoning"),
    )
)
_USUAL = SamplingParams()

#: How grammars of Lark, as llguidance takes them, are told from those of llama.cpp.
_IS_LARK = re.compile(r"^\s*(%llguidance\b|start\s*:(?!:=))", re.MULTILINE)

#: What has a regular expression in a schema: the second in llguidance's own `x-guidance`.
_PATTERNS = ("pattern", "whitespace_pattern")

_SCHEMA_REMEDY = "use a JSON schema, which is an object, or true for any JSON"

JSON_OBJECT = Constraint(ConstraintKind.JSON_OBJECT)


def json_schema(schema: Any) -> Constraint:
    """Of a JSON schema, as a value or as its JSON text."""
    if isinstance(schema, str):
        if len(schema) > MAX_CHARS:
            raise _too_long(len(schema))
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"is no JSON ({exc}); {_SCHEMA_REMEDY}") from exc
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError(f"is {_kind(schema)}; {_SCHEMA_REMEDY}")
    if _is_deeper(schema, MAX_DEPTH):
        raise ValueError(f"has more than {MAX_DEPTH} levels; use $ref and $defs for what repeats")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as exc:
        raise ValueError(f"is no JSON ({exc}); {_SCHEMA_REMEDY}") from exc
    if (num_chars := _num_pattern_chars(schema)) > MAX_PATTERN_CHARS:
        raise ValueError(f"has patterns of {num_chars:,} characters; use at most {MAX_PATTERN_CHARS:,} in all")
    return _bounded(ConstraintKind.JSON_SCHEMA, text)


def choice(choices: Sequence[str]) -> Constraint:
    """Of the texts that a completion may be."""
    if isinstance(choices, str) or not all(isinstance(each, str) and each for each in choices):
        raise ValueError("has what is no text; use strings that are not empty")
    distinct = list(dict.fromkeys(choices))
    if not distinct:
        raise ValueError("is empty; give the texts that a completion may be")
    if len(distinct) > MAX_CHOICES:
        raise ValueError(f"has {len(distinct):,} texts; use at most {MAX_CHOICES:,}")
    return _bounded(ConstraintKind.CHOICE, json.dumps(distinct, ensure_ascii=False, separators=(",", ":")))


def scored_choice(choices: Sequence[str]) -> Constraint:
    """Of the texts whose probabilities are wanted, of which the completion is the likeliest."""
    found = choice(choices)
    num_choices = len(found.labels)
    if num_choices > MAX_SCORED:
        raise ValueError(f"has {num_choices:,} texts; use at most {MAX_SCORED:,} with scores")
    return Constraint(ConstraintKind.SCORED_CHOICE, found.text)


def find_unscorable(params: SamplingParams) -> str:
    """The parameter that says how tokens are drawn, where labels are scored and none is; "" if there is no such."""
    if params.constraint is None or params.constraint.kind is not ConstraintKind.SCORED_CHOICE:
        return ""
    names = (field.name for field in fields(params) if field.name not in _BESIDE_SCORES)
    return next((name for name in names if getattr(params, name) != getattr(_USUAL, name)), "")


def label_scores(choice: Choice, params: SamplingParams) -> dict[str, float] | None:
    """The probability of each label, if they were scored: one of them is certain, and a higher temperature brings them
    closer to each other. At 0, where the likeliest is taken, they are those of 1."""
    if choice.label_logprobs is None or params.constraint is None:
        return None
    # Divided last: by a very small temperature all would be infinite.
    highest = max(choice.label_logprobs)
    weights = [math.exp((each - highest) / (params.temperature or 1.0)) for each in choice.label_logprobs]
    total = sum(weights)
    return {label: weight / total for label, weight in zip(params.constraint.labels, weights, strict=True)}


def regex(pattern: str) -> Constraint:
    """Of a regular expression that the whole completion must match."""
    if not isinstance(pattern, str) or not pattern:
        problem = "empty" if pattern == "" else _kind(pattern)
        raise ValueError(f"is {problem}; use a regular expression that the whole text must match")
    return _bounded(ConstraintKind.REGEX, pattern, MAX_PATTERN_CHARS)


def grammar(text: str) -> Constraint:
    """Of a context-free grammar, in the notation of Lark or GBNF."""
    if not isinstance(text, str) or not text.strip():
        problem = "empty" if isinstance(text, str) else _kind(text)
        raise ValueError(f"is {problem}; use a grammar of Lark, with a rule start, or of GBNF, with a rule root")
    kind = ConstraintKind.LARK if _IS_LARK.search(text) else ConstraintKind.GBNF
    return _bounded(kind, text, MAX_GRAMMAR_CHARS)


def is_grammar(text: str) -> bool:
    """Whether a text, such as a line, has a rule of one of the notations."""
    return "::=" in text or _IS_LARK.search(text) is not None


def _bounded(kind: ConstraintKind, text: str, max_chars: int = MAX_CHARS) -> Constraint:
    if len(text) > max_chars:
        raise _too_long(len(text), max_chars)
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"is no text ({exc.reason}); use characters that UTF-8 has") from exc
    return Constraint(kind, text)


def _too_long(num_chars: int, max_chars: int = MAX_CHARS) -> ValueError:
    return ValueError(f"has {num_chars:,} characters; use at most {max_chars:,}")


def _num_pattern_chars(schema: Any) -> int:
    """The characters of all that a schema has as regular expressions, or could have."""
    num_chars, waiting = 0, [schema]
    while waiting:
        value = waiting.pop()
        waiting += _inside(value)
        if isinstance(value, dict):
            num_chars += sum(len(value[key]) for key in _PATTERNS if isinstance(value.get(key), str))
            named = value.get("patternProperties")
            num_chars += sum(map(len, named)) if isinstance(named, dict) else 0
    return num_chars


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether more than `depth` objects and arrays lie inside of each other."""
    level = [value]
    for _ in range(depth):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    """The objects and arrays in one."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in values if isinstance(each, dict | list)]


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {type(None): "null", bool: "false", list: "an array", int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
