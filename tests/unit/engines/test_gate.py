"""Any number together, or one alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

from workers.engines.llama.gate import Gate

WAIT_S = 10


def test_sharers_are_together() -> None:
    gate = Gate()
    together = threading.Barrier(3)

    def share() -> None:
        with gate.shared():
            together.wait(WAIT_S)

    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(share) for _ in range(3)]:
            future.result(timeout=WAIT_S)


def test_one_that_is_alone_waits_for_the_others_and_goes_before_later_ones() -> None:
    gate = Gate()
    order: list[str] = []
    leave, left = threading.Event(), threading.Event()

    def share(name: str) -> None:
        with gate.shared():
            order.append(name)

    def be_alone() -> None:
        with gate.exclusive():
            order.append("alone")
            assert left.is_set()

    with ThreadPoolExecutor() as pool:
        with gate.shared():
            alone = pool.submit(be_alone)
            while not gate._num_waiting:
                leave.wait(0.001)
            later = pool.submit(share, "later")
            assert order == []
            left.set()
        alone.result(timeout=WAIT_S)
        later.result(timeout=WAIT_S)

    assert order == ["alone", "later"]


def test_nobody_computes_beside_one_that_is_alone() -> None:
    gate = Gate()
    inside = 0
    lock = threading.Lock()

    def work(is_alone: bool) -> None:
        nonlocal inside
        for _ in range(200):
            with gate.exclusive() if is_alone else gate.shared():
                with lock:
                    inside += 1
                    assert not is_alone or inside == 1
                with lock:
                    inside -= 1

    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(work, i == 0) for i in range(4)]:
            future.result(timeout=WAIT_S)


def test_error_leaves_the_gate_open() -> None:
    gate = Gate()
    for hold in (gate.exclusive, gate.shared):
        try:
            with hold():
                raise KeyError
        except KeyError:
            pass
    with gate.exclusive():
        pass
