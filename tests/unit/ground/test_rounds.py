"""What waits is handed out by rounds."""

from batcher.rounds import Rounds


def test_clients_take_turns_and_their_own_stay_in_order() -> None:
    rounds: Rounds[str] = Rounds()
    for thing in ("a1", "a2", "a3", "b1", "b2", "c1"):
        rounds.put(thing[0], thing)

    assert [rounds.pop() for _ in range(4)] == ["a1", "b1", "c1", "a2"]
    rounds.put("c", "c2")
    rounds.put("d", "d1")
    found = []
    while rounds:
        found.append(rounds.pop())
    assert found == ["b2", "a3", "c2", "d1"]
