"""What can be said of a field of a body, and the types that values have. `fields` has the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, StrEnum
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field


class Use(StrEnum):
    """What becomes of a field."""

    HONOURED = "honoured"
    HARMLESS = "harmless"
    REFUSED = "refused"


class Of(Flag):
    """The requests that a field belongs to."""

    TEXT = 1
    CHAT = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class BodyField:
    """A field of a body.

    `remedy` ends every message about a wrong value: what to do instead. `values`, `default` and `meaning` are for the
    documentation; of a harmless field `meaning` is what it is about. `nothing` are the values of a refused field that
    ask for nothing, beside null.

    Of an honoured field `annotation` is the pydantic type of its value, None where `parameters` declares it by hand;
    `param` is the field of `SamplingParams` that it sets, None where it is not as simple as that; `convert` makes the
    parameter of a checked value.
    """

    name: str
    use: Use
    remedy: str = ""
    of: Of = Of.BOTH
    values: str = ""
    default: str = ""
    meaning: str = ""
    nothing: tuple[Any, ...] = ()
    annotation: Any = None
    param: str | None = None
    convert: Callable[[Any], Any] | None = None

    @property
    def is_compound(self) -> bool:
        """Whether its values are arrays or objects."""
        kind = get_args(self.annotation)[0] if get_origin(self.annotation) is Annotated else self.annotation
        kinds = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
        return any(get_origin(each) in (list, dict) or _is_model(each) for each in kinds)

    def asks_for_nothing(self, value: Any) -> bool:
        """Whether a refused field may have this value. Takes no longer for a large value."""
        return any(_is_same(value, neutral) for neutral in self.nothing)


def harmless(meaning: str, *names: str, of: Of = Of.BOTH) -> tuple[BodyField, ...]:
    """Fields that are accepted, as no answer depends on them."""
    return tuple(BodyField(name, Use.HARMLESS, of=of, meaning=meaning) for name in names)


def refused(remedy: str, *, of: Of = Of.BOTH, **nothing: tuple[Any, ...]) -> tuple[BodyField, ...]:
    """Fields that are not supported, each with the values that ask for nothing."""
    return tuple(BodyField(name, Use.REFUSED, remedy, of=of, nothing=values) for name, values in nothing.items())


def integer(least: int, most: int) -> Any:
    """The type of integers of a range, both ends included; exact doubles are taken."""
    # After the bounds: they are the integer's, and so its JSON schema has them.
    return Annotated[int, Field(ge=least, le=most), BeforeValidator(_exact_int)]


def number(least: float, most: float) -> Any:
    """The type of numbers of a range, both ends included."""
    return Annotated[float, Field(ge=least, le=most)]


def text(max_length: int) -> Any:
    """The type of strings that are not empty."""
    return Annotated[str, Field(min_length=1, max_length=max_length)]


def array(item: Any, max_length: int) -> Any:
    """The type of arrays, which may be empty."""
    # fail_fast: a long array of wrong values must not become a long list of errors.
    return Annotated[list[item], Field(max_length=max_length, fail_fast=True)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _exact_int(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def _is_same(value: Any, neutral: Any) -> bool:
    if isinstance(neutral, dict) and isinstance(value, dict):
        if len(value) > 10:
            return False
        value = {key: item for key, item in value.items() if item is not None}
    # In Python, but not in JSON, true is 1.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
