"""Numbers of JSON that come to an end: they have so many digits and no more, unless their schema needs more.

Schemas seldom say how many, and a small model that has begun to write digits goes on with them until max_tokens: so it
was with a fourth of the texts of a schema with a plain `number`. llama.cpp's grammars for JSON bound them likewise.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from workers.engines.llama.sampling.masking import Mask

#: Digits in front of the point, so that an integer has a place in 64 bits; behind it, as many as a double surely holds;
#: and of an exponent.
_MOST_WHOLE, _MOST_BROKEN, _MOST_EXPONENT = 18, 15, 3

_DIGITS = frozenset(b"0123456789")
_QUOTE, _ESCAPE, _POINT = b'"\\.'
_EXPONENT = frozenset(b"eE")
_SIGNS = frozenset(b"+-")


class LeadingDigits:
    """How many digits each token of a vocabulary begins with. Read by any thread."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        counts = (len(piece) - len(piece.lstrip(b"0123456789")) for piece in pieces)
        self._counts = np.fromiter(counts, np.int32)
        self._masks: dict[int, Mask] = {}

    def at_most(self, number: int) -> Mask:
        """A mask of the tokens that begin with no more digits. Shape: (vocabulary size / 32,), rounded up."""
        mask = self._masks.get(number)
        if mask is None:
            bits = np.packbits(self._counts <= number, bitorder="little")
            words: npt.NDArray[np.uint8] = np.zeros(-(-len(self._counts) // 32) * 4, np.uint8)
            words[: len(bits)] = bits
            mask = self._masks[number] = words.view(np.uint32)
        return mask


class NumberBound:
    """Where a text of JSON stands in a number. Mutable; for one thread at a time."""

    __slots__ = ("_is_escaped", "_is_in_string", "_leading", "_left")

    def __init__(self, leading: LeadingDigits) -> None:
        self._leading = leading
        self._is_in_string = self._is_escaped = False
        #: Digits that may follow in this part of a number; None where the text is in none.
        self._left: int | None = None

    def follow(self, piece: bytes) -> None:
        """Note the next bytes of the text."""
        for byte in piece:
            if self._is_in_string:
                self._is_in_string = self._is_escaped or byte != _QUOTE
                self._is_escaped = byte == _ESCAPE and not self._is_escaped
            elif byte in _DIGITS:
                self._left = (_MOST_WHOLE if self._left is None else self._left) - 1
            elif self._left is not None and byte == _POINT:
                self._left = _MOST_BROKEN
            elif self._left is not None and byte in _EXPONENT:
                self._left = _MOST_EXPONENT
            elif self._left is None or byte not in _SIGNS:
                self._left = None
                self._is_in_string = byte == _QUOTE

    def narrow(self, mask: Mask) -> None:
        """Strike out of a mask the tokens with too many digits, unless nothing would be left. Mutates it."""
        if self._left is not None:
            narrowed = mask & self._leading.at_most(max(self._left, 0))
            if narrowed.any():
                mask[:] = narrowed
