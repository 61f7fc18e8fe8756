"""What Prometheus can ask of a worker: `GET /metrics` at a port of its supervisor, which answers while no child lives.

docs/metrics.md has the names. There is no key: numbers and names are all that it tells.
"""

import contextlib
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batcher import __version__
from batcher.engine_metrics import ENGINE_COUNTERS, ENGINE_GAUGES
from batcher.errors import InputError
from batcher.jobdir.pulse import WorkerState
from workers.process.figures import WorkerFigures

#: Figures of `EngineLoad` that are shown, and where `Tokens` has them that add up.
_LOADS = ("num_slots", "num_running", "num_waiting")
_TOKENS = {"num_prompt_tokens": "prompt", "num_cached_tokens": "cached", "num_completion_tokens": "completion"}


@contextlib.contextmanager
def serving_metrics(read: Callable[[], WorkerFigures], *, host: str, port: int) -> Iterator[str]:
    """Answer scrapes in threads of its own, within the block; yields the URL. `read` is called in them.

    Port 0 is a free one. Raises InputError where it can't be listened at.
    """
    registry = CollectorRegistry()
    registry.register(Figures(read))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise InputError(
            f"--metrics-port {port}: cannot listen at {host}:{port}: {exc.strerror or exc}; give another port (0: any "
            "that is free), or another --metrics-host"
        ) from exc
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Figures(Collector):
    """The worker as it is at the moment of a scrape."""

    def __init__(self, read: Callable[[], WorkerFigures]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not ask for figures."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = self._read()
        yield from _of_worker(figures)
        yield from _of_engines(figures)
        yield from _of_work(figures)


def _of_worker(figures: WorkerFigures) -> Iterator[Metric]:
    is_up = figures.state.has_model and figures.state is not WorkerState.STALLED
    for name, text, value in (
        ("batcher_worker_up", "1 where the worker is alive and moves, else 0", float(is_up)),
        ("batcher_worker_shards", "Shards that the worker holds", figures.num_shards),
        ("batcher_worker_crashes", "Deaths of the worker's process", figures.num_crashes),
        ("batcher_worker_stalled_seconds", "Seconds without a step while there is work", figures.stalled_s),
    ):
        family = GaugeMetricFamily(name, text, labels=["worker"])
        family.add_metric([figures.name], value)
        yield family
    state = GaugeMetricFamily("batcher_worker_state", "1 for the state that the worker is in", labels=["state"])
    for each in WorkerState:
        state.add_metric([each.value], float(each is figures.state))
    yield state
    info = GaugeMetricFamily("batcher_worker_info", "1; the version of Batcher", labels=["worker", "version"])
    info.add_metric([figures.name, __version__], 1.0)
    yield info


def _of_engines(figures: WorkerFigures) -> Iterator[Metric]:
    loaded = GaugeMetricFamily("batcher_model_loaded", "1 where the model is in memory, else 0", labels=["model"])
    for model in figures.tokens:
        loaded.add_metric([model], float(model in figures.loads))
    yield loaded
    for attribute in _LOADS:
        gauge = GaugeMetricFamily(*ENGINE_GAUGES[attribute], labels=["model"])
        for model, load in figures.loads.items():
            gauge.add_metric([model], float(getattr(load, attribute)))
        yield gauge
    for attribute, kind in _TOKENS.items():
        counter = CounterMetricFamily(*ENGINE_COUNTERS[attribute], labels=["model"])
        for model, tokens in figures.tokens.items():
            counter.add_metric([model], float(getattr(tokens, kind)))
        yield counter


def _of_work(figures: WorkerFigures) -> Iterator[Metric]:
    work = figures.work
    runs = CounterMetricFamily("batcher_shard_runs", "Runs of shards by how they ended", labels=["outcome"])
    for outcome, number in sorted(work.outcomes.copy().items()):
        runs.add_metric([outcome], number)
    yield runs
    rows = CounterMetricFamily("batcher_rows_saved", "Rows that were saved, by error code", labels=["status", "code"])
    rows.add_metric(["ok", ""], work.num_ok)
    for code, number in sorted(work.error_codes.copy().items()):
        rows.add_metric(["error", code], number)
    yield rows
