"""Conditions on the rows of a table, as in SQL's WHERE: `finish_reason = 'length' and completion_tokens > 40`.

    condition  = and-part { OR and-part }
    and-part   = part { AND part }
    part       = NOT part | ( condition ) | value comparison | boolean column
    comparison = (= | <> | != | < | <= | > | >=) value
               | [NOT] IN ( literal, ... ) | [NOT] BETWEEN value AND value
               | [NOT] LIKE 'pattern' | [NOT] ILIKE 'pattern' | IS [NOT] (NULL | TRUE | FALSE)
    value      = column | literal | LENGTH ( value ) | LOWER ( value ) | UPPER ( value )
    column     = name { . name }, a name with other characters than letters, digits and _ in double quotes
    literal    = 'text', 12, -0.5, 1e6, TRUE, FALSE

Null is as in SQL: what compares with it is neither true nor false, and such rows are left out. How values of each type
are compared is in `comparing`. A condition is checked against the columns when it is read, so that all that is wrong
with it is said before any row is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import reduce
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.comparing import (
    Literal,
    MisfitError,
    comparable,
    compare,
    compare_columns,
    is_among,
    lengths,
    matches,
    member,
    texts_by,
    truth,
)
from batcher.arrow.plain import plain_type
from batcher.errors import InputError

#: Makes of a table the column that a value stands for, or true, false or null for each row.
_Column = Callable[[pa.Table], pa.ChunkedArray]

_TOKEN = re.compile(
    r"""(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")*")"""
    r"|(?P<name>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|==|[=<>(),.+-])"
)
#: What stands between commas, and what is the path of a field.
_PARTS = re.compile(r'(?:"(?:[^"]|"")*"|[^,"])+')
_PATH = re.compile(r'(?:"(?:[^"]|"")*"|[^\W\d]\w*)(?:\s*\.\s*(?:"(?:[^"]|"")*"|[^\W\d]\w*))*')
_KEYWORDS = frozenset(("and", "or", "not", "in", "is", "null", "like", "ilike", "between", "true", "false"))
_OPERATORS = {"=": "=", "==": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_FLIPPED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_FUNCTIONS: dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]] = {
    "length": lengths,
    "lower": lambda column: texts_by(pc.utf8_lower, column),
    "upper": lambda column: texts_by(pc.utf8_upper, column),
}
#: Written in front of a text, they say no more than the column does.
_TYPES = frozenset(("date", "time", "timestamp"))

#: Parentheses and NOT in each other.
_MAX_DEPTH = 100
#: Columns that a message names.
_MAX_NAMED = 40
#: Where no column had another name before.
_NONE: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Condition:
    """What rows are asked for. `text` is as it was written; `columns` are those that a table must have for it."""

    text: str
    columns: tuple[str, ...]
    _holds: _Column

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Whether the condition holds for each row, without nulls. Raises InputError for values beyond all types."""
        try:
            return pc.fill_null(self._holds(table), False)
        except (MisfitError, pa.ArrowException) as exc:
            raise InputError(f"condition {self.text!r}: {exc}") from exc

    def filter(self, table: pa.Table) -> pa.Table:
        """The rows of a table for which the condition holds."""
        return table.filter(self.mask(table))


def parse_condition(text: str, schema: pa.Schema, *, renamed: Mapping[str, str] = _NONE) -> Condition:
    """Read a condition on tables of this schema. Raises InputError, which says what is wrong and where.

    `renamed` says what columns are called that have another name elsewhere, for who asks for them by that.
    """
    return _Parser(text, schema, renamed=renamed).parse()


