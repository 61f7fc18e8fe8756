"""Tells the thoughts of a model from its text, byte by byte as they come.

Three states: at a *start*, where thoughts may begin; in thoughts; in the text. Blanks at a start belong to the text,
unless a mark follows or thoughts came before. What could become a mark is held back until that is known.
"""

from collections.abc import Callable, Iterator
from enum import Enum, IntEnum, auto

from batcher.thoughts import ThoughtMarks
from workers.engines.llama.sampling.text import TextBuffer

_BLANKS = b" \t\r\n"


class Kind(IntEnum):
    """What bytes are. A token of several kinds is of the highest of them."""

    #: What stands around a text.
    NOTHING = 0
    #: A mark that thoughts begin or end with.
    MARK = 1
    THOUGHT = 2
    TEXT = 3


class _State(Enum):
    START = auto()
    THOUGHT = auto()
    TEXT = auto()


#: Bytes in a row, and what they are.
Piece = tuple[Kind, bytes]


class ThoughtSplitter:
    """Splits the bytes of one completion by `marks`. Mutable.

    `is_open`: the prompt has begun the thoughts. `special` gives the name of a special token.
    """

    __slots__ = ("_held", "_special", "_state", "_transitions", "has_thoughts", "starts_open")

    def __init__(self, marks: ThoughtMarks, *, is_open: bool, special: Callable[[int], bytes]) -> None:
        self._special = special
        self._transitions = _transitions(marks)
        self._state = _State.THOUGHT if is_open else _State.START
        self._held = b""
        self.starts_open = is_open
        #: Whether thoughts have begun.
        self.has_thoughts = is_open

    @property
    def kind(self) -> Kind:
        """What a token without bytes is here."""
        match self._state:
            case _State.START:
                return Kind.NOTHING
            case _State.THOUGHT:
                return Kind.THOUGHT
            case _State.TEXT:
                return Kind.TEXT

    def name(self, token: int) -> bytes:
        """What is to be fed of a special token: its name where a mark may be made of it, else nothing."""
        name = self._special(token)
        begun = (self._held.lstrip(_BLANKS) if self._state is _State.START else self._held) + name
        return name if any(mark.startswith(begun) for mark in self._transitions[self._state]) else b""

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Add bytes. Gives those of which it is known now what they are."""
        self._held += data
        while self._held:
            found = self._begin() if self._state is _State.START else self._go_on()
            if found is None:
                return
            yield from ((kind, piece) for kind, piece in found if piece)

    def finish(self) -> Iterator[Piece]:
        """What is held back, as no more follows."""
        held, self._held = self._held, b""
        if held and self._state is _State.START:
            num_blanks = len(held) - len(held.lstrip(_BLANKS)) if self.has_thoughts else 0
            yield from ((kind, piece) for kind, piece in _split_off(held, num_blanks) if piece)
        elif held:
            yield self.kind, held

    def _begin(self) -> list[Piece] | None:
        """What the held bytes begin with at a start; None where more of them must be known."""
        held = self._held
        num_blanks = len(held) - len(held.lstrip(_BLANKS))
        rest = held[num_blanks:]
        marks = self._transitions[_State.START]
        for mark, (kind, state) in marks.items():
            if rest.startswith(mark):
                self._enter(state, rest[len(mark) :])
                return [(Kind.NOTHING, held[:num_blanks]), (kind, mark)]
        if any(mark.startswith(rest) for mark in marks):
            return None
        self._enter(_State.TEXT, rest if self.has_thoughts else held)
        return [(Kind.NOTHING, held[:num_blanks])] if self.has_thoughts else []

    def _go_on(self) -> list[Piece] | None:
        """As much of the held bytes as is thoughts or text; None where more of them must be known."""
        held, kind, marks = self._held, self.kind, self._transitions[self._state]
        found = [(at, mark) for mark in marks if (at := held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            kind_of_mark, state = marks[mark]
            self._enter(state, held[at + len(mark) :])
            return [(kind, held[:at]), (kind_of_mark, mark)]
        num_known = len(held) - max((_num_begun(held, mark) for mark in marks), default=0)
        if not num_known:
            return None
        self._held = held[num_known:]
        return [(kind, held[:num_known])]

    def _enter(self, state: _State, held: bytes) -> None:
        self._state, self._held = state, held
        self.has_thoughts |= state is _State.THOUGHT


class ThoughtText:
    """The thoughts of one completion, without the blanks around them. Mutable."""

    __slots__ = ("_blanks", "_buffer", "_num_told")

    def __init__(self) -> None:
        self._buffer = TextBuffer(())
        self._blanks = ""
        self._num_told = 0

    def append(self, data: bytes, *, is_apart: bool) -> None:
        """Add bytes; those `is_apart` begin thoughts anew."""
        if is_apart and self._buffer.num_bytes:
            self._buffer.append(b"\n\n")
        self._buffer.append(data)

    def take(self) -> str:
        """What has come since the last call, but for blanks that may be the last."""
        new = self._blanks + self._buffer.take()
        new = new if self._num_told else new.lstrip()
        told = new.rstrip()
        self._blanks = new[len(told) :]
        self._num_told += len(told)
        return told

    def take_rest(self) -> str:
        """What `take` has not given: no more follows."""
        return self.text()[self._num_told :]

    def text(self) -> str:
        """All."""
        return self._buffer.text().strip()


def _transitions(marks: ThoughtMarks) -> dict[_State, dict[bytes, tuple[Kind, _State]]]:
    """For each state the marks that count there: what they are, and the state behind them."""
    opens = {mark.encode(): (Kind.MARK, _State.THOUGHT) for mark in marks.opens}
    skips = {mark.encode(): (Kind.NOTHING, _State.START) for mark in marks.skips}
    return {
        _State.START: opens | skips,
        _State.THOUGHT: {mark.encode(): (Kind.MARK, _State.START) for mark in marks.closes},
        _State.TEXT: {mark.encode(): (Kind.NOTHING, _State.START) for mark in marks.ends},
    }


def _split_off(data: bytes, num_blanks: int) -> tuple[Piece, Piece]:
    return (Kind.NOTHING, data[:num_blanks]), (Kind.TEXT, data[num_blanks:])


def _num_begun(data: bytes, mark: bytes) -> int:
    """The most bytes at the end of `data` that the mark begins with."""
    return next((n for n in range(min(len(mark) - 1, len(data)), 0, -1) if data.endswith(mark[:n])), 0)
