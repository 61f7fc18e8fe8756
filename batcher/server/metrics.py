"""What Prometheus can ask of the server (`GET /metrics`).

Requests are counted here as they happen. What engines, jobs and workers are doing is not kept but asked for when
somebody looks, so it is never older than the answer (of jobs: than a few seconds, see `census`).
"""

import collections
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from batcher.engine_metrics import ENGINE_COUNTERS, ENGINE_GAUGES
from batcher.jobdir.heartbeats import Health
from batcher.server.census import Census
from batcher.server.guard.clients import Usage
from batcher.types import EngineStats

#: Seconds. From an answer that was ready to a completion of minutes.
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

#: Methods that are told apart; whatever else somebody sends is one more.
_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})


class Metrics:
    """The counts of one server, on a registry of its own: two servers in a process don't add up."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "batcher_http_requests",
            "Requests by route, method and status (499: the client hung up)",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "batcher_http_request_seconds",
            "Time from the request's head to the end of its answer",
            ("route",),
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "batcher_time_to_first_token_seconds",
            "Time from a streaming request's body to its first piece of text",
            ("model",),
            buckets=_LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._open = Gauge("batcher_http_requests_open", "Requests being answered", registry=self._registry)

    def begin(self) -> None:
        self._open.inc()

    def end(self, route: str, *, method: str, status: int, seconds: float) -> None:
        """A request is over. `status` 0: it had no answer."""
        self._open.dec()
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def first_token(self, model: str, *, seconds: float) -> None:
        self._first_token.labels(model).observe(seconds)

    def render(self, engines: Mapping[str, EngineStats], census: Census | None) -> bytes:
        """All that there is to say, in the text format of Prometheus."""
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(engines, census, self._usage))
        return generate_latest(self._registry) + generate_latest(snapshot)


class _Snapshot(Collector):
    """Engines, jobs, workers and keys as they are now."""

    def __init__(self, engines: Mapping[str, EngineStats], census: Census | None, usage: Usage) -> None:
        self._engines = engines
        self._census = census
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        for attribute, (name, text) in ENGINE_GAUGES.items():
            yield self._fill(GaugeMetricFamily(name, text, labels=["model"]), attribute)
        for attribute, (name, text) in ENGINE_COUNTERS.items():
            yield self._fill(CounterMetricFamily(name, text, labels=["model"]), attribute)
        yield from _keys(self._usage)
        if self._census is not None:
            yield from _jobs(self._census)
            yield from _workers(self._census)

    def _fill(self, family: GaugeMetricFamily | CounterMetricFamily, attribute: str) -> Metric:
        for model, stats in self._engines.items():
            family.add_metric([model], float(getattr(stats, attribute)))
        return family


def _keys(usage: Usage) -> Iterator[Metric]:
    """What each key holds. By its number: the key itself is nobody's business."""
    refusals = CounterMetricFamily(
        "batcher_key_refusals", "Requests refused for what their key holds already", labels=["key", "limit"]
    )
    for name, text, limit, holdings in (
        ("batcher_key_requests_open", "Requests of the key being answered", "concurrent", usage.requests),
        (
            "batcher_key_completions_queued",
            "Live completions of the key, running and waiting",
            "queue",
            usage.completions,
        ),
        ("batcher_key_body_bytes", "Bytes of the bodies of the key's open requests", "held", usage.body_bytes),
    ):
        family = GaugeMetricFamily(name, text, labels=["key"])
        for key in usage.keys:
            family.add_metric([key], holdings.of(key))
            refusals.add_metric([key, limit], holdings.num_refused(key))
        yield family
    yield refusals


def _jobs(census: Census) -> Iterator[Metric]:
    for name, text, label, numbers in (
        ("batcher_jobs", "Jobs of the jobs root by state", "state", census.jobs),
        ("batcher_shards", "Shards of all jobs by state", "state", census.shards),
        ("batcher_rows", "Rows of all jobs by status", "status", census.rows),
    ):
        family = GaugeMetricFamily(name, text, labels=[label])
        for value, number in numbers.items():
            family.add_metric([value], number)
        yield family


def _workers(census: Census) -> Iterator[Metric]:
    total = GaugeMetricFamily("batcher_workers", "Workers of the jobs root by health", labels=["health"])
    for health in Health:
        total.add_metric([health.value], sum(report.health is health for report in census.workers))
    up = GaugeMetricFamily("batcher_worker_up", "1 where the worker is alive and moves, else 0", labels=["worker"])
    shards = GaugeMetricFamily("batcher_worker_shards", "Shards that the worker holds", labels=["worker"])
    age = GaugeMetricFamily("batcher_worker_heartbeat_age_seconds", "Age of the last sign of life", labels=["worker"])
    crashes = GaugeMetricFamily("batcher_worker_crashes", "Deaths of the worker's process", labels=["worker"])
    names = collections.Counter(report.beat.name for report in census.workers)
    for report in census.workers:
        beat = report.beat
        # A series with the labels of another would make Prometheus refuse the page.
        name = [beat.name if names[beat.name] == 1 else f"{beat.name} ({beat.host} {beat.pid} {beat.instance})"]
        up.add_metric(name, float(report.health is Health.ALIVE))
        shards.add_metric(name, len(report.beat.shards))
        age.add_metric(name, report.age_s)
        crashes.add_metric(name, report.beat.num_crashes)
    yield from (total, up, shards, age, crashes)
