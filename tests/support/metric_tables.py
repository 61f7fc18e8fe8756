"""The tables of docs/metrics.md, made of what a server and a worker really answer.

    .venv/bin/python -m tests.support.metric_tables

writes them anew; a test asks that they are as this makes them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from batcher.jobdir.heartbeats import Health, WorkerHeartbeat, WorkerReport
from batcher.jobdir.pulse import WorkerState
from batcher.server.census import Census
from batcher.server.guard.clients import Usage
from batcher.server.guard.limits import Limits
from batcher.server.metrics import Metrics
from batcher.types import EngineStats
from workers.process.events import EngineLoad
from workers.process.figures import WorkCounts, WorkerFigures
from workers.process.load import Tokens
from workers.process.metrics import Figures

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_BEGIN = "<!-- Made of what server and worker answer by `python -m tests.support.metric_tables`. -->\n"
_END = "<!-- End of the metrics. -->\n"

FIGURES = WorkerFigures(
    name="w1",
    state=WorkerState.WORKING,
    stalled_s=0.0,
    num_shards=2,
    num_crashes=1,
    loads={"tiny": EngineLoad(num_slots=4, num_running=3, num_waiting=5)},
    tokens={"tiny": Tokens(prompt=30, cached=10, completion=70), "other": Tokens()},
    work=WorkCounts(num_ok=60, error_codes=Counter(timeout=2), outcomes=Counter(committed=7, failed=1)),
)


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(page: str) -> str:
    """The page with the tables as they should be."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{_tables()}\n{_END}{after}"


def worker_text() -> str:
    """What a worker answers."""
    registry = CollectorRegistry()
    registry.register(Figures(lambda: FIGURES))
    return generate_latest(registry).decode()


def server_text() -> str:
    """What a server answers that has engines, jobs, workers and keys."""
    now = datetime.now(UTC)
    beat = WorkerHeartbeat("w1", "host", 17, "0.1.0", ("tiny",), now, now, WorkerState.WORKING, 5.0)
    reports = (WorkerReport(beat, Health.ALIVE, 1.0), WorkerReport(replace(beat, name="w2"), Health.GONE, 9.0))
    metrics = Metrics(Usage(Limits(), num_keys=1))
    metrics.begin()
    metrics.end("/v1/completions", method="POST", status=200, seconds=0.1)
    metrics.first_token("tiny", seconds=0.1)
    stats = EngineStats(*range(1, 1 + len(fields(EngineStats))))
    census = Census({"running": 1}, {"waiting": 2}, {"ok": 3}, reports)
    return metrics.render({"tiny": stats}, census).decode()


def _tables() -> str:
    parts = []
    for title, text in (("Of a worker", worker_text()), ("Of a server", server_text())):
        rows = sorted(set(_rows(text_string_to_metric_families(text))))
        parts += [f"## {title}\n", "| metric | kind | labels | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _rows(families: Iterable[Metric]) -> Iterable[str]:
    for family in families:
        # The time of creation, which the library adds.
        if family.name.endswith("_created"):
            continue
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        shown = ", ".join(f"`{name}`" for name in sorted(labels))
        name = f"{family.name}_total" if family.type == "counter" else family.name
        yield f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


if __name__ == "__main__":
    main()
