"""The channel between the server and the process of its engines: a frame is a line of JSON, in both directions.

The other side begins with a `Hello`. The server sends `Submit`, `Cancel` and `AskStats`, numbering its requests; the
other side answers with `Gained`, `Finished`, `Failed` and `Stats` under the same number. A request ends with the last
of its choices or with `Failed`; after a `Cancel` frames that were on their way may still come. Both sides are of one
installation, so there is no version. Bytes (of tokens, in log-probabilities) travel as base64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from batcher.types import Choice, Delta, EngineStats, Request, RowError

# Infinities by name: by default they become null, which is no log-probability.
_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants")


@dataclass(frozen=True, slots=True)
class Submit:
    """Complete a request of `client`. `job_seed` gives the seed of those that have none."""

    number: int
    request: Request
    is_streaming: bool
    timeout_s: float | None
    job_seed: int
    client: str
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this request any more."""

    number: int
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class AskStats:
    """Say how the engines are."""

    number: int
    kind: Literal["ask"] = "ask"


@dataclass(frozen=True, slots=True)
class Gained:
    """What a choice has gained."""

    number: int
    delta: Delta
    kind: Literal["gained"] = "gained"


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice."""

    number: int
    choice: Choice
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has no answer."""

    number: int
    error: RowError
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of the engines' process: their fingerprints, by model. It answers nothing: no number is -1."""

    system_fingerprints: dict[str, str | None]
    number: int = -1
    kind: Literal["hello"] = "hello"


@dataclass(frozen=True, slots=True)
class Stats:
    """The engines, by model."""

    number: int
    engines: dict[str, EngineStats]
    kind: Literal["stats"] = "stats"


Question = Submit | Cancel | AskStats
Answer = Hello | Gained | Finished | Failed | Stats

_QUESTION: TypeAdapter[Question] = TypeAdapter(Annotated[Question, Field(discriminator="kind")], config=_CONFIG)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="kind")], config=_CONFIG)


def encode_question(question: Question) -> bytes:
    """One line."""
    return _QUESTION.dump_json(question) + b"\n"


def decode_question(line: bytes) -> Question:
    return _QUESTION.validate_json(line)


def encode_answers(answers: Sequence[Answer]) -> bytes:
    """A line for each."""
    return b"".join([_ANSWER.dump_json(answer) + b"\n" for answer in answers])


def decode_answer(line: bytes) -> Answer:
    return _ANSWER.validate_json(line)
