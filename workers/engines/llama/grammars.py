"""Constraints as llguidance knows them: compiled once for a model's vocabulary, and followed token by token.

The only module that imports `llguidance`, and that only where a constraint is met: it comes with the engine, and rows
without a constraint cost nothing. Its matchers never raise: what can't be compiled or followed is a state of theirs,
which has a reason. They let other threads run while they compute.
"""

import contextlib
import json
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from batcher.errors import MissingPackageError
from batcher.types import Constraint, ConstraintKind, ErrorCode, RowError
from workers.engines.llama.numbers import LeadingDigits, NumberBound
from workers.engines.llama.sampling.masking import Mask
from workers.engines.llama.schemas import as_written

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from workers.engines.llama.vocabulary import Vocabulary

#: Constraints that are kept compiled for requests to come, and the time that it took to compile them together: their
#: memory grows with it, a hostile one's by 250 MB each second.
_MAX_KEPT = 512
_MAX_KEPT_S = 1.0
#: As much again for those that requests use now: beyond it no further one is compiled until some are finished.
_MAX_USED_S = 2 * _MAX_KEPT_S

#: Bounds of llguidance, in its units: each bounds the time or memory of a compilation or of a step.
_STEP_LIMITS = {"step_lexer_fuel": 100_000, "step_max_items": 50_000}
#: States of a lexer, which all texts of a constraint share and add to. Strings that may be long have some five for each
#: character: fifteen of 1,000 have 80,000, which take 60 MB.
_LEXER_STATES = 50_000
_LEXER_STATES_OF_SCHEMAS = 250_000
#: Of terminals and patterns together. Those of a grammar can be written so that their states grow with the square of
#: it. Those of a schema are bounded by its patterns (`batcher.constraints`), and long lists of properties need more.
_LEXER_FUEL = 20_000
_LEXER_FUEL_OF_SCHEMAS = 1_000_000

_NO_TEXT = "no text can keep to it"

_JSON = frozenset((ConstraintKind.JSON_SCHEMA, ConstraintKind.JSON_OBJECT))
_OF_SCHEMAS = _JSON | {ConstraintKind.TOOLS}

#: Rules that name each other in a long chain are compiled by recursion, which ends a process whose stack is too small.
#: Only what is used of it becomes memory.
_STACK_BYTES = 512 << 20

#: Spaces stand where Python's `json.dumps` puts them, and nowhere else: where any are allowed, models write blanks
#: until max_tokens, and no token of a skeleton is forced. A schema's own `x-guidance` goes before this.
_JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


#: llguidance's names of why it stopped, where it says no more.
_STOP_REASONS = {
    "NoExtension": _NO_TEXT,
    "NoExtensionBias": _NO_TEXT,
    "LexerTooComplex": "its terminals or patterns take too many states",
    "ParserTooComplex": "its rules take too many steps",
    "InternalError": "llguidance can't follow it",
}


class GrammarError(Exception):
    """Why a constraint can't be compiled."""


class _Compiled:
    """A constraint at its beginning, and the processor time that it took."""

    __slots__ = ("__weakref__", "is_json", "matcher", "seconds")

    def __init__(self, matcher: "LLMatcher", seconds: float, *, is_json: bool) -> None:
        self.matcher = matcher
        self.seconds = seconds
        self.is_json = is_json


class Matching:
    """Where one text stands in its constraint. Mutable; for one thread at a time.

    `forced` are the tokens that come next, whatever the model says: the matcher is behind them already. `is_stuck`:
    no token at all may come. With `spelling` numbers of JSON are bounded.
    """

    __slots__ = ("_number", "_spelling", "compiled", "forced", "is_stuck", "matcher")

    def __init__(self, compiled: _Compiled, spelling: "Spelling | None" = None) -> None:
        # Held, so that it counts as used.
        self.compiled = compiled
        self._spelling = spelling
        self._number = NumberBound(spelling.leading_digits) if spelling is not None and compiled.is_json else None
        self.matcher = compiled.matcher.deep_copy()
        self.forced: deque[int] = deque()
        self.is_stuck = False
        self._force()

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return not self.forced and bool(self.matcher.is_stopped())

    @property
    def problem(self) -> str:
        """Why it can't go on; "" where it can."""
        return _reason(self.matcher) or ("nothing may come next" if self.is_stuck else "")

    def follow(self, token: int) -> None:
        """Note the next token of the text: the first of the forced, if there are any."""
        if self.forced:
            self.forced.popleft()
        elif not self.is_stuck:
            self.matcher.consume_token(token)
            self._spell(token)
            self._force()

    def fill(self, mask: Mask) -> None:
        """Write what may come next into a row of bits. Mutates it; lets other threads run meanwhile."""
        self.matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._number is not None:
            self._number.narrow(mask)

    def _force(self) -> None:
        tokens = self.matcher.compute_ff_tokens()
        if tokens:
            self.matcher.consume_tokens(tokens)
            self.forced.extend(tokens)
            self._spell(*tokens)

    def _spell(self, *tokens: int) -> None:
        if self._number is not None and self._spelling is not None:
            for token in tokens:
                self._number.follow(self._spelling.piece(token))


