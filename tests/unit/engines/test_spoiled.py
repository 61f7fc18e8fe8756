"""A row for which the model computes NaN fails alone: what runs beside it, and what takes its slot, comes out right."""

import queue
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.errors import EngineError, ModelError
from batcher.types import ErrorCode, SamplingParams
from tests.support.tiny_engine import WAIT_S, complete, results_of, running
from tests.support.zoo import write_zoo_model
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.spoiled import MAX_SPOILED

GREEDY = SamplingParams(max_tokens=8, temperature=0, seed=0, ignore_eos=True)

#: The token of `~` in the byte alphabet (ASCII from `!` on).
SPOILED = ord("~") - ord("!") + 33

#: With a state that is cleared for all at once, and with cells that are copied over.
ARCHITECTURES = ["llama", "deepseek2", "gpt-oss", "mamba", "rwkv7", "granitehybrid", "falcon-h1"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("spoiled")
    return write_zoo_model(folder / "model.gguf", request.param, spoiled_token=SPOILED)


def texts(results: Sequence[SequenceResult]) -> list[str | None]:
    return [None if result.choice is None else result.choice.text for result in results]


def test_only_the_row_itself_fails_and_its_slot_is_clean(path: Path) -> None:
    good = [(f"row {number}, " * number, GREEDY) for number in range(1, 10)]
    bad = ("this ~ spoils it", GREEDY)
    with running(path, num_slots=3, is_deduplicating=False) as engine:
        alone = texts(results_of(engine, good))
        # More than slots, so that each is taken up after a spoiled row.
        mixed = results_of(engine, [*good[:2], bad, *good[2:5], bad, *good[5:]])
        after = texts(results_of(engine, good))

    assert texts(mixed) == [*alone[:2], None, *alone[2:5], None, *alone[5:]]
    errors = [result.error for result in mixed if result.error is not None]
    assert {error.code for error in errors} == {ErrorCode.ENGINE_ERROR}
    assert all("no numbers (NaN)" in error.message for error in errors)
    assert after == alone


def test_one_slot_is_clean_behind_a_spoiled_row(path: Path) -> None:
    with running(path, num_slots=1) as engine:
        (before,) = results_of(engine, [("hello", GREEDY)])
        (bad,) = results_of(engine, [("a ~", GREEDY)])
        (after,) = results_of(engine, [("hello again", GREEDY)])
    with running(path, num_slots=1) as engine:
        (expected,) = results_of(engine, [("hello again", GREEDY)])

    assert (before.error, bad.choice) == (None, None)
    assert texts([after]) == texts([expected])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_zoo_model(tmp_path / "model.gguf", "llama", spoiled_token=SPOILED)


def outcome(engine: LlamaEngine, prompts: Sequence[str]) -> list[SequenceResult | EngineError]:
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    requests = [SequenceRequest((at, 0), prompt, GREEDY, seed=0) for at, prompt in enumerate(prompts)]
    engine.submit(requests, inbox.put)
    found = [inbox.get(timeout=WAIT_S)]
    while len(found) < len(prompts) and not isinstance(found[-1], EngineError):
        found.append(inbox.get(timeout=WAIT_S))
    return found


def test_engine_fails_where_most_rows_are_spoiled(llama: Path) -> None:
    with running(llama, num_slots=8, is_deduplicating=False) as engine:
        found = outcome(engine, [f"{number} ~" for number in range(MAX_SPOILED)])

        assert isinstance(found[-1], EngineError)
        assert "no numbers (NaN)" in str(found[-1])
        assert isinstance(engine.failure, EngineError)


def test_engine_fails_where_one_row_after_the_other_is_spoiled(llama: Path) -> None:
    with running(llama, num_slots=1, is_deduplicating=False) as engine:
        found = outcome(engine, [f"{number} ~" for number in range(MAX_SPOILED)])

    assert isinstance(found[-1], EngineError)
    assert len(found) == MAX_SPOILED


def test_good_rows_in_between_keep_the_engine_alive(llama: Path) -> None:
    with running(llama, num_slots=1, is_deduplicating=False) as engine:
        prompts = [text for number in range(2 * MAX_SPOILED) for text in (f"{number} ~", f"{number} fine")]
        found = [text for prompt in prompts for text in texts(results_of(engine, [(prompt, GREEDY)]))]

    assert [text is None for text in found] == [True, False] * (2 * MAX_SPOILED)


def test_a_prompt_that_is_scored_fails_as_well(llama: Path) -> None:
    params = replace(GREEDY, max_tokens=0, logprobs=1)
    prompts = ("fine ~ text, and more", "fine text, and more", "another fine text")
    requests = [
        SequenceRequest((at, 0), prompt, params, seed=0, is_echoing=True, scores_prompt=True)
        for at, prompt in enumerate(prompts)
    ]
    with running(llama, num_slots=4) as engine:
        bad, *good = complete(engine, requests)

    assert bad.choice is None
    assert all(result.choice is not None for result in good)


def test_model_that_computes_no_numbers_at_all_does_not_start(tmp_path: Path) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", "llama", spoiled_token=0)

    with (
        pytest.raises(ModelError, match=r"loaded, but can't compute: its logits are no numbers \(NaN\)"),
        running(path, num_slots=2),
    ):
        pass
