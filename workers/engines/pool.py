"""The engines of a process: all from its start, or of more models than memory has room for, loaded when wanted.

Who uses an engine says so (`acquire`, `release`), and meanwhile it stays. A thread of the pool's own loads and closes
engines, one at a time, by the rule in `rotation`; the others compute meanwhile.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from batcher.errors import BatcherError, ModelError
from batcher.types import NORMAL
from workers.engines.base import Engine
from workers.engines.rotation import STAY, Candidate, Move, Stay, next_move

logger = logging.getLogger(f"batcher.{__name__}")

#: Seconds between two looks at what waits for models.
LOOK_INTERVAL_S = 0.5
#: Seconds after which a model that could not be loaded is tried again.
RETRY_INTERVAL_S = 300.0

#: An engine for a model, which has started. Blocks while the model is read; raises ModelError.
Load = Callable[[str], Engine]

#: How many shards of each priority wait for each of some models. Raises BatcherError where nobody knows.
CountWaiting = Callable[[], Mapping[str, Mapping[int, int]]]


class NotLoadedError(BatcherError):
    """The model is not in memory, and nobody waits for it to be."""

    is_retriable = True


@dataclass(slots=True)
class _Place:
    """What the pool knows of a model. Guarded by the pool's lock."""

    since_s: float
    used_s: float
    engine: Engine | None = None
    num_users: int = 0
    num_wanting: int = 0
    num_waiting: int = 0
    priority: int = NORMAL
    is_closing: bool = False
    failure: ModelError | None = None
    failed_s: float = 0.0
    #: Set while its shards are to be given back.
    gives_way: threading.Event = field(default_factory=threading.Event)


