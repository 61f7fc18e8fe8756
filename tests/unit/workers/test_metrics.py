"""What Prometheus is told of a worker."""

import socket
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batcher.errors import InputError
from batcher.jobdir.pulse import WorkerState
from tests.support.metric_tables import FIGURES, PAGE, renewed, server_text, worker_text
from workers.process.events import Event, EventKind, SavedRows
from workers.process.figures import WorkCounts
from workers.process.metrics import serving_metrics


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_figures_of_the_worker_its_engines_and_its_work_are_told() -> None:
    found = samples(worker_text())

    assert found["batcher_worker_up", (("worker", "w1"),)] == 1
    assert found["batcher_worker_state", (("state", "working"),)] == 1
    assert sum(value for (name, _), value in found.items() if name == "batcher_worker_state") == 1
    assert found["batcher_model_loaded", (("model", "other"),)] == 0
    assert found["batcher_sequences_running", (("model", "tiny"),)] == 3
    assert found["batcher_completion_tokens_total", (("model", "tiny"),)] == 70
    assert found["batcher_rows_saved_total", (("code", "timeout"), ("status", "error"))] == 2
    assert found["batcher_rows_saved_total", (("code", ""), ("status", "ok"))] == 60
    assert found["batcher_shard_runs_total", (("outcome", "committed"),)] == 7


def test_engines_have_the_same_names_at_worker_and_server() -> None:
    worker, server = (
        {name for name, _ in samples(text) if "worker" not in name} for text in (worker_text(), server_text())
    )

    assert worker - server == {"batcher_model_loaded", "batcher_rows_saved_total", "batcher_shard_runs_total"}


def test_page_has_the_metrics_that_there_are() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert renewed(page) == page, "run .venv/bin/python -m tests.support.metric_tables"


def test_what_events_say_adds_up() -> None:
    work = WorkCounts()
    for event in (
        Event(EventKind.SAVED, saved=SavedRows(3, (("timeout", 1),))),
        Event(EventKind.SAVED, saved=SavedRows(2, (("timeout", 1), ("engine_error", 4)))),
        Event(EventKind.RAN, "committed"),
        Event(EventKind.RAN, "committed"),
        Event(EventKind.READY),
    ):
        work.hear(event)

    assert work.num_ok == 5
    assert work.error_codes == {"timeout": 2, "engine_error": 4}
    assert work.outcomes == {"committed": 2}


@pytest.mark.parametrize("state", WorkerState)
def test_worker_is_up_where_it_has_its_model_and_moves(state: WorkerState) -> None:
    figures = replace(FIGURES, state=state)
    with serving_metrics(lambda: figures, host="127.0.0.1", port=0) as url, urllib.request.urlopen(url) as answer:
        found = samples(answer.read().decode())

    is_up = state.has_model and state is not WorkerState.STALLED
    assert found["batcher_worker_up", (("worker", "w1"),)] == is_up


def test_port_that_is_taken_is_an_error_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"--metrics-port {port}: cannot listen at .*; give another port"),
            serving_metrics(lambda: FIGURES, host="127.0.0.1", port=port),
        ):
            pass


def test_host_that_there_is_not_is_an_error_with_a_remedy() -> None:
    with (
        pytest.raises(InputError, match="another --metrics-host"),
        serving_metrics(lambda: FIGURES, host="no-such-host.invalid", port=0),
    ):
        pass
