"""What a worker's supervisor and its child say to each other, in JSON lines: the configuration, and events back."""

from dataclasses import dataclass, field
from enum import StrEnum

from batcher.broker.leases import LEASE_TTL_S
from batcher.errors import BatcherError
from batcher.types import CHOOSE_ALL, UNKNOWN_DEMAND, Demand, EngineConfig
from workers.process.logs import LogStyle


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a child needs to know. Travels as JSON. `models` are pairs of name and path.

    `grace_s` are the seconds it gets to save its rows and give back its shards. `name` stands in the `worker` column of
    the results. `home` is the folder below which the supervisor keeps its sign of life. `log` says how it logs.
    `stall_timeout_s` are the seconds without a step after which an engine is given up. `row_timeout_s` goes before a
    job's own. `model_sha256` are pairs of a model's name and the digest that its file must have. `adapters` are, of
    models with a LoRA, the model's name, the adapter's path and its scale. `scope` is that of the queues from which it
    takes shards. With `is_loading_on_demand` models are loaded when somebody waits for them, `max_loaded` at a time, or
    as many as memory has room for, but for the `fatal_models`, which ended an earlier child while they were loaded.
    Unless it `takes_shards` it computes only live requests, and knows no broker. `live_descriptor` is that of the
    socket by which they come. `process` is the child's id, which no other process has: its leases are told by it from
    those of an earlier child, and of another worker of this name. `validators` are pairs of a function's name and the
    folder of its module: those that jobs may have called.
    """

    name: str
    models: tuple[tuple[str, str], ...]
    broker_url: str
    jobs_root: str
    home: str
    grace_s: float
    lease_ttl_s: float = LEASE_TTL_S
    stall_timeout_s: float | None = None
    row_timeout_s: float | None = None
    engine: EngineConfig = CHOOSE_ALL
    demand: Demand = UNKNOWN_DEMAND
    log: LogStyle = field(default_factory=LogStyle)
    model_sha256: tuple[tuple[str, str], ...] = ()
    takes_shards: bool = True
    live_descriptor: int | None = None
    process: str = ""
    scope: str = ""
    adapters: tuple[tuple[str, str, float], ...] = ()
    validators: tuple[tuple[str, str], ...] = ()
    is_loading_on_demand: bool = False
    max_loaded: int | None = None
    fatal_models: tuple[str, ...] = ()


#: What a parent tells its child after the configuration, by a line of its stdin: finish your shards, take no more.
DRAIN_ORDER = b"drain\n"


class EventKind(StrEnum):
    """What a child tells its parent, in order of its life: `LOADED` comes once, or `REFUSED` instead of it."""

    LOADED = "loaded"  # the models are in memory; the message says how they were set up, a line for each
    LOADING = "loading"  # a model is loaded, whose name is the message; "" when that is over
    READY = "ready"  # connected to the broker and waiting for shards
    BEAT = "beat"  # every second: how far the engines are
    CLAIMED = "claimed"  # an attempt begins
    ENDED = "ended"  # an attempt is over, in good order or with its reason recorded
    PROGRESS = "progress"  # completed rows were saved
    SAVED = "saved"  # `saved` says what rows these were
    RAN = "ran"  # a run of a shard is over; the message is its outcome
    SET_ASIDE = "set aside"  # rows were given up that crash the process
    FAILED = "failed"  # a shard can't be run, or the model of some not be loaded; the message says why
    DRAINED = "drained"  # no shard is left after the order to drain
    ABORTED = "aborted"  # the process is about to end itself; the message says why
    REFUSED = "refused"  # the child can't work at all; the message says why


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt between its claim and its end. `job` is the path of the job directory."""

    job: str
    shard: int
    attempt: int


@dataclass(frozen=True, slots=True)
class SavedRows:
    """Rows that were saved: those that are ok, and the others by their error codes."""

    num_ok: int = 0
    error_codes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine has to do, and the tokens that it has counted since it started; as in `EngineStats`."""

    num_slots: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_tokens_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class AttemptBeat:
    """How far an attempt is: `num_tokens` completion tokens of its rows, also of those that are not finished.

    `num_copied` of them are of rows with the answer of an equal one, for which nothing was computed. Its rows may take
    `max_tokens` in all.
    """

    attempt: OpenAttempt
    num_tokens: int = 0
    num_copied: int = 0
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """How far the engines of a child are, one entry for each: the steps made, and whether there is something to do.

    `longest_step_s` is the longest that a step of any took, or is expected to take. `loads` are None where a model is
    not in memory. `attempts` are those under way.
    """

    steps: tuple[int, ...]
    is_busy: tuple[bool, ...]
    longest_step_s: float
    loads: tuple[EngineLoad | None, ...] = ()
    attempts: tuple[AttemptBeat, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One line from a child. `exit_code` is the CLI's for the message; the last three go with their kinds."""

    kind: EventKind
    message: str = ""
    exit_code: int = BatcherError.exit_code
    attempt: OpenAttempt | None = None
    beat: Beat | None = None
    saved: SavedRows | None = None
