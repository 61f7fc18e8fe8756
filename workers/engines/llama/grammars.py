"""Constraints as llguidance knows them: compiled once for a model's vocabulary, and followed token by token.

The only module that imports `llguidance`, and that only where a constraint is met: it is an extra, and other rows cost
nothing. Its matchers never raise; what can't be compiled or followed is a state of theirs that has a reason.
"""

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batcher.errors import MissingPackageError
from batcher.types import Constraint, ConstraintKind

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from workers.engines.llama.vocabulary import Vocabulary

#: Constraints that are kept compiled.
_MAX_COMPILED = 256

#: Spaces stand where Python's `json.dumps` puts them, and nowhere else: where any are allowed, models write blanks
#: until max_tokens, and no token of a skeleton is forced. A schema's own `x-guidance` goes before this.
_JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class GrammarError(Exception):
    """Why a constraint can't be compiled."""


class Matching:
    """Where one text stands in its constraint. Mutable; for one thread at a time."""

    __slots__ = ("_mask", "_matcher")

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((1, -(-vocab_size // 32)), np.int32)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    @property
    def problem(self) -> str:
        """Why it can't go on; "" where it can."""
        return _first_line(self._matcher.get_error())

    def follow(self, token: int) -> None:
        """Note the next token of the text."""
        self._matcher.consume_token(token)

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """Of each token, whether it may come next. Shape: (vocabulary size,)."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        bits = np.unpackbits(self._mask.view(np.uint8)[0], count=vocab_size, bitorder="little")
        return bits.view(np.bool_)


class Grammars:
    """Compiles constraints for one vocabulary, and keeps those used last. For all threads."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher | GrammarError] = OrderedDict()

    def begin(self, constraint: Constraint) -> Matching:
        """The beginning of a text that keeps to the constraint. Raises GrammarError where it can't be compiled."""
        with self._lock:
            found = self._compiled.get(constraint)
            if found is None:
                found = self._compiled[constraint] = self._compile(constraint)
                if len(self._compiled) > _MAX_COMPILED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(constraint)
            if isinstance(found, GrammarError):
                raise GrammarError(*found.args)
            return Matching(found.deep_copy(), self._vocabulary.size)

    def _compile(self, constraint: Constraint) -> "LLMatcher | GrammarError":
        try:
            if self._tokenizer is None:
                self._tokenizer = _tokenizer_of(self._vocabulary)
            matcher = _llguidance().LLMatcher(self._tokenizer, _grammar_of(constraint), log_level=0)
        except (GrammarError, MissingPackageError) as exc:
            return exc if isinstance(exc, GrammarError) else GrammarError(str(exc))
        return GrammarError(_first_line(matcher.get_error())) if matcher.is_error() else matcher


def find_problem(constraint: Constraint) -> str:
    """Why a constraint can't be compiled for any model; "" where it can. Raises MissingPackageError."""
    try:
        return _first_line(_llguidance().LLMatcher.validate_grammar(_grammar_of(constraint)))
    except GrammarError as exc:
        return str(exc)


def _grammar_of(constraint: Constraint) -> str:
    """The constraint as llguidance takes it. Raises GrammarError."""
    matcher, text = _llguidance().LLMatcher, constraint.text
    try:
        match constraint.kind:
            case ConstraintKind.JSON_OBJECT:
                return str(matcher.grammar_from_json_schema('{"type":"object"}', defaults=_JSON_FORM))
            case ConstraintKind.JSON_SCHEMA:
                return str(matcher.grammar_from_json_schema(text, defaults=_JSON_FORM))
            case ConstraintKind.CHOICE:
                choices = " | ".join(json.dumps(each) for each in json.loads(text))
                return str(matcher.grammar_from_lark(f"start: {choices}"))
            case ConstraintKind.REGEX:
                return str(matcher.grammar_from_regex(text))
            case ConstraintKind.LARK:
                return str(matcher.grammar_from_lark(text))
            case ConstraintKind.GBNF:
                return str(matcher.grammar_from_lark(_llguidance("gbnf_to_lark").gbnf_to_lark(text)))
    except Exception as exc:
        # The converter of GBNF raises whatever it comes upon.
        raise GrammarError(_first_line(str(exc)) or type(exc).__name__) from exc


def _tokenizer_of(vocabulary: "Vocabulary") -> "LLTokenizer":
    # A byte that no text has marks special tokens, as llguidance wants it.
    tokens = [b"\xff" + text if is_special else text for text, is_special in vocabulary.entries()]
    vocab, tokenize = vocabulary.tokenize_call
    ends = np.flatnonzero(vocabulary.is_end).tolist()
    # Not by its `llamacpp.lltokenizer_from_vocab`, which does the same by functions that llama-cpp-python warns of.
    made: LLTokenizer = _llguidance().LLTokenizer.from_llamacpp(
        tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=ends, slices=None
    )
    return made


def _llguidance(module: str = "") -> Any:
    try:
        import llguidance
        import llguidance.gbnf_to_lark
    except ImportError as exc:
        raise MissingPackageError(
            f"constraints need llguidance, which can't be loaded here: {exc}; `batcher doctor` has the remedy"
        ) from exc
    return getattr(llguidance, module) if module else llguidance


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0][:500]
