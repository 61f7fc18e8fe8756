"""What the crashes and failures of a shard's earlier attempts mean for the next one.

Rows in flight at a crash are suspects. The next attempt computes them last, one at a time and alone; one that is alone
at a crash again is set aside, with an error row. How much a crash weighs depends on its cause (`_WEIGHTS`): a fault is
somebody's, a kill from outside is most likely nobody's.
"""

from collections import Counter
from dataclasses import dataclass, field

from batcher.jobdir.attempts import AttemptEnd, Cause, Outcome, load_ends, read_journal
from batcher.jobdir.folder import JobDir
from batcher.jobdir.listing import AttemptFiles
from batcher.types import ErrorCode, RowError

#: What a crash weighs against a row that was in flight, and against one that was alone. At 2 a row is a suspect, at 6
#: it is set aside: after one fault alone, two shortages of memory alone, three kills alone.
_WEIGHTS = {
    Cause.FAULT: (2, 6),
    Cause.ENGINE: (2, 6),
    Cause.STALLED: (2, 6),
    Cause.MEMORY: (2, 3),
    Cause.KILLED: (1, 2),
}
_SUSPECT_AT = 2
_SET_ASIDE_AT = 6

#: Crashes of a shard's attempts while it was read or committed, when no row is to blame, that end in giving it up.
MAX_BLAMELESS_CRASHES = 5
#: Failures of a shard that trying again can't mend.
MAX_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What earlier attempts mean for the next one.

    `suspects` are to be computed last and alone, in ascending order; `set_aside` have an error row instead.
    `why_hopeless` says why the shard should not be tried again at all; "" where it should.
    """

    suspects: tuple[int, ...] = ()
    set_aside: dict[int, RowError] = field(default_factory=dict)
    why_hopeless: str = ""


def judge(job: JobDir, shard: int, *, attempt: int, listed: AttemptFiles | None = None) -> Verdict:
    """Weigh the journals and ends of the attempts of `shard` before `attempt`. Reads these files.

    `listed` are the files, if somebody has just listed them.
    """
    listed = job.list_attempts(shard) if listed is None else listed
    ends = {end.attempt: end for end in load_ends(job, listed.ends) if end.attempt < attempt}
    in_flight: Counter[int] = Counter()
    alone: Counter[int] = Counter()
    last: dict[int, AttemptEnd | None] = {}
    num_alone: Counter[int] = Counter()
    num_blameless = 0
    for number, path in sorted(listed.journals.items()):
        if number >= attempt:
            continue
        end = ends.get(number)
        cause = end.cause if end is not None and end.cause is not None else Cause.KILLED
        state = read_journal(path, store=job.store)
        weight_in_flight, weight_alone = _WEIGHTS[cause]
        in_flight.update(dict.fromkeys(state.in_flight, weight_in_flight))
        if state.alone is not None:
            alone[state.alone] += weight_alone
            num_alone[state.alone] += 1
            last[state.alone] = end
        elif not state.has_begun and cause is not Cause.KILLED:
            num_blameless += 1
    set_aside = {
        row: _row_error(last[row], num_alone=num_alone[row]) for row, weight in alone.items() if weight >= _SET_ASIDE_AT
    }
    suspects = sorted(row for row, weight in in_flight.items() if weight >= _SUSPECT_AT and row not in set_aside)
    return Verdict(tuple(suspects), set_aside, _why_hopeless(list(ends.values()), num_blameless))


def _row_error(end: AttemptEnd | None, *, num_alone: int) -> RowError:
    """The error row of a row that ended its worker. `end` is None where its workers vanished without a word."""
    what = end.detail if end is not None else "it vanished without a word"
    code = ErrorCode.ENGINE_ERROR if end is not None and end.cause is Cause.ENGINE else ErrorCode.WORKER_CRASHED
    times = "once" if num_alone == 1 else f"{num_alone} times"
    return RowError(
        code,
        f"the worker died {times} while it computed this row and nothing else (the last time: {what}); "
        "the row was in flight at a crash before that; `batcher retry` tries it again",
    )


def _why_hopeless(ends: list[AttemptEnd], num_blameless: int) -> str:
    if num_blameless >= MAX_BLAMELESS_CRASHES:
        return (
            f"its worker died {num_blameless} times while reading or committing it (the last time: {ends[-1].detail})"
        )
    failures = [end for end in ends if end.outcome is Outcome.FAILED and not end.is_retriable]
    if len(failures) >= MAX_FAILURES:
        return f"it failed {len(failures)} times (lastly: {failures[-1].detail})"
    return ""
