"""Answers that a job does not take: whether their rows are computed again, and with what.

Each row is finished once, by its last try. Tries belong to an attempt: a row that was not finished when its attempt
ended begins anew, with the same seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from batcher.jobdir.manifest import Manifest
from batcher.jobdir.optional_columns import ResultRow, misfit
from batcher.types import (
    TAKE_ALL,
    Choice,
    ConstraintKind,
    ErrorCode,
    FinishReason,
    OnTruncation,
    Request,
    RowError,
    splitmix64,
)

#: Asked of an answer, as JSON's value where its constraint makes it JSON, else as text. It refuses by False, by a text
#: that says why, or by raising; None and True take it.
Validator = Callable[[Any], object]

_MAX_TOKENS = 2**31 - 1
_JSON_KINDS = (ConstraintKind.JSON_SCHEMA, ConstraintKind.JSON_OBJECT)
#: Characters of what a message has of an answer, and of a reason that is not ours.
_QUOTED_CHARS = 200


@dataclass(frozen=True, slots=True)
class _Try:
    """How often a row was refused, whether it has been given more tokens, and what it had with fewer."""

    num_refused: int = 0
    is_longer: bool = False
    cut_off: tuple[Choice, ...] = ()


class Tries:
    """The tries of the rows of a shard. Mutable."""

    def __init__(self, manifest: Manifest, validator: Validator | None) -> None:
        self._rules = manifest.answers
        self._constraint = manifest.defaults.constraint
        self._optional = manifest.optional
        self._job_seed = manifest.seed
        self._validator = validator
        #: By row. Only of rows that are computed again.
        self._tries: dict[int, _Try] = {}

    def judge(self, request: Request, choices: Sequence[Choice]) -> Request | RowError | None:
        """What becomes of a row with these answers: None where it is finished, its error, or how it is computed again.

        `request` is the row's own, whatever its last try was.
        """
        if self._rules == TAKE_ALL:
            return None
        last = self._tries.pop(request.row, _Try())
        if any(choice.finish_reason is FinishReason.LENGTH for choice in choices):
            if self._rules.on_truncation is OnTruncation.FAIL:
                return _truncated(request)
            if self._rules.on_truncation is OnTruncation.RETRY and not last.is_longer:
                return self._again(request, replace(last, is_longer=True, cut_off=tuple(choices)))
        fault = next(filter(None, (self._find_fault(request, choice) for choice in choices)), None)
        if fault is None:
            return None
        if last.num_refused < self._rules.retry_invalid and not _is_settled(request):
            return self._again(request, replace(last, num_refused=last.num_refused + 1, cut_off=()))
        return RowError(ErrorCode.INVALID_ANSWER, f"{fault}{_said_of_tries(request, last.num_refused + 1)}")

    def kept(self, request: Request) -> tuple[Choice, ...]:
        """The answers of a row whose try failed: those that were cut off, if it was to make them longer."""
        return self._tries.pop(request.row, _Try()).cut_off

    def _again(self, request: Request, further: _Try) -> Request:
        self._tries[request.row] = further
        params = request.params
        if further.is_longer:
            params = replace(params, max_tokens=min(2 * params.max_tokens, _MAX_TOKENS), clips_max_tokens=True)
        if further.num_refused:
            first = request.choice_seed(0, job_seed=self._job_seed)
            params = replace(params, seed=splitmix64(splitmix64(first) ^ further.num_refused) >> 1)
        return replace(request, params=params)

    def _find_fault(self, request: Request, choice: Choice) -> str | None:
        """What is wrong with an answer; None where nothing is, or where it was cut off."""
        row = ResultRow(request, choice)
        answer = row.answer
        if answer is None or (self._validator is None and not self._rules.retry_invalid):
            return None
        constraint = request.params.constraint
        reason = misfit(self._optional, row) if constraint == self._constraint else ""
        if not reason and self._validator is not None:
            is_json = constraint is not None and constraint.kind in _JSON_KINDS
            reason = _ask(self._validator, answer, is_json=is_json)
        return f"the answer {_quoted(answer)} was refused: {reason}" if reason else None


def _ask(validator: Validator, answer: str, *, is_json: bool) -> str:
    """Why a validator refuses an answer; "" where it takes it. What it raises is a refusal, too."""
    try:
        value = from_json(answer, allow_inf_nan=False) if is_json else answer
    except ValueError as exc:
        return f"it is no JSON ({exc})"
    try:
        verdict = validator(value)
    except (ValueError, AssertionError) as exc:
        # As whoever refuses raises them.
        return _short(str(exc)) or type(exc).__name__
    except Exception as exc:
        return _short(f"{type(exc).__name__}: {exc}")
    if verdict is None or verdict is True:
        return ""
    return _short(verdict) if isinstance(verdict, str) and verdict else "the validator says no"


def _truncated(request: Request) -> RowError:
    return RowError(
        ErrorCode.TRUNCATED,
        f"max_tokens is {request.params.max_tokens:,}, and the answer was longer; `batcher retry` with "
        "--set max_tokens=N gives it more",
    )


def _said_of_tries(request: Request, number: int) -> str:
    if _is_settled(request):
        return "; without sampling another try would give the same"
    return f" (the last of {number} tries)" if number > 1 else ""


def _is_settled(request: Request) -> bool:
    """Whether all seeds give the same text."""
    params = request.params
    is_scored = params.constraint is not None and params.constraint.kind is ConstraintKind.SCORED_CHOICE
    return is_scored or params.is_greedy


def _quoted(text: str) -> str:
    return repr(_short(text))


def _short(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}..."
