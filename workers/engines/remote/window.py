"""How many prompts are in flight at a server: as many as make the most tokens a second, and no more.

More in flight than a server computes at a time only wait there, where nothing can go before them. The size is doubled
as long as that pays (*search*), then held, and tried a little larger or smaller from time to time, as load changes.
A server that takes no more (429, 503) has it cut, after which it grows by one a round until near where it was cut.
"""

from collections.abc import Callable

FIRST_SIZE = 16
MOST = 256
#: Of the tokens a second: what a larger size must gain, and what a smaller one may cost.
_GAIN, _LOSS = 1.05, 0.98
#: Of the tokens a second at the last try: less is another load, and all is tried again.
_FALL = 0.7
#: Sizes are held for so many rounds before one is tried.
_HELD_ROUNDS, _SOON_ROUNDS = 10, 3
_CUT = 0.7
#: Seconds that a round takes at least.
_LEAST_ROUND_S = 1.0


class Window:
    """The number in flight at one server, for its thread. With `fixed` it stays so until the server takes less.

    A round is the time in which as many answers came as twice the size, all of them at this size.
    """

    def __init__(self, *, fixed: int | None = None, most: int = MOST, clock: Callable[[], float]) -> None:
        self.most = fixed or most
        self._size = float(fixed or min(FIRST_SIZE, most))
        self._is_fixed = fixed is not None
        self._clock = clock
        self._cut_at = float("-inf")
        #: Where the server took no more; nearly as much is tried.
        self._ceiling: float | None = None
        self._is_searching = True
        self._tried_from: tuple[float, float] | None = None
        self._rate = 0.0
        self._num_held = 0
        self._goes_up = True
        self._num_answers = self._num_tokens = 0
        self._size_since = self._began_at = clock()

    @property
    def size(self) -> int:
        return int(self._size)

    def note_answer(self, num_tokens: int, *, sent_at: float, is_full: bool) -> None:
        """One prompt was answered. `is_full`: there was as much to send as the window takes."""
        if self._ceiling is not None:
            self._recover(sent_at)
            return
        if self._is_fixed:
            return
        if not is_full:
            self._begin_round()
            return
        if sent_at < self._size_since:
            return
        if not self._num_answers:
            # From here the answers are of this size; the first only begins the round.
            self._began_at = self._clock()
        else:
            self._num_tokens += num_tokens
        self._num_answers += 1
        elapsed_s = self._clock() - self._began_at
        if self._num_answers > 2 * self.size and elapsed_s >= _LEAST_ROUND_S:
            self._end_round(self._num_tokens / elapsed_s)

    def note_busy(self, *, sent_at: float) -> None:
        """The server takes no more. Of those sent before the last cut nothing new is learned."""
        if sent_at < self._cut_at:
            return
        self._cut_at = self._clock()
        self._is_fixed = self._is_searching = False
        self._tried_from = None
        self._ceiling = self._size
        self._size = max(1.0, self._size * _CUT)
        self._begin_round()

    def _recover(self, sent_at: float) -> None:
        assert self._ceiling is not None
        if sent_at < self._cut_at:
            return
        goal = max(1.0, min(self._ceiling * (1 + _CUT) / 2, self._ceiling - 1))
        self._size = min(goal, self._size + 1 / self._size)
        if self._size == goal:
            self._ceiling, self._rate, self._num_held, self._goes_up = None, 0.0, 0, True
            self._begin_round()

    def _end_round(self, rate: float) -> None:
        if self._tried_from is not None:
            self._judge(rate)
        elif self._is_searching:
            self._rate = rate
            self._try(self._size * 2)
        elif rate < self._rate * _FALL:
            # Another load: what pays is found out anew, from half on.
            self._size = max(1.0, self._size / 2)
            self._is_searching = True
        else:
            self._rate = max(rate, self._rate) if self._num_held else rate
            self._num_held += 1
            if self._num_held > _HELD_ROUNDS:
                self._num_held = 0
                up, down = max(self._size * 1.5, self._size + 1), min(self._size * 0.8, self._size - 1)
                self._try(up if self._goes_up else down)
                self._goes_up = not self._goes_up
        self._begin_round()

    def _try(self, size: float) -> None:
        """Change the size for a round, if it can be changed that way."""
        size = min(float(self.most), max(1.0, size))
        if int(size) == self.size:
            self._is_searching = False
            return
        self._tried_from = (self._size, self._rate)
        self._size = size

    def _judge(self, rate: float) -> None:
        assert self._tried_from is not None
        size, before = self._tried_from
        self._tried_from = None
        is_larger = self._size > size
        if rate >= before * (_GAIN if is_larger else _LOSS):
            self._rate = rate
            if self._is_searching:
                self._try(self._size * 2)
        else:
            # One measurement may be wrong: a larger one is tried again soon.
            self._num_held = _HELD_ROUNDS - _SOON_ROUNDS if self._is_searching else 0
            self._size, self._is_searching = size, False

    def _begin_round(self) -> None:
        self._num_answers = self._num_tokens = 0
        self._size_since = self._began_at = self._clock()
