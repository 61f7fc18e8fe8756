"""What is said of a job's status wherever it is shown: a line, how a worker is and what it does."""

from collections.abc import Iterable

from batcher.jobdir.heartbeats import Health
from batcher.jobdir.pulse import WorkerState
from batcher.manage.status import JobState, Status, WorkerStatus
from batcher.words import counted, duration_text, one_line, percent_text

#: Of a state's name, on a terminal.
STATE_COLOURS: dict[str, str] = {
    JobState.COMPLETE: "green",
    JobState.RUNNING: "cyan",
    JobState.WAITING: "yellow",
    JobState.PAUSED: "blue",
    JobState.CANCELLED: "magenta",
}

#: Shards of a worker that are named, and characters of a message.
_MAX_SHARDS, _MAX_CHARS = 8, 300


def status_line(status: Status) -> str:
    """A status in a short line: `running, 41%, 109 of 260 rows, 118.6 tokens/s, ETA 1 min 28 s, 3 errors`."""
    texts = [status.state.value, done_percent(status), f"{status.num_done:,} of {counted(status.num_rows, 'row')}"]
    texts += [f"{status.tokens_per_s:,.1f} tokens/s"] if status.tokens_per_s else []
    texts += [f"ETA {duration_text(status.eta_s)}"] if status.eta_s is not None else []
    texts += [counted(status.num_errors, "error")] if status.num_errors else []
    texts += [counted(status.num_crashes, "crash", "crashes")] if status.num_crashes else []
    return ", ".join(texts)


def done_percent(status: Status, progress: float | None = None) -> str:
    """How much is done, or a `progress` that is shown instead; rows in flight can't make the last percent."""
    if status.num_done == status.num_rows:
        return "100%"
    return percent_text(min(status.progress if progress is None else progress, 0.99), 1)


def worker_text(worker: WorkerStatus) -> str:
    """How a worker is: `alive, working on shards 3, 4`; `gone for 1 min 20 s, held shard 9; crashed 2 times (...)`."""
    shards = ", ".join(str(shard) for shard in worker.shards[:_MAX_SHARDS])
    if worker.shards:
        shards = f"{'shard' if len(worker.shards) == 1 else 'shards'} {shards}"
    if len(worker.shards) > _MAX_SHARDS:
        shards += ", ..."
    match worker.health:
        case Health.GONE:
            text = f"gone for {duration_text(worker.age_s)}" + (f", held {shards}" if shards else "")
        case Health.STALLED:
            text = f"stalled {worker.stalled_s:.0f} s" + (f", {shards}" if shards else "")
        case Health.ALIVE if worker.state is WorkerState.WORKING:
            text = "alive, working" + (f" on {shards}" if shards else "")
            text += " for other jobs" if worker.is_busy_elsewhere and not shards else ""
        case Health.ALIVE:
            text = f"alive, {worker.state.value}" + (f", {shards}" if shards else "")
    if worker.num_crashes:
        times = "once" if worker.num_crashes == 1 else f"{worker.num_crashes:,} times"
        text += f"; crashed {times}" + (f" ({one_line(worker.last_crash)[:_MAX_CHARS]})" if worker.last_crash else "")
    return text


def load_text(worker: WorkerStatus) -> str:
    """What a worker's engines do: `30 of 32 slots, 118.6 tokens/s`; "" of one that is gone or has none in memory."""
    if worker.health is Health.GONE or not worker.num_slots:
        return ""
    rate = f", {worker.tokens_per_s:,.1f} tokens/s" if worker.tokens_per_s else ""
    return f"{worker.num_running:,} of {counted(worker.num_slots, 'slot')}{rate}"


def sorted_workers(workers: Iterable[WorkerStatus]) -> list[WorkerStatus]:
    """Those that are not well first, then those that have shards."""
    return sorted(workers, key=lambda each: (each.health is Health.ALIVE and not each.num_crashes, not each.shards))
