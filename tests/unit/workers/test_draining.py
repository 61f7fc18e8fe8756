"""When a worker that takes no more shards has none left: told once."""

from workers.queue.draining import Draining


def test_worker_without_shards_is_drained_at_once_and_once() -> None:
    told: list[str] = []
    draining = Draining(lambda: told.append("drained"))

    draining.begin()
    draining.begin()

    assert told == ["drained"]


def test_last_of_its_shards_ends_it_and_later_ones_go_back() -> None:
    told: list[str] = []
    draining = Draining(lambda: told.append("drained"))
    assert draining.enter()
    assert draining.enter()

    draining.begin()
    assert not draining.enter()
    draining.leave()
    assert told == []
    draining.leave()

    assert told == ["drained"]


def test_shards_come_and_go_without_it() -> None:
    told: list[str] = []
    draining = Draining(lambda: told.append("drained"))

    for _ in range(2):
        assert draining.enter()
        draining.leave()

    assert not draining.has_begun
    assert told == []
