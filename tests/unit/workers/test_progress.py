"""The tokens of attempts under way, as the worker's beat tells them."""

from batcher.types import Choice, FinishReason, Usage
from tests.support.manual_engine import ManualEngine
from tests.support.shard_bench import ROWS, Bench
from workers.engines.base import SequenceRequest, Ticket
from workers.process.events import AttemptBeat, OpenAttempt
from workers.shard.progress import Board
from workers.shard.runner import RunOutcome

ATTEMPT = OpenAttempt("/jobs/a", 3, 1)


def choice(tokens: int, *, cached: int = 0) -> Choice:
    return Choice(0, "text", FinishReason.STOP, Usage(5, tokens, cached), 1.0)


def test_tally_adds_what_is_finished_to_what_runs() -> None:
    board = Board()
    with board.follow(ATTEMPT) as tokens:
        tokens.max_tokens = 100
        tokens.tickets = [Ticket(count=lambda ticket: 7), Ticket()]
        tokens.add(choice(10, cached=4))
        tokens.add(choice(20, cached=5))

        assert board.look() == (AttemptBeat(ATTEMPT, num_tokens=37, num_copied=20, max_tokens=100),)
    assert board.look() == ()


def test_runner_shows_what_its_shard_has_made(bench: Bench) -> None:
    seen: list[tuple[AttemptBeat, ...]] = []

    def answer(request: SequenceRequest) -> Choice:
        seen.append(bench.context.board.look())
        return choice(3)

    assert bench.run(ManualEngine(answer)) is RunOutcome.COMMITTED

    ((first,), *_) = seen
    assert first.attempt == OpenAttempt(str(bench.job.path), 0, 1)
    assert first.max_tokens == 16 * ROWS
    assert all(one.num_tokens <= 3 * ROWS for (one,) in seen)
    assert bench.context.board.look() == ()
