"""Reads the text of an answer, as it comes, as text and a call of a function.

What could still become the mark of a call is kept back, and so are blanks before it. An answer that ends within a call
has as much of the call as there is; one that ends before the name of the function is known has no call.
"""

from dataclasses import dataclass

from batcher.types import FunctionCall
from workers.engines.llama.tools.format import CallFormat, Slot


@dataclass(frozen=True, slots=True)
class Read:
    """What a piece adds: text, and the name of the function that is called, which comes once, or arguments of it."""

    text: str = ""
    call: FunctionCall | None = None


class CallReader:
    """Reads one answer. Mutable. One that `is_required` to call is nothing but a call.

    `call` is what was read of the call so far, and `is_complete` whether it was read to its end.
    """

    def __init__(self, found: CallFormat, *, is_required: bool) -> None:
        head = str(found.parts[0])
        #: Where a call begins like any JSON, it is the whole answer.
        self._is_whole = is_required or not found.mark
        self._is_required = is_required
        self._opening = head if self._is_whole else found.mark
        self._parts = (head.partition(self._opening)[2], *found.parts[1:])
        self._waiting = ""
        self._is_text = True
        self._is_opened = False
        self._at = 0
        self._arguments = _JsonEnd()
        self._held = ""
        self._name = ""
        self.call: FunctionCall | None = None

    @property
    def is_complete(self) -> bool:
        return self._at == len(self._parts)

    def read(self, piece: str) -> Read:
        """Read on."""
        self._waiting += piece
        text = "" if self._is_opened else self._take_text()
        return Read(text, self._take_call() if self._is_opened else None)

    def finish(self) -> str:
        """What was kept back, as the answer is over: text, unless it belongs to a call."""
        text, self._waiting = self._waiting, ""
        return "" if self._is_opened or self._is_required else text

    def _take_text(self) -> str:
        """The text up to the call, if there is one."""
        if self._is_whole:
            return self._take_whole()
        before, mark, after = self._waiting.partition(self._opening)
        if mark:
            self._is_opened, self._waiting = True, after
            return before.rstrip()
        starts = (self._opening[:length] for length in range(len(self._opening) - 1, 0, -1))
        kept = next((start for start in starts if before.endswith(start)), "")
        text = before.removesuffix(kept).rstrip()
        self._waiting = before[len(text) :]
        return text

    def _take_whole(self) -> str:
        """The text of an answer that is either no call or nothing else."""
        if self._is_text and self._waiting.startswith(self._opening):
            self._is_opened, self._waiting = True, self._waiting.removeprefix(self._opening)
            return ""
        if self._is_text and self._opening.startswith(self._waiting):
            return ""
        self._is_text = False
        text, self._waiting = self._waiting, ""
        return text

    def _take_call(self) -> FunctionCall | None:
        had_name = bool(self._name)
        while self._at < len(self._parts) and self._take_part(self._parts[self._at]):
            self._at += 1
        if not self._name or (had_name and not self._held):
            return None
        gained = FunctionCall("" if had_name else self._name, self._held)
        self._held = ""
        before = self.call.arguments if self.call is not None else ""
        self.call = FunctionCall(self._name, before + gained.arguments)
        return gained

    def _take_part(self, part: str | Slot) -> bool:
        """Take what waits for a part of the format; whether it is all there."""
        if part is Slot.ARGUMENTS:
            length = self._arguments.find(self._waiting)
            self._held += self._waiting[:length]
            self._waiting = self._waiting[length:]
            return self._arguments.is_found
        if isinstance(part, Slot):
            value, end, _ = self._waiting.partition(str(self._parts[self._at + 1]))
            if end:
                self._waiting = self._waiting.removeprefix(value)
                self._name = value if part is Slot.NAME else self._name
            return bool(end)
        is_there = self._waiting.startswith(part)
        self._waiting = self._waiting.removeprefix(part)
        return is_there


@dataclass(slots=True)
class _JsonEnd:
    """Finds the end of a JSON object that comes in pieces. Mutable."""

    is_found: bool = False
    _depth: int = 0
    _is_string: bool = False
    _is_escaped: bool = False

    def find(self, piece: str) -> int:
        """How many characters of the piece belong to the object."""
        for at, character in enumerate(piece):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = character == "\\"
                self._is_string = character != '"'
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_found = True
                    return at + 1
        return len(piece)
