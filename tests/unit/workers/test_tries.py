"""Answers that a job does not take: cut off, refused by a validator, or without a place in their column."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batcher import constraints
from batcher.errors import EngineError, JobError
from batcher.jobdir.attempts import Cause, Outcome, record_end
from batcher.types import (
    AnswerRules,
    Choice,
    Constraint,
    ErrorCode,
    FinishReason,
    OnTruncation,
    RowError,
    SamplingParams,
    Usage,
)
from tests.support.job_files import make_job
from tests.support.manual_engine import ManualEngine
from tests.support.shard_bench import ROWS, Bench
from workers.engines.base import OnDelta, OnStart, SequenceRequest, Sink, Ticket, ignore_start
from workers.shard.runner import RunOutcome
from workers.shard.validators import ValidatorRef

INTEGER = constraints.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
VALIDATOR = f"{__name__}:refuses_odd"


def refuses_odd(answer: Any) -> object:
    """In the form that the answer names."""
    if isinstance(answer, dict):
        return None if answer["a"] % 2 == 0 else f"{answer['a']} is odd"
    if answer == "raise":
        raise ValueError("it was to raise")
    return {"yes": True, "none": None, "no": False, "why": "because"}[answer]


def cut(request: SequenceRequest, text: str) -> Choice:
    return Choice(request.key[1], text, FinishReason.LENGTH, Usage(3, request.params.max_tokens), 1.0)


def prepare(
    bench: Bench,
    *,
    constraint: Constraint | None = None,
    temperature: float = 1.0,
    n: int = 1,
    **rules: Any,
) -> None:
    """Give the bench a job with these rules, and a worker that may call the validator."""
    params = SamplingParams(constraint=constraint, temperature=temperature, n=n)
    bench.job = make_job(bench.job.path.with_name("other"), (ROWS,), params=params, answers=AnswerRules(**rules))
    bench.context = replace(bench.context, validators=(ValidatorRef(VALIDATOR, str(Path(__file__).parents[3])),))


def seeds_of(engine: ManualEngine, prompt: str) -> list[int]:
    return [request.seed for request in engine.seen if request.prompt == prompt]


def test_answers_that_are_cut_off_are_marked_unless_told_otherwise(bench: Bench) -> None:
    engine = ManualEngine(lambda request: cut(request, "tex"))

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert bench.part()["finish_reason"] == ["length"] * ROWS
    assert len(engine.seen) == ROWS


def test_answers_that_are_cut_off_can_be_errors(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.FAIL)

    bench.run(ManualEngine(lambda request: cut(request, "tex") if request.prompt == "prompt 2.0" else "text"))

    part = bench.part()
    assert part["error_code"] == [None, None, "truncated", None, None, None]
    assert part["text"][2] is None
    assert "max_tokens is 16, and the answer was longer" in str(part["error_message"][2])


def test_answers_that_are_cut_off_get_twice_the_tokens_and_the_same_seed(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.RETRY)
    engine = ManualEngine(lambda request: cut(request, "tex") if request.params.max_tokens == 16 else "texts")

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert bench.part()["row"] == list(range(ROWS))
    assert bench.part()["text"] == ["texts"] * ROWS
    assert len(set(seeds_of(engine, "prompt 3.0"))) == 1
    assert [request.params.max_tokens for request in engine.seen if request.prompt == "prompt 3.0"] == [16, 32]
    assert engine.seen[-1].params.clips_max_tokens


def test_answers_that_are_too_long_for_that_too_are_marked(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.RETRY)
    engine = ManualEngine(lambda request: cut(request, f"{request.params.max_tokens}"))

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert bench.part()["text"] == ["32"] * ROWS
    assert bench.part()["finish_reason"] == ["length"] * ROWS
    assert len(engine.seen) == 2 * ROWS


def test_answers_that_are_cut_off_are_kept_where_the_longer_try_fails(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.RETRY)
    failure = RowError(ErrorCode.TIMEOUT, "too slow")
    engine = ManualEngine(lambda request: cut(request, "tex") if request.params.max_tokens == 16 else failure)

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert bench.part()["text"] == ["tex"] * ROWS
    assert bench.part()["finish_reason"] == ["length"] * ROWS
    assert bench.part()["error_code"] == [None] * ROWS
    assert len(engine.seen) == 2 * ROWS


def test_answers_that_were_refused_are_not_kept_where_their_next_try_fails(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.RETRY, validator=VALIDATOR, retry_invalid=1)
    answers: dict[str, Iterator[Choice | str | RowError]] = {}

    def answer(request: SequenceRequest) -> Choice | str | RowError:
        tries: list[Choice | str | RowError] = [cut(request, "tex"), "no", RowError(ErrorCode.TIMEOUT, "too slow")]
        return next(answers.setdefault(request.prompt, iter(tries)))

    assert bench.run(ManualEngine(answer)) is RunOutcome.COMMITTED

    assert bench.part()["error_code"] == ["timeout"] * ROWS


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("no", "the validator says no"), ("why", "because"), ("raise", "it was to raise"), ("other", "KeyError: 'other'")],
)
def test_refused_rows_are_errors_with_the_reason(bench: Bench, answer: str, reason: str) -> None:
    prepare(bench, validator=VALIDATOR)
    engine = ManualEngine(lambda request: answer if request.prompt == "prompt 1.0" else "yes")

    assert bench.run(engine) is RunOutcome.COMMITTED

    part = bench.part()
    assert part["error_code"] == [None, "invalid_answer", None, None, None, None]
    assert part["error_message"][1] == f"the answer {answer!r} was refused: {reason}"
    assert len(engine.seen) == ROWS


def test_refused_rows_are_computed_again_with_other_seeds(bench: Bench) -> None:
    prepare(bench, validator=VALIDATOR, retry_invalid=3)
    first: dict[str, int] = {}
    engine = ManualEngine(
        lambda request: "no" if first.setdefault(request.prompt, request.seed) == request.seed else "none"
    )

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert bench.part()["row"] == list(range(ROWS))
    assert bench.part()["text"] == ["none"] * ROWS
    assert len(engine.seen) == 2 * ROWS


def test_rows_that_are_refused_each_time_are_errors_after_so_many_tries(bench: Bench) -> None:
    prepare(bench, validator=VALIDATOR, retry_invalid=2, n=2)
    engine = ManualEngine(lambda request: "no" if request.prompt == "prompt 1.0" and request.key[1] == 1 else "yes")

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert bench.part()["error_message"][2] == (
        "the answer 'no' was refused: the validator says no (the last of 3 tries)"
    )
    seeds = seeds_of(engine, "prompt 1.0")
    assert len(set(seeds)) == len(seeds) == 6


def test_without_sampling_nothing_is_computed_again(bench: Bench) -> None:
    prepare(bench, validator=VALIDATOR, retry_invalid=2, temperature=0.0)
    engine = ManualEngine(lambda request: "no")

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert len(engine.seen) == ROWS
    assert str(bench.part()["error_message"][0]).endswith("; without sampling another try would give the same")


def test_tries_have_the_same_seeds_in_every_attempt(bench: Bench) -> None:
    prepare(bench, validator=VALIDATOR, retry_invalid=2)
    engines = []
    for _ in range(2):
        engines.append(ManualEngine(lambda request: "no"))
        bench.run(engines[-1])
        bench.job.part_path(0).unlink()

    assert seeds_of(engines[0], "prompt 5.0") == seeds_of(engines[1], "prompt 5.0")


def test_answers_to_a_schema_are_asked_of_as_values(bench: Bench) -> None:
    prepare(bench, constraint=INTEGER, validator=VALIDATOR)

    bench.run(ManualEngine(lambda request: f'{{"a": {request.prompt[7]}}}'))

    part = bench.part()
    assert part["output"] == [{"a": row} if row % 2 == 0 else None for row in range(ROWS)]
    assert part["error_message"][3] == """the answer '{"a": 3}' was refused: 3 is odd"""


@pytest.mark.parametrize(
    ("constraint", "misfit", "fit", "reason"),
    [
        (INTEGER, '{"a": 18446744073709551616}', '{"a": 1}', "it does not fit the type of `output`"),
        (constraints.choice(["a", "b"]), "c", "a", "it is none of the choices"),
    ],
)
def test_what_has_no_place_in_its_column_is_refused_where_retries_are_wanted(
    bench: Bench, constraint: Constraint, misfit: str, fit: str, reason: str
) -> None:
    prepare(bench, constraint=constraint, retry_invalid=1)
    bench.run(ManualEngine(lambda request: misfit if request.prompt == "prompt 0.0" else fit))

    part = bench.part()
    assert part["error_code"][:2] == ["invalid_answer", None]
    assert reason in str(part["error_message"][0])


def test_what_has_no_place_in_its_column_is_null_where_nothing_is_refused(bench: Bench) -> None:
    prepare(bench, constraint=INTEGER)

    bench.run(ManualEngine(lambda request: "no JSON"))

    assert bench.part()["status"] == ["ok"] * ROWS
    assert bench.part()["output"] == [None] * ROWS


def test_a_null_that_the_schema_allows_is_no_misfit(bench: Bench) -> None:
    prepare(bench, constraint=constraints.json_schema({"type": ["integer", "null"]}), retry_invalid=1)

    bench.run(ManualEngine(lambda request: "null"))

    assert bench.part()["status"] == ["ok"] * ROWS


def test_a_stop_amid_tries_loses_and_doubles_nothing(bench: Bench) -> None:
    """Given rows that are computed twice, when the worker stops after some, then the next attempt does the others."""
    prepare(bench, on_truncation=OnTruncation.RETRY)

    def answer(request: SequenceRequest) -> str | Choice:
        return cut(request, "tex") if request.params.max_tokens == 16 else "texts"

    _, running = bench.begin(ROWS + 2, answer=answer)
    bench.stopping.set()
    assert running.result(timeout=10) is RunOutcome.STOPPED
    assert bench.chunk_rows() == [0, 1]

    bench.stopping.clear()
    assert bench.run(ManualEngine(answer)) is RunOutcome.COMMITTED
    assert bench.part()["row"] == list(range(ROWS))
    assert bench.part()["text"] == ["texts"] * ROWS


class RefusingSecond(ManualEngine):
    """Dies of what is submitted after its first requests."""

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        if self.seen:
            raise EngineError("dead")
        return super().submit(requests, sink, on_start=on_start, on_delta=on_delta, is_alone=is_alone)


def test_an_engine_that_dies_before_a_second_try_leaves_what_is_finished(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.RETRY)
    last = f"prompt {ROWS - 1}.0"

    with pytest.raises(EngineError, match="dead"):
        bench.run(RefusingSecond(lambda request: cut(request, "tex") if request.prompt == last else "text"))

    assert bench.chunk_rows() == list(range(ROWS - 1))


def test_a_suspect_is_alone_in_each_of_its_tries(bench: Bench) -> None:
    prepare(bench, on_truncation=OnTruncation.RETRY)
    attempt = bench.job.claim_attempt(0, worker="w0")
    bench.job.journal_path(0, attempt=attempt).write_text(".\n+ 1\n")
    record_end(bench.job, 0, attempt, worker="w0", outcome=Outcome.CRASHED, cause=Cause.FAULT, detail="")
    engine = ManualEngine(lambda request: cut(request, "tex") if request.params.max_tokens == 16 else "texts")

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert [request.prompt for request in engine.seen if request.is_alone] == ["prompt 1.0"] * 2
    assert bench.part()["text"] == ["texts"] * ROWS


def test_a_worker_calls_no_function_that_it_was_not_told_of(bench: Bench) -> None:
    prepare(bench, validator="os:system")
    engine = ManualEngine()

    with pytest.raises(JobError, match="may not call; start it with --allow-validator os:system"):
        bench.run(engine)

    assert not engine.seen