def parse_conditions(
    texts: Iterable[str], schema: pa.Schema, *, renamed: Mapping[str, str] = _NONE
) -> Condition | None:
    """Read several, all of which must hold; None for none. Raises InputError."""
    found = [parse_condition(text, schema, renamed=renamed) for text in texts]
    if not found:
        return None
    columns = tuple(dict.fromkeys(name for each in found for name in each.columns))
    return Condition(
        " and ".join(f"({each.text})" for each in found),
        columns,
        _joined(pc.and_kleene, [each._holds for each in found]),
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A column that is asked for, or a field of structs in one. `name` is what it is called in what is made of it,
    `source` the column of the table that it is in."""

    name: str
    source: str
    _values: _Column

    def values(self, table: pa.Table) -> pa.ChunkedArray:
        """Its values in a table that has the column `source`. Shape: (rows of the table,)."""
        return self._values(table)


def parse_columns(
    texts: Iterable[str], schema: pa.Schema, *, what: str, renamed: Mapping[str, str] = _NONE
) -> list[Column]:
    """Columns of such tables by their names, each once: `custom_id`, `output.name`, several with commas between.

    A name with a comma or a point in it goes into double quotes. Raises InputError, which begins with `what` and names
    the columns that there are, also where no column is named. `renamed` is as for `parse_condition`.
    """
    found = []
    for text in texts:
        # Most names need no quotes here, as nothing but commas and points would end them.
        for part in [text] if text in schema.names else _PARTS.findall(text):
            if part.strip():
                found.append(_column_of(part.strip(), schema, what, renamed))
    if not found:
        raise InputError(f"{what}: no column is named; {_remedy('', schema.names, renamed)}")
    return list({column.name: column for column in found}.values())


def _column_of(text: str, schema: pa.Schema, what: str, renamed: Mapping[str, str]) -> Column:
    name = _find(text, schema.names)
    if name is not None:
        return Column(name, name, lambda table: table[name])
    if not _PATH.fullmatch(text) or not {'"', "."} & {*text}:
        raise InputError(f"{what}: there is no column {text!r}; {_remedy(text, schema.names, renamed)}")
    return _Parser(text, schema, what=what, renamed=renamed).parse_column()


def _joined(join: Callable[[pa.ChunkedArray, pa.ChunkedArray], pa.ChunkedArray], parts: Sequence[_Column]) -> _Column:
    return parts[0] if len(parts) == 1 else lambda table: reduce(join, (part(table) for part in parts))


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is that of _TOKEN, `keyword` or `end`; `text` what it means, `position` its first character, from 1."""

    kind: str
    text: str
    position: int


@dataclass(frozen=True, slots=True)
class _Value:
    """A column, or else a literal."""

    shown: str
    position: int
    column: _Column | None = None
    literal: Literal = ""


class _Parser:
    """Reads one condition. Mutable: it goes from token to token."""

    def __init__(self, text: str, schema: pa.Schema, *, renamed: Mapping[str, str], what: str = "condition") -> None:
        self._text = text
        self._what = what
        # Of plain types, as Arrow makes no empty column of a union.
        self._nothing = pa.schema([field.with_type(plain_type(field.type)) for field in schema]).empty_table()
        self._names: list[str] = schema.names
        self._renamed = renamed
        self._columns: dict[str, None] = {}
        self._tokens = self._read_tokens()
        self._next = 0
        self._depth = 0

    def parse(self) -> Condition:
        holds = self._condition()
        if self._token.kind != "end":
            self._fail(f"{self._token.text!r} is not expected here")
        return Condition(self._text, tuple(self._columns), holds)

    def parse_column(self) -> Column:
        value = self._path()
        (source,) = self._columns
        return Column(value.shown, source, self._column_of(value))

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _condition(self) -> _Column:
        return _joined(pc.or_kleene, self._list("or", self._and_part))

    def _and_part(self) -> _Column:
        return _joined(pc.and_kleene, self._list("and", self._part))

    def _list(self, word: str, read: Callable[[], _Column]) -> list[_Column]:
        parts = [read()]
        while self._take("keyword", word):
            parts.append(read())
        return parts

    def _part(self) -> _Column:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail(f"more than {_MAX_DEPTH} parentheses and NOT in each other")
        try:
            if self._take("keyword", "not"):
                return _not(self._part())
            if self._take("sign", "("):
                inner = self._condition()
                self._need("sign", ")")
                return inner
            return self._predicate()
        finally:
            self._depth -= 1

    def _predicate(self) -> _Column:
        value = self._value()
        token = self._token
        if token.kind == "sign" and token.text in _OPERATORS:
            self._next += 1
            return self._comparison(value, _OPERATORS[token.text], self._value())
        if self._take("keyword", "is"):
            return self._is(value)
        is_not = self._take("keyword", "not")
        if self._take("keyword", "in"):
            found = self._in(value)
        elif self._take("keyword", "between"):
            above = self._comparison(value, ">=", self._value())
            self._need("keyword", "and")
            found = _joined(pc.and_kleene, [above, self._comparison(value, "<=", self._value())])
        elif self._take("keyword", "like"):
            found = self._like(value, ignore_case=False)
        elif self._take("keyword", "ilike"):
            found = self._like(value, ignore_case=True)
        elif is_not or value.column is None:
            self._fail("a comparison is expected here: =, <>, <, <=, >, >=, IN, BETWEEN, LIKE, IS")
        else:
            found = self._truth(value)
        return _not(found) if is_not else found

    def _comparison(self, left: _Value, operator: str, right: _Value) -> _Column:
        if left.column is None:
            left, operator, right = right, _FLIPPED[operator], left
        column, other, literal = self._column_of(left), right.column, right.literal
        if other is not None:
            return self._checked(lambda table: compare_columns(column(table), operator, other(table)), left)
        return self._checked(lambda table: compare(column(table), operator, literal), left)

    def _in(self, value: _Value) -> _Column:
        column = self._column_of(value)
        self._need("sign", "(")
        literals = [self._literal()]
        while self._take("sign", ","):
            literals.append(self._literal())
        self._need("sign", ")")
        return self._checked(lambda table: is_among(column(table), literals), value)

    def _like(self, value: _Value, *, ignore_case: bool) -> _Column:
        pattern, column = self._need("text", what="a pattern in single quotes"), self._column_of(value)
        return lambda table: matches(column(table), pattern, ignore_case=ignore_case)

    def _is(self, value: _Value) -> _Column:
        is_not = self._take("keyword", "not")
        if self._take("keyword", "null"):
            found = _is_null(self._column_of(value))
        elif self._take("keyword", "true"):
            found = _is_sure(self._truth(value))
        else:
            self._need("keyword", "false", what="NULL, TRUE or FALSE")
            found = _is_sure(_not(self._truth(value)))
        return _not(found) if is_not else found

    def _truth(self, value: _Value) -> _Column:
        column = self._column_of(value)
        return self._checked(lambda table: truth(column(table)), value)

    # -- values -------------------------------------------------------------------------------------------------------

    def _value(self) -> _Value:
        token = self._token
        if token.kind in ("name", "quoted"):
            following = self._tokens[self._next + 1]
            if token.kind == "name" and following.kind == "sign" and following.text == "(":
                return self._call(token)
            if not (token.text.lower() in _TYPES and following.kind == "text"):
                return self._path()
        return _Value(token.text, token.position, literal=self._literal())

    def _call(self, token: _Token) -> _Value:
        function = _FUNCTIONS.get(token.text.lower())
        if function is None:
            self._fail(
                f"there is no function {token.text}; there are: {', '.join(_FUNCTIONS)}. `batcher query` has all"
            )
        self._next += 2
        column = self._column_of(self._value())
        self._need("sign", ")")
        value = _Value(token.text, token.position)
        return _Value(token.text, token.position, self._checked(lambda table: function(column(table)), value))

    def _path(self) -> _Value:
        token = self._token
        name = _find(token.text, self._names)
        if name is None:
            quoted = token.text.replace("'", "''")
            hint = f"; a text goes into single quotes: '{quoted}'" if self._is_right_side() else ""
            self._fail(f"there is no column {token.text!r}{hint}; {_remedy(token.text, self._names, self._renamed)}")
        self._next += 1
        self._columns[name] = None
        value = _Value(name, token.position, lambda table: comparable(table[name]))
        while self._take("sign", "."):
            value = self._member(value)
        return value

    def _member(self, outer: _Value) -> _Value:
        token, column = self._token, self._column_of(outer)
        if token.kind not in ("name", "quoted", "keyword"):
            self._fail("a name is expected behind the point, in double quotes if it is no word")
        self._next += 1
        shown = f"{outer.shown}.{token.text}"
        found = self._checked(lambda table: member(column(table), token.text), outer)
        return _Value(shown, outer.position, found)

    def _literal(self) -> Literal:
        if self._token.kind == "name" and self._token.text.lower() in _TYPES:
            self._next += 1
        token = self._token
        if token.kind == "sign" and token.text in "+-":
            self._next += 1
            number = Decimal(self._need("number", what="a number"))
            return number.copy_negate() if token.text == "-" else number
        if token.kind not in ("text", "number") and token.text not in ("true", "false"):
            self._fail(_no_literal(token))
        self._next += 1
        if token.kind == "keyword":
            return token.text == "true"
        return token.text if token.kind == "text" else Decimal(token.text)

    def _column_of(self, value: _Value) -> _Column:
        if value.column is None:
            self._fail(f"{value.shown!r} is no column, and one is needed here", value.position)
        return value.column

    def _checked(self, column: _Column, value: _Value) -> _Column:
        """`column` where it suits the types of the table, which no rows are needed to know."""
        try:
            column(self._nothing)
        except (MisfitError, pa.ArrowException) as exc:
            self._fail(f"{value.shown}: {exc}", value.position)
        return column

    # -- tokens -------------------------------------------------------------------------------------------------------

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _read_tokens(self) -> list[_Token]:
        tokens, start = [], 0
        while start < len(self._text):
            if self._text[start].isspace():
                start += 1
                continue
            found = _TOKEN.match(self._text, start)
            if found is None:
                char = self._text[start]
                is_open = char in "'\""
                self._fail("a quote that is never closed" if is_open else f"{char!r} has no meaning here", start + 1)
            tokens.append(_token(found))
            start = found.end()
        return [*tokens, _Token("end", "the end", len(self._text) + 1)]

    def _take(self, kind: str, text: str) -> bool:
        """Whether this is the next token, which is then passed."""
        is_it = self._token.kind == kind and self._token.text == text
        self._next += is_it
        return is_it

    def _need(self, kind: str, text: str | None = None, *, what: str | None = None) -> str:
        token = self._token
        if token.kind != kind or text not in (None, token.text):
            self._fail(f"{what or (text or '').upper()} is expected here")
        self._next += 1
        return token.text

    def _is_right_side(self) -> bool:
        """Whether the next token is where one compares with a text."""
        before = self._tokens[self._next - 1] if self._next else None
        return before is not None and before.kind == "sign" and before.text in _OPERATORS

    def _fail(self, problem: str, position: int | None = None) -> NoReturn:
        where = self._token.position if position is None else position
        raise InputError(f"{self._what} {self._text!r}, character {where}: {problem}")


def _token(found: re.Match[str]) -> _Token:
    kind, text, position = found.lastgroup or "", found[0], found.start() + 1
    if kind == "text":
        return _Token(kind, text[1:-1].replace("''", "'"), position)
    if kind == "quoted":
        return _Token(kind, text[1:-1].replace('""', '"'), position)
    if kind == "name" and text.lower() in _KEYWORDS:
        return _Token("keyword", text.lower(), position)
    return _Token(kind, text, position)


def _no_literal(token: _Token) -> str:
    """Why a token is none."""
    if token.kind == "keyword" and token.text == "null":
        return "nothing equals NULL; write IS NULL or IS NOT NULL"
    if token.kind in ("name", "quoted"):
        return f"a literal is expected here; a text goes into single quotes: '{token.text}'"
    return "a column or a literal is expected here"


def _not(part: _Column) -> _Column:
    return lambda table: pc.invert(part(table))


def _is_null(column: _Column) -> _Column:
    return lambda table: pc.is_null(column(table))


def _is_sure(part: _Column) -> _Column:
    """True where it is true, false where it is not or is null."""
    return lambda table: pc.fill_null(part(table), False)


def _find(name: str, known: Sequence[str]) -> str | None:
    """The column of this name, whatever the case of its letters."""
    if name in known:
        return name
    return next((each for each in known if each.lower() == name.lower()), None)


def _remedy(name: str, known: Sequence[str], renamed: Mapping[str, str]) -> str:
    if (other := _find(name, tuple(renamed))) is not None:
        return f"it is called {renamed[other]} here"
    lower = {each.lower(): each for each in known}
    near = [lower[each] for each in get_close_matches(name.lower(), lower, n=3)]
    named = ", ".join(known[:_MAX_NAMED]) + (f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else "")
    return f"did you mean {' or '.join(near)}? There are: {named}" if near else f"there are: {named}"