class Spelling:
    """What tokens of a vocabulary are as text."""

    def __init__(self, vocabulary: "Vocabulary", entries: Sequence[tuple[bytes, bool]]) -> None:
        self.piece = vocabulary.piece
        self.leading_digits = LeadingDigits(text for text, _ in entries)


class Grammars:
    """Compiles constraints for one vocabulary, and keeps those used last. For all threads."""

    def __init__(self, vocabulary: "Vocabulary") -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._spelling: Spelling | None = None
        #: Those used last, last, or why they can't be compiled.
        self._kept: OrderedDict[Constraint, _Compiled | GrammarError] = OrderedDict()
        #: All that somebody holds.
        self._alive: weakref.WeakValueDictionary[Constraint, _Compiled] = weakref.WeakValueDictionary()

    @property
    def has_room(self) -> bool:
        """Whether one more may be compiled."""
        with self._lock:
            if self._alive_s() >= _MAX_USED_S:
                # What nobody uses now has to go.
                for constraint in [each for each, found in self._kept.items() if isinstance(found, _Compiled)]:
                    del self._kept[constraint]
            return self._alive_s() < _MAX_USED_S

    def has(self, constraint: Constraint) -> bool:
        """Whether `find` finds it, or why it can't be compiled."""
        return constraint in self._kept or constraint in self._alive

    def find(self, constraint: Constraint) -> Matching | None:
        """The beginning of a text that keeps to the constraint; None where it is not compiled yet.

        Takes no time. Raises GrammarError where it can't be compiled.
        """
        with self._lock:
            found = self._kept.get(constraint) or self._alive.get(constraint)
            if found is None:
                return None
            self._keep(constraint, found)
        if isinstance(found, GrammarError):
            raise GrammarError(*found.args)
        return Matching(found, self._spelling)

    def compile(self, constraint: Constraint) -> None:
        """Have `find` find it. Takes up to some seconds, for one caller at a time, whose stack must be large."""
        if self.has(constraint):
            return
        found: _Compiled | GrammarError
        try:
            if self._tokenizer is None:
                entries = self._vocabulary.entries()
                self._tokenizer = _tokenizer_of(self._vocabulary, entries)
                self._spelling = Spelling(self._vocabulary, entries)
            found = _compile(constraint, self._tokenizer)
            self._alive[constraint] = found
        except GrammarError as exc:
            found = exc
        except MissingPackageError as exc:
            found = GrammarError(str(exc))
        except Exception as exc:
            # Such as of a vocabulary in which nothing ends a text. Nobody else answers those who wait for it.
            found = GrammarError(_shortened(str(exc)) or type(exc).__name__)
        with self._lock:
            self._keep(constraint, found)

    def forget(self, constraint: Constraint, matching: Matching) -> None:
        """Have a constraint compiled anew for those to come: all that began as `matching` share what they have learned,
        and reach one bound."""
        with self._lock:
            for found in (self._kept, self._alive):
                if found.get(constraint) is matching.compiled:
                    del found[constraint]

    def compile_alone(self, constraint: Constraint) -> Matching:
        """The beginning of a text that shares nothing with others. As `compile`; raises GrammarError."""
        assert self._tokenizer is not None, "it was compiled before"
        return Matching(_compile(constraint, self._tokenizer), self._spelling)

    def _keep(self, constraint: Constraint, found: _Compiled | GrammarError) -> None:
        self._kept[constraint] = found
        self._kept.move_to_end(constraint)
        while len(self._kept) > 1 and (len(self._kept) > _MAX_KEPT or self._kept_s() > _MAX_KEPT_S):
            self._kept.popitem(last=False)

    def _kept_s(self) -> float:
        return sum(each.seconds for each in self._kept.values() if isinstance(each, _Compiled))

    def _alive_s(self) -> float:
        return sum(compiled.seconds for compiled in self._alive.values())


def find_problem(constraint: Constraint) -> str:
    """Why a constraint can't be compiled for any model; "" where it can. Raises MissingPackageError."""
    tokenizer = _llguidance().LLTokenizer("byte")
    with large_stack():
        thread = _Returning(lambda: _compile(constraint, tokenizer))
        thread.start()
    thread.join()
    return str(thread.error) if isinstance(thread.error, GrammarError) else ""


