"""Engines that are loaded when they are wanted, and stay while somebody uses them."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from batcher.errors import BrokerError, ModelError
from batcher.types import NORMAL, PRIORITIES
from tests.support.clock import Clock
from tests.support.manual_engine import ManualEngine
from tests.support.waiting import PATIENCE_S, wait_for
from workers.engines.base import Engine
from workers.engines.pool import RETRY_INTERVAL_S, EnginePool, NotLoadedError, RotatingPool
from workers.engines.rotation import Move, Stay

NAMES = ("ada", "bob", "eve")


class Models:
    """What loads them, and the queues of their shards."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.trouble: Exception = ModelError("ada is damaged")
        self.waiting: dict[str, int] = {}
        self.urgent: set[str] = set()
        self.is_away = False
        self.most_at_once = 0
        self.num_open = 0

    def load(self, name: str) -> Engine:
        if name in self.broken:
            raise self.trouble
        self.num_open += 1
        self.most_at_once = max(self.most_at_once, self.num_open)
        return CountedEngine(name, self)

    def count(self) -> Mapping[str, Mapping[int, int]]:
        if self.is_away:
            raise BrokerError("away")
        waiting = {name: {NORMAL: number} for name, number in self.waiting.items()}
        return waiting | {name: {**waiting.get(name, {}), PRIORITIES[-1]: 1} for name in self.urgent}


class CountedEngine(ManualEngine):
    def __init__(self, name: str, models: Models) -> None:
        super().__init__()
        self.name = name
        self._models = models
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        self._models.num_open -= 1
        super().close()


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def pool(models: Models, clock: Clock) -> Iterator[RotatingPool]:
    """With room for two, which the test steps by hand."""
    pool = RotatingPool(
        NAMES,
        load=models.load,
        has_room=lambda name, beside: len(beside) < 2,
        usual_slots=32,
        count_waiting=models.count,
        stay=Stay(20.0, 1.0),
        clock=clock,
    )
    yield pool
    pool.close()
    assert models.num_open == 0


def test_shards_are_taken_of_loaded_models_alone(pool: RotatingPool, models: Models) -> None:
    models.waiting = {"bob": 3}

    assert pool.step() == Move(load="bob")

    assert [name for name in NAMES if pool.takes_shards(name)] == ["bob"]
    with pool.using("bob") as engine:
        assert engine.name == "bob"
    with pytest.raises(NotLoadedError), pool.using("ada"):
        pass


def test_engine_in_use_is_not_closed_and_takes_no_more_shards_after_its_turn(
    pool: RotatingPool, models: Models, clock: Clock
) -> None:
    models.waiting = dict.fromkeys(NAMES, 5)
    for _ in range(2):
        pool.step()
    engine = pool.acquire("ada")
    clock.now += 30

    assert pool.step() == Move(closing="ada")
    assert not pool.takes_shards("ada")
    assert pool.takes_shards("bob")
    assert not pool.must_give_back("ada")
    assert isinstance(engine, CountedEngine)
    assert not engine.is_closed

    pool.release("ada")
    assert pool.step().leave == "ada"
    assert engine.is_closed
    assert pool.step() == Move(load="eve")


def test_urgent_shard_has_no_more_of_the_others_taken_and_none_given_back(
    pool: RotatingPool, models: Models, clock: Clock
) -> None:
    models.waiting = {"ada": 5, "bob": 5}
    for _ in range(2):
        pool.step()
    pool.acquire("ada")
    models.urgent = {"eve", "bob"}
    clock.now += 5

    assert pool.step() == Move(closing="ada")
    assert [name for name in NAMES if pool.takes_shards(name)] == ["bob"]
    assert not pool.must_give_back("ada")

    pool.release("ada")
    assert pool.step().leave == "ada"
    assert pool.step() == Move(load="eve")


def test_live_request_has_shards_given_back(pool: RotatingPool, models: Models) -> None:
    models.waiting = {"ada": 5, "bob": 5}
    for _ in range(2):
        pool.step()
    for name in ("ada", "bob"):
        pool.acquire(name)

    with ThreadPoolExecutor() as threads:
        live = threads.submit(pool.acquire, "eve", patience_s=PATIENCE_S)
        wait_for(lambda: pool.step().is_urgent, what="a model is to give way")
        assert [name for name in NAMES if pool.must_give_back(name)] == ["ada"]
        pool.release("ada")
        assert pool.step().leave == "ada"
        assert pool.step() == Move(load="eve")
        assert live.result(PATIENCE_S).name == "eve"
    assert not any(pool.must_give_back(name) for name in NAMES)


@pytest.mark.parametrize("trouble", [ModelError("ada is damaged"), MemoryError("ada is damaged")], ids=["known", "bug"])
def test_model_that_cannot_be_loaded_is_told_to_who_waits_and_tried_again_later(
    pool: RotatingPool, models: Models, clock: Clock, trouble: Exception
) -> None:
    models.broken, models.trouble = {"ada"}, trouble
    models.waiting = {"ada": 1}

    assert pool.step() == Move(load="ada")
    assert pool.step() == Move()
    with pytest.raises(ModelError, match="ada is damaged"):
        pool.acquire("ada", patience_s=PATIENCE_S)

    models.broken = set()
    clock.now += RETRY_INTERVAL_S
    assert pool.step() == Move(load="ada")
    assert pool.takes_shards("ada")


def test_model_that_ended_an_earlier_process_is_never_loaded(models: Models, clock: Clock) -> None:
    pool = RotatingPool(
        NAMES,
        load=models.load,
        has_room=lambda name, beside: True,
        usual_slots=32,
        fatal=["ada"],
        count_waiting=lambda: {"ada": {NORMAL: 5}},
        clock=clock,
    )
    clock.now += 10 * RETRY_INTERVAL_S

    assert pool.step() == Move()
    with pytest.raises(ModelError, match="ended an earlier process"):
        pool.acquire("ada", patience_s=PATIENCE_S)


def test_broker_that_is_away_changes_nothing(pool: RotatingPool, models: Models) -> None:
    models.waiting = {"ada": 1}
    pool.step()
    models.is_away = True

    assert pool.step() == Move()
    assert pool.takes_shards("ada")


def test_who_waits_too_long_hears_of_it(pool: RotatingPool) -> None:
    with pytest.raises(NotLoadedError, match="not loaded yet"):
        pool.acquire("ada", patience_s=0.01)


def test_many_who_use_models_in_turns_all_get_theirs(models: Models) -> None:
    pool = RotatingPool(
        NAMES,
        load=models.load,
        has_room=lambda name, beside: len(beside) < 2,
        usual_slots=32,
        count_waiting=models.count,
    )
    pool.start()
    barrier = threading.Barrier(9)

    def use(number: int) -> int:
        barrier.wait(PATIENCE_S)
        for turn in range(10):
            name = NAMES[(number + turn) % 3]
            assert pool.acquire(name, patience_s=PATIENCE_S).name == name
            pool.release(name)
        return number

    with ThreadPoolExecutor(9) as threads:
        assert sorted(threads.map(use, range(9))) == list(range(9))

    pool.close()
    assert models.num_open == 0
    assert models.most_at_once == 2


def test_engines_of_a_pool_that_does_not_rotate_are_always_there() -> None:
    engine: Engine = ManualEngine()
    pool = EnginePool({"ada": engine})

    assert pool.names == ("ada",)
    assert pool.takes_shards("ada")
    assert pool.acquire("ada") is engine
    assert pool.most_slots == engine.num_slots
    pool.close()
