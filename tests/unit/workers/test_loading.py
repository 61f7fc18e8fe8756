"""What a death while a model was loaded means for the model, and for the rows of others."""

import pytest

from batcher.jobdir.attempts import Cause
from workers.process.loading import LoadDeaths, loading_failure


def test_fault_of_a_process_that_computed_nothing_else_is_the_models() -> None:
    death = LoadDeaths().judge("huge", Cause.FAULT, "signal SIGSEGV", is_computing=False)

    assert death.is_left_out
    assert death.cause is Cause.KILLED
    assert death.message.startswith("its process died while it loaded huge (signal SIGSEGV); that model is left out")
    assert "may be damaged" in death.message


@pytest.mark.parametrize(
    ("cause", "is_computing", "why"),
    [
        (Cause.FAULT, True, "which of them is to blame is not known"),
        (Cause.MEMORY, True, "memory was short"),
        (Cause.MEMORY, False, "memory was short"),
    ],
)
def test_what_may_have_had_another_reason_is_tried_once_more(cause: Cause, is_computing: bool, why: str) -> None:
    deaths = LoadDeaths()

    first = deaths.judge("huge", cause, "signal", is_computing=is_computing)
    other = deaths.judge("other", cause, "signal", is_computing=is_computing)
    second = deaths.judge("huge", cause, "signal", is_computing=is_computing)

    assert [first.is_left_out, other.is_left_out, second.is_left_out] == [False, False, True]
    assert why in first.message
    assert first.cause is second.cause is Cause.KILLED
    assert ("more memory" in second.message) is (cause is Cause.MEMORY)


@pytest.mark.parametrize("cause", [Cause.KILLED, Cause.STALLED])
def test_what_is_not_the_models_doing_never_leaves_it_out_and_weighs_as_ever(cause: Cause) -> None:
    deaths = LoadDeaths()

    found = [deaths.judge("huge", cause, "why", is_computing=True) for _ in range(5)]

    assert [death.is_left_out for death in found] == [False] * 5
    assert {death.cause for death in found} == {cause}
    assert "loaded again" in found[0].message


def test_worker_that_cannot_start_says_what_helps_by_the_cause() -> None:
    said = {cause: loading_failure("/m/a.gguf", cause, "how") for cause in (Cause.FAULT, Cause.MEMORY, Cause.KILLED)}

    assert all(text.startswith("/m/a.gguf: the worker died while loading it (how); ") for text in said.values())
    assert "damaged" in said[Cause.FAULT]
    assert "damaged" not in said[Cause.MEMORY] + said[Cause.KILLED]
    assert "more memory" in said[Cause.MEMORY]