class EnginePool:
    """Engines by the names of their models. For all threads."""

    def __init__(self, engines: Mapping[str, Engine], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        now = clock()
        self._places = {name: _Place(now, now, engine) for name, engine in engines.items()}
        self._changed = threading.Condition()
        #: How many times a model was loaded.
        self.num_loads = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are served, loaded or not."""
        return tuple(self._places)

    def loaded(self) -> dict[str, Engine]:
        """Those that are in memory."""
        with self._changed:
            return {name: place.engine for name, place in self._places.items() if place.engine is not None}

    @property
    def most_slots(self) -> int:
        """How many sequences any of the engines computes at a time."""
        return max(engine.num_slots for engine in self.loaded().values())

    def takes_shards(self, name: str) -> bool:
        """Whether shards of the model should be taken from its queue."""
        place = self._places[name]
        return place.engine is not None and not place.is_closing

    def must_give_back(self, name: str) -> bool:
        """Whether shards of the model that are at work are to be given back, so that another can be loaded."""
        return self._places[name].gives_way.is_set()

    def acquire(self, name: str, *, patience_s: float = 0.0) -> Engine:
        """The engine of a model, which stays until `release`.

        One that is not loaded is waited for, for `patience_s` at most. Raises NotLoadedError, and ModelError where it
        can't be loaded.
        """
        place = self._places[name]
        with self._changed:
            if patience_s and (place.engine is None or place.is_closing):
                self._wait_for(place, patience_s)
            if place.engine is None:
                raise place.failure or NotLoadedError(f"the model {name} is not loaded yet; send the request again")
            place.num_users += 1
            return place.engine

    def release(self, name: str) -> None:
        """Give an engine back that was acquired."""
        place = self._places[name]
        with self._changed:
            place.num_users -= 1
            place.used_s = self._clock()
            self._changed.notify_all()

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Engine]:
        """The engine of a model that is loaded, within the block. Raises NotLoadedError."""
        engine = self.acquire(name)
        try:
            yield engine
        finally:
            self.release(name)

    def close(self) -> None:
        """Close all engines, which nobody uses any more."""
        for engine in self.loaded().values():
            engine.close()

    def _wait_for(self, place: _Place, patience_s: float) -> None:
        """With the lock held, which is let go meanwhile."""
        if not (place.num_wanting or place.num_waiting):
            place.since_s = self._clock()
        place.num_wanting += 1
        self._changed.notify_all()
        try:
            self._changed.wait_for(
                lambda: place.failure is not None or (place.engine is not None and not place.is_closing), patience_s
            )
        finally:
            place.num_wanting -= 1


class RotatingPool(EnginePool):
    """Engines that are loaded by `load` when somebody waits for them, and leave for others. Call `start` once.

    `has_room` says whether a model fits beside those that are loaded, `count_waiting` how many shards wait, and
    `usual_slots` how many slots an engine has where nothing else is known. The `fatal` are never loaded. `on_failure`
    hears why a model could not be loaded.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        load: Load,
        has_room: Callable[[str, Mapping[str, Engine]], bool],
        usual_slots: int,
        fatal: Collection[str] = (),
        count_waiting: CountWaiting = dict,
        on_failure: Callable[[ModelError], None] = lambda failure: None,
        stay: Stay = STAY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__({}, clock=clock)
        self._places = {name: _Place(clock(), clock()) for name in names}
        for name in fatal:
            failure = ModelError(f"the model {name} ended an earlier process while it was loaded")
            self._places[name].failure, self._places[name].failed_s = failure, math.inf
        self._load = load
        self._has_room = has_room
        self._usual_slots = usual_slots
        self._count_waiting = count_waiting
        self._on_failure = on_failure
        self._stay = stay
        self._longest_load_s = 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="engine-pool", daemon=True)

    @property
    def most_slots(self) -> int:
        """How many a usual one does: none need be loaded yet."""
        return self._usual_slots

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        super().close()

    def step(self) -> Move:
        """Look once, and do what is to be done. Returns what that was."""
        self._note_waiting()
        with self._changed:
            move = next_move(
                [self._candidate(name, place) for name, place in self._places.items() if self._is_eligible(place)],
                has_room=self._fits,
                now_s=self._clock(),
                stay=self._stay.beside(self._longest_load_s),
            )
            self._announce(move)
            leaving = self._take_out(move.leave) if move.leave is not None else None
        if leaving is not None:
            leaving.close()
            logger.info("%s leaves memory for another model", move.leave)
        if move.load is not None:
            self._bring_in(move.load)
        return move

    def _run(self) -> None:
        while True:
            move = self.step()
            with self._changed:
                if self._is_closed:
                    return
                # What was asked for meanwhile is seen at the next look, at once after a move.
                if move.load is None and move.leave is None:
                    self._changed.wait(LOOK_INTERVAL_S)

    def _note_waiting(self) -> None:
        try:
            found = self._count_waiting()
        except BatcherError as exc:
            # The broker is away, which others say. What waited then still does, perhaps.
            logger.debug("%s", exc)
            return
        with self._changed:
            for name, place in self._places.items():
                waiting = found.get(name, {})
                if waiting and not place.num_waiting and not place.num_wanting and place.engine is None:
                    place.since_s = self._clock()
                place.num_waiting = sum(waiting.values())
                place.priority = max(waiting, default=NORMAL)

    def _candidate(self, name: str, place: _Place) -> Candidate:
        return Candidate(
            name,
            is_loaded=place.engine is not None,
            is_in_hand=place.num_users > 0,
            num_waiting=place.num_waiting,
            priority=place.priority,
            is_wanted=place.num_wanting > 0,
            since_s=place.since_s,
            used_s=place.used_s,
        )

    def _is_eligible(self, place: _Place) -> bool:
        if place.failure is not None and self._clock() >= place.failed_s + RETRY_INTERVAL_S:
            place.failure = None
        return place.failure is None

    def _fits(self, name: str) -> bool:
        return self._has_room(name, {n: p.engine for n, p in self._places.items() if p.engine is not None})

    def _announce(self, move: Move) -> None:
        for name, place in self._places.items():
            place.is_closing = name in (move.closing, move.leave)
            if name == move.closing and move.is_urgent:
                place.gives_way.set()
            else:
                place.gives_way.clear()

    def _take_out(self, name: str) -> Engine | None:
        place = self._places[name]
        engine, place.engine, place.is_closing = place.engine, None, False
        place.since_s = self._clock()
        return engine

    def _bring_in(self, name: str) -> None:
        began_s = self._clock()
        engine, failure = None, None
        try:
            engine = self._load(name)
        except ModelError as exc:
            failure = exc
            logger.error("%s; tried again after %.0f s", exc, RETRY_INTERVAL_S)
        except Exception as exc:
            # A bug, which must not end the thread: no model would be loaded any more, and all would wait.
            failure = ModelError(f"{name} could not be loaded: {exc!r}")
            logger.exception("%s; tried again after %.0f s", failure, RETRY_INTERVAL_S)
        if failure is not None:
            self._on_failure(failure)
        now_s = self._clock()
        place = self._places[name]
        with self._changed:
            if failure is None:
                self.num_loads += 1
                self._longest_load_s = max(self._longest_load_s, now_s - began_s)
            place.engine, place.failure, place.failed_s = engine, failure, now_s
            place.since_s = place.used_s = now_s
            self._changed.notify_all()
