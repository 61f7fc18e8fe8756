"""Sequences whose constraint is not compiled yet, and the thread that compiles it: nobody else waits for that.

Live ones go first. No more is compiled than there is room for (`Grammars.has_room`): what waits here takes no memory.
"""

import threading
from collections import deque
from collections.abc import Callable

from workers.engines.llama.grammars import GrammarError, Grammars, large_stack, refused_constraint
from workers.engines.llama.sequence import Sequence

#: Seconds after which is looked again whether there is room.
_LOOK_S = 0.05


class Compiling:
    """For all threads. `on_ready` gets each sequence when it has its matching, in the thread of this."""

    def __init__(self, grammars: Grammars, *, on_ready: Callable[[Sequence], None]) -> None:
        self._grammars = grammars
        self._on_ready = on_ready
        self._changed = threading.Condition()
        self._live: deque[Sequence] = deque()
        self._others: deque[Sequence] = deque()
        #: What the thread is at; None where it was dropped meanwhile.
        self._current: Sequence | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._live) + len(self._others) + (self._current is not None)

    def begin(self, sequence: Sequence, *, patience_s: float) -> bool:
        """Give a sequence the matching of its constraint. Returns whether it has it within `patience_s`.

        Else it goes to `on_ready` later. One whose constraint can't be compiled gets its error now or then.
        """
        constraint = sequence.request.params.constraint
        assert constraint is not None
        try:
            if (found := self._grammars.find(constraint)) is not None:
                sequence.constrain(found)
                return True
        except GrammarError as exc:
            sequence.fail(refused_constraint(constraint, str(exc)))
            return False
        with self._changed:
            (self._live if sequence.request.is_live else self._others).append(sequence)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
                with large_stack():
                    self._thread.start()
            self._changed.notify_all()
            if patience_s > 0:
                self._changed.wait_for(lambda: self._is_closed or self._grammars.has(constraint), patience_s)
        return False

    def begin_alone(self, sequence: Sequence) -> bool:
        """Give a sequence whose matching has reached a bound one of its own, and then to `on_ready`. Those that come
        later get another, too. Returns False where it had one already, or can't be followed again."""
        constraint, matching = sequence.request.params.constraint, sequence.matching
        assert constraint is not None
        assert matching is not None
        self._grammars.forget(constraint, matching)
        has_thought = sequence.transcript is not None and sequence.transcript.num_reasoning_tokens
        # Beside the scores of its prompt the token that could not be followed is listed.
        if sequence.is_matched_alone or matching.is_stuck or has_thought or sequence.request.scores_prompt:
            return False
        sequence.is_matched_alone = True
        with self._changed:
            (self._live if sequence.request.is_live else self._others).append(sequence)
            self._changed.notify_all()
        return True

    def drop_all(self) -> list[Sequence]:
        """Take out everything that waits, and return it."""
        with self._changed:
            dropped = [*self._live, *self._others, *([self._current] if self._current is not None else [])]
            self._live.clear()
            self._others.clear()
            self._current = None
        return dropped

    def close(self) -> None:
        """End the thread, after the constraint that it is at."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (sequence := self._take()) is not None:
            if sequence.is_wanted:
                self._compile(sequence)
            with self._changed:
                self._current = None
                self._changed.notify_all()

    def _take(self) -> Sequence | None:
        with self._changed:
            while not self._is_closed:
                if not (self._live or self._others):
                    self._changed.wait()
                elif not self._grammars.has_room:
                    self._changed.wait(_LOOK_S)
                else:
                    self._current = (self._live or self._others).popleft()
                    return self._current
        return None

    def _compile(self, sequence: Sequence) -> None:
        constraint = sequence.request.params.constraint
        assert constraint is not None
        found, error = None, None
        try:
            if sequence.is_matched_alone:
                found = self._grammars.compile_alone(constraint)
            while found is None:
                self._grammars.compile(constraint)
                found = self._grammars.find(constraint)
        except GrammarError as exc:
            error = refused_constraint(constraint, str(exc))
        with self._changed:
            if self._current is not sequence:
                return
            self._current = None
        if found is None:
            assert error is not None
            sequence.fail(error)
            return
        sequence.constrain(found)
        self._on_ready(sequence)