def refused_constraint(constraint: Constraint, problem: str) -> RowError:
    """The error of a request whose constraint has this problem."""
    return RowError(ErrorCode.INVALID_REQUEST, f"the {constraint.name} can't be compiled: {problem}")


@contextlib.contextmanager
def large_stack() -> Iterator[None]:
    """Threads that are started meanwhile can compile."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)


class _Returning(threading.Thread):
    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(name="grammar", daemon=True)
        self._call = call
        self.error: GrammarError | None = None

    def run(self) -> None:
        try:
            self._call()
        except GrammarError as exc:
            self.error = exc


def _compile(constraint: Constraint, tokenizer: "LLTokenizer") -> _Compiled:
    """Raises GrammarError, also where the first step shows that no text can keep to it."""
    llguidance, is_schema = _llguidance(), constraint.kind in _OF_SCHEMAS
    limits = llguidance.LLParserLimits(
        initial_lexer_fuel=_LEXER_FUEL_OF_SCHEMAS if is_schema else _LEXER_FUEL,
        max_lexer_states=_LEXER_STATES_OF_SCHEMAS if is_schema else _LEXER_STATES,
        verbose_errors=False,
        **_STEP_LIMITS,
    )
    started = time.thread_time()
    matcher: LLMatcher = llguidance.LLMatcher(tokenizer, _grammar_of(constraint), log_level=0, limits=limits)
    first = matcher.deep_copy()
    if not first.is_error():
        first.compute_bitmask()
    if problem := _reason(first):
        raise GrammarError(problem)
    if first.is_stopped() and not first.is_accepting():
        raise GrammarError(_NO_TEXT)
    # Where a call may come behind words, digits in these are as many as the model writes.
    is_call = constraint.kind is ConstraintKind.TOOLS and "\nstart: call\n" in constraint.text
    return _Compiled(matcher, time.thread_time() - started, is_json=constraint.kind in _JSON or is_call)


def _grammar_of(constraint: Constraint) -> str:
    """The constraint as llguidance takes it. Raises GrammarError."""
    matcher, text = _llguidance().LLMatcher, constraint.text
    try:
        match constraint.kind:
            case ConstraintKind.JSON_OBJECT:
                return str(matcher.grammar_from_json_schema('{"type":"object"}', defaults=_JSON_FORM))
            case ConstraintKind.JSON_SCHEMA:
                return str(matcher.grammar_from_json_schema(as_written(text), defaults=_JSON_FORM))
            case ConstraintKind.CHOICE | ConstraintKind.SCORED_CHOICE:
                # One terminal: each alternative of a rule would be an item of the parser.
                choices = " | ".join(json.dumps(each) for each in json.loads(text))
                return str(matcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}"))
            case ConstraintKind.REGEX:
                return str(matcher.grammar_from_regex(text))
            case ConstraintKind.LARK | ConstraintKind.TOOLS:
                return str(matcher.grammar_from_lark(text))
            case ConstraintKind.GBNF:
                return str(matcher.grammar_from_lark(_gbnf_to_lark()(text)))
    except Exception as exc:
        # The converter of GBNF raises whatever it comes upon.
        raise GrammarError(_shortened(str(exc)) or type(exc).__name__) from exc


def _tokenizer_of(vocabulary: "Vocabulary", entries: Sequence[tuple[bytes, bool]]) -> "LLTokenizer":
    # A byte that no text has marks special tokens, as llguidance wants it.
    tokens = [b"\xff" + text if is_special else text for text, is_special in entries]
    vocab, tokenize = vocabulary.tokenize_call
    ends = np.flatnonzero(vocabulary.is_end).tolist()
    # Not by its `llamacpp.lltokenizer_from_vocab`, which does the same by functions that llama-cpp-python warns of.
    made: LLTokenizer = _llguidance().LLTokenizer.from_llamacpp(
        tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=ends, slices=None
    )
    return made


def _reason(matcher: "LLMatcher") -> str:
    if not matcher.is_error():
        return ""
    reason = _shortened(matcher.get_error())
    return _STOP_REASONS.get(reason, reason)


def _shortened(text: str) -> str:
    """What an error says first, without the input that it shows behind; of a regular expression what is wrong, too."""
    first, *others = text.strip().split("\n")
    reason = next((line.removeprefix("error:") for line in others if line.startswith("error: ")), "")
    return f"{first[:300]}{reason[:100]}"


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as exc:
        raise MissingPackageError(
            f"constraints need llguidance, which can't be loaded here: {exc}; `batcher doctor` has the remedy"
        ) from exc
    return llguidance


def _gbnf_to_lark() -> Callable[[str], str]:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    return gbnf_to_lark
