"""The workers of a jobs folder, and those that work at its broker in another folder: `workers`, `drain`."""

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from batcher.errors import BatcherError
from batcher.jobdir.drains import read_drains
from batcher.jobdir.heartbeats import Health, HeldShard, WorkerReport, read_heartbeats
from batcher.jobdir.pulse import WorkerState
from batcher.jobdir.scope import known_scope

if TYPE_CHECKING:
    from batcher.broker.presence import Presence

#: The states of workers that are not of this folder.
ELSEWHERE, IN_A_COPY = "elsewhere", "in a copy"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker, by its last sign of life.

    `state` is alive, loading (its model), stalled (it has work and its engine makes no step), restarting (its process
    died), draining or stopping, gone (it gives no sign of life), elsewhere (it works at the broker, but in the jobs
    folder `folder` of its machine) or in a copy: it takes messages of this folder's jobs, and gives no sign of life in
    it. Of the last two no more is known. `shards` are those that it holds. `num_running` of its `num_slots` sequences
    are computed now, `tokens_per_s` counts completion tokens of the last seconds. `num_crashes` are deaths of its
    process, of which `last_crash` says how the last one ended.
    """

    name: str
    host: str
    pid: int
    version: str
    models: tuple[str, ...]
    state: str
    folder: str
    shards: tuple[HeldShard, ...] = ()
    num_slots: int = 0
    num_running: int = 0
    tokens_per_s: float = 0.0
    uptime_s: float = 0.0
    age_s: float = 0.0
    num_crashes: int = 0
    last_crash: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it works in another jobs folder."""
        return self.state in (ELSEWHERE, IN_A_COPY)


def workers(*, jobs_dir: str | os.PathLike[str] | None = None, broker: str | None = None) -> list[Worker]:
    """The workers of a jobs folder, by name, from their signs of life there; those that ended in good order left none.

        [worker.name for worker in batcher.workers(jobs_dir="/mnt/jobs") if worker.state == "stalled"]

    With `broker`, else with BATCHER_BROKER of the environment, also those that work there in another jobs folder: their
    `state` is "elsewhere", and they take none of the jobs here. Raises BrokerError where the broker can't be asked.
    """
    from batcher.api.jobs import jobs_folder
    from batcher.api.work import find_broker

    root = jobs_folder(jobs_dir)
    url = find_broker(broker)
    # Before the signs: a worker gives its first sign a moment after it has come to the broker.
    present = [] if url is None else _read_broker(url)
    reports = read_heartbeats(root)
    # A worker hears of it at its next sign of life.
    asked = read_drains(root)
    here = [_worker(report, root, is_asked=(report.beat.name, report.beat.instance) in asked) for report in reports]
    return here + find_elsewhere(root, present, reports)


def drain(*names: str, jobs_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Have workers finish the shards that they have, take no more, and end; returns the names of those that will.

    Each is given by its name, by `NAME~INSTANCE` where several have that name, or by a host: all workers there. Returns
    at once; `workers` shows them as "draining", and no more once they have ended. Raises InputError where one means
    nobody, and then nobody is drained; StorageError.
    """
    from batcher.api.jobs import jobs_folder
    from batcher.manage import drain as module

    return [each.beat.name for each in module.drain(jobs_folder(jobs_dir), *names)]


def find_elsewhere(root: Path, present: "Iterable[Presence]", reports: Sequence[WorkerReport]) -> list[Worker]:
    """Of those `present` at a broker, who works in another folder than `root`, whose signs of life are `reports`."""
    scope = known_scope(root)
    here = {(report.beat.name, report.beat.host, report.beat.pid) for report in reports}
    return [
        Worker(
            *(each.name, each.host, each.pid, each.version, each.models),
            state=IN_A_COPY if each.scope == scope else ELSEWHERE,
            folder=each.folder,
        )
        for each in present
        if each.scope != scope or (each.name, each.host, each.pid) not in here
    ]


def find_elsewhere_with(model: str, root: Path, broker: str) -> list[Worker]:
    """Who has a model and works at the broker in another folder than `root`; nobody where that can't be known."""
    try:
        found = workers(jobs_dir=root, broker=broker)
    except BatcherError:
        return []
    return [worker for worker in found if worker.is_elsewhere and model in worker.models]


def _read_broker(url: str) -> "list[Presence]":
    from batcher.broker.client import connect
    from batcher.broker.presence import read_present

    with closing(connect(url)) as client:
        return read_present(client)


def _worker(report: WorkerReport, root: Path, *, is_asked: bool) -> Worker:
    beat = report.beat
    is_gone = report.health is Health.GONE
    # Both by the worker's clock, which may be another than ours.
    uptime_s = (beat.beat_at - beat.started_at).total_seconds() + (0.0 if is_gone else report.age_s)
    return Worker(
        name=beat.name,
        host=beat.host,
        pid=beat.pid,
        version=beat.version,
        models=beat.models,
        state=_state(report, is_asked=is_asked),
        folder=str(root),
        shards=beat.shards,
        num_slots=beat.num_slots,
        num_running=0 if is_gone else beat.num_running,
        tokens_per_s=0.0 if is_gone else beat.tokens_per_s,
        uptime_s=round(max(0.0, uptime_s), 1),
        age_s=report.age_s,
        num_crashes=beat.num_crashes,
        last_crash=beat.last_crash,
    )


def _state(report: WorkerReport, *, is_asked: bool) -> str:
    if report.health is not Health.ALIVE:
        return report.health.value
    if is_asked and not report.beat.state.is_leaving:
        return WorkerState.DRAINING.value
    is_usual = report.beat.state in (WorkerState.IDLE, WorkerState.WORKING)
    return report.health.value if is_usual else report.beat.state.value
