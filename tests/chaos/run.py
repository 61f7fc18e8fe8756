"""Random faults at random times to everything that can die while jobs run; then the audit: nothing lost, nothing twice.

    python -m tests.chaos.run [--minutes 10] [--seed 1] [--workers 3] [--jobs 2] [--rows 1000] [--every 2.2]
        [--verbose] [--keep FOLDER]

A real broker with an append-only file, `batcher worker` processes, and for each of some jobs at a time a submitter that
submits it and then waits for it. A loop kills, freezes, cuts off and corrupts them, about every 2 s, pauses jobs for a
while, changes their priorities, and drains workers; what dies is started again half a second later, as a service
manager would. A job that is complete is followed by the next one, so that the faults never pause; when the time is over
they end, the last jobs may finish, all workers are stopped, and every job is audited: late, so that a frozen worker
that comes back to a job that is complete is part of it.

The seed gives the jobs' rows and the faults: what is done, to which of the candidates, after what pause. What comes of
them depends on the machine's timing, so a run can't be repeated exactly. The model is tiny and random; its rows take
about a second each. Exits with 1 if the audit fails. Linux only.
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from batcher.jobdir.folder import JobDir
from tests.chaos.audit import SET_ASIDE, Audit, InputRow, Why, Witness, audit_job
from tests.chaos.cluster import CONTEXT_LENGTH, SLOTS, Broker, Cluster, Submitter
from tests.chaos.faults import MEAN_PAUSE_S, FaultKind, draw_faults
from tests.support.family import Family
from tests.support.long_runs import forget_options, own_folder
from tests.support.tiny_gguf import write_tiny_gguf

#: Seconds without a row saved after which the last jobs are given up, once the faults have ended. A frozen worker's
#: leases have expired long before, and a dead one's child has been started again. Longer where faults come more slowly,
#: as others need the cores.
PATIENCE_S = 60.0
#: Seconds that a lease lives. Shorter than the 30 s of the product, so that a frozen worker loses its shards.
LEASE_TTL_S = 5
#: Of a completion: a row takes half a second on a core of its own, and a job of 2,000 a minute and a half under faults.
MAX_TOKENS = (100, 400)
_TICK_S = 0.05

_WORDS = ("time", "way", "year", "day", "thing", "world", "life", "hand", "part", "child", "eye", "place", "week")
#: What no process may say, whatever is done to it.
_BUG = re.compile(r"^.*(Traceback \(most recent call last\)|raised unexpected|a bug of Batcher)", re.MULTILINE)


@dataclass
class Run:
    """One job on its way."""

    witness: Witness
    submitter: Submitter
    rows: tuple[InputRow, ...]


@dataclass
class Report:
    """What a chaos has come to. `longest_pause_s`: without a row saved or committed while a job was there."""

    injected: Counter[FaultKind] = field(default_factory=Counter)
    missed: Counter[FaultKind] = field(default_factory=Counter)
    audits: list[Audit] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_killed_midway: int = 0
    longest_pause_s: float = 0.0
    finish_s: float = 0.0

    @property
    def has_passed(self) -> bool:
        return bool(self.audits) and not self.problems and all(audit.has_passed for audit in self.audits)

    @property
    def num_faults(self) -> int:
        return self.injected.total() + self.num_killed_midway

    def figures(self) -> dict[str, float]:
        """What there is to say of the rows, in the words of the table."""
        again = sum((audit.computed_again for audit in self.audits), Counter[Why]())
        return {
            "jobs": len(self.audits),
            "rows in": sum(audit.num_in for audit in self.audits),
            "rows out, ok": sum(audit.num_ok for audit in self.audits),
            f"rows out, set aside ({SET_ASIDE})": sum(audit.num_set_aside for audit in self.audits),
            "**rows lost**": sum(len(audit.lost) for audit in self.audits),
            "**rows twice**": sum(len(audit.twice) for audit in self.audits),
            "**rows computed again**": again.total(),
            **{f"... {why}": again[why] for why in Why},
            "rows that two attempts saved": sum(audit.num_compared for audit in self.audits),
            "... with another text": sum(audit.num_differing for audit in self.audits),
            "workers that gave up (mostly: no broker at their start)": len(self.gave_up),
            "longest pause between two saves, s": round(self.longest_pause_s, 1),
            "from the last fault to the last row, s": round(self.finish_s, 1),
        }

    def all_problems(self) -> list[str]:
        """Why the audit failed, in words; of many rows lost or twice the first."""
        found = list(self.problems)
        for audit in self.audits:
            found += audit.problems
            found += [f"{audit.job_id}: row {row} is lost" for row in audit.lost[:5]]
            found += [f"{audit.job_id}: row {row} is there twice" for row in audit.twice[:5]]
        return found


def main() -> int:
    """Run, print, and return the exit code."""
    args = parse_args()
    forget_options()
    os.environ["BATCHER_LEASE_TTL"] = str(LEASE_TTL_S)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with own_folder(args.keep, name="chaos") as folder:
            report = Chaos(args, folder).run()
    except KeyboardInterrupt:
        print("interrupted; everything that was started is gone", file=sys.stderr)
        return 130
    print_table(args, report)
    return 0 if report.has_passed else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are injected (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the jobs' rows (default: 1)")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="jobs at a time (default: 2)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of a job (default: 1000)")
    parser.add_argument(
        "--every",
        type=float,
        default=MEAN_PAUSE_S,
        metavar="SECONDS",
        help=f"from one fault to the next, on average; more where others need the cores (default: {MEAN_PAUSE_S})",
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="print every fault to stderr")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder, and leave it there")
    args = parser.parse_args()
    if args.keep is not None and args.keep.exists():
        parser.error(f"--keep {args.keep}: is there already; give a new folder")
    if min(args.minutes, args.workers, args.jobs, args.rows, args.every) <= 0:
        parser.error("--minutes, --workers, --jobs, --rows and --every must be above 0")
    if sys.platform != "linux":
        parser.error("processes are found by /proc, which only Linux has")
    return args


class Chaos:
    """The loop. Owns every process; none is left when `run` returns or raises."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._jobs_dir = folder / "jobs"
        logs = folder / "logs"
        for new in (self._jobs_dir, logs):
            new.mkdir()
        self._family = Family(logs)
        self._broker = Broker(folder / "broker")
        model = write_tiny_gguf(folder / "tiny.gguf", context_length=CONTEXT_LENGTH, end_bias=-30.0)
        self._cluster = Cluster(
            self._family, self._broker, jobs_dir=self._jobs_dir, model=model, num_workers=args.workers
        )
        self._runs: list[Run] = []
        #: Those that are not complete.
        self._open: list[Run] = []
        self._report = Report()
        self._begin = self._last_progress = time.monotonic()

    def run(self) -> Report:
        """Storm, settle, audit. Blocks for the minutes and what the last job still takes."""
        try:
            self._broker.start()
            self._broker.wait_until_ready()
            self._begin = self._last_progress = time.monotonic()
            for _ in range(self._args.jobs):
                self._next_job()
            self._storm()
            self._settle()
            self._judge()
        finally:
            # What was asked for is a clean end: a second Ctrl-C must not leave half of it.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            self._broker.close()
            self._family.kill_all()
        return self._report

    def _storm(self) -> None:
        """Inject faults until the time is over."""
        faults = draw_faults(self._args.seed, mean_pause_s=self._args.every)
        fault = next(faults)
        due = self._begin + fault.pause_s
        end = self._begin + 60 * self._args.minutes
        while (now := time.monotonic()) < end:
            if now >= due:
                run = self._open[int(fault.job * len(self._open))]
                done = self._cluster.inject(fault, witness=run.witness, submitter=run.submitter)
                counter = self._report.missed if done is None else self._report.injected
                counter[fault.kind] += 1
                self._say(f"{fault.kind}: {done or 'nobody there'}")
                fault = next(faults)
                due += fault.pause_s
            for _ in range(self._tick()):
                self._next_job()

    def _settle(self) -> None:
        """Let the last jobs finish, undisturbed, and then all workers stop."""
        begin = time.monotonic()
        self._say("no more faults")
        self._cluster.thaw_all()
        for run in self._open:
            run.submitter.end_pause()
        last = list(self._open)
        patience_s = PATIENCE_S * max(1.0, self._args.every / MEAN_PAUSE_S)
        while self._open:
            self._tick()
            if time.monotonic() > max(begin, self._last_progress) + patience_s:
                self._report.problems += [_stuck(run.witness.job, patience_s=patience_s) for run in self._open]
                break
        self._report.finish_s = time.monotonic() - begin
        self._cluster.stop_workers()
        for run in last:
            run.witness.look()

    def _judge(self) -> None:
        """Audit all jobs, now that nobody is left who could write to them, and hear what the processes said."""
        report = self._report
        report.audits = [audit_job(run.witness, run.rows) for run in self._runs]
        report.num_killed_midway = sum(run.submitter.num_killed_midway for run in self._runs)
        report.gave_up = self._cluster.gave_up
        report.problems += self._cluster.problems
        for run in self._runs:
            report.problems += run.submitter.problems
        for path in sorted(self._family.folder.glob("*.stderr")):
            if found := _BUG.search(text := path.read_text(errors="replace")):
                said = text[found.start() :].strip().splitlines()
                report.problems.append(f"{path.name}: {said[0]} ... {said[-1]}" if len(said) > 1 else said[0])

    def _tick(self) -> int:
        """Keep all going for a moment. Returns how many jobs have just become complete."""
        self._cluster.poll()
        num_before = len(self._open)
        for run in list(self._open):
            run.submitter.poll()
            if run.witness.look():
                self._last_progress = time.monotonic()
            if run.witness.job.is_complete:
                run.submitter.kill()
                self._say(f"{run.witness.job.job_id} is complete")
                self._open.remove(run)
        self._report.longest_pause_s = max(self._report.longest_pause_s, time.monotonic() - self._last_progress)
        time.sleep(_TICK_S)
        return num_before - len(self._open)

    def _next_job(self) -> None:
        """Write the next job's input and have it submitted."""
        number = len(self._runs) + 1
        job = JobDir(self._jobs_dir / f"chaos-{number}")
        seed = f"{self._args.seed}/{number}"
        source = self._folder / f"{job.job_id}.jsonl"
        rows = write_input(source, self._args.rows, job_id=job.job_id, seed=seed)
        broker = ("--broker", self._broker.url)
        run = Run(
            Witness(job, self._folder / "evidence" / job.job_id),
            Submitter(self._family, job, source, options=broker, seed=seed),
            rows,
        )
        self._runs.append(run)
        self._open.append(run)
        self._last_progress = time.monotonic()

    def _say(self, what: str) -> None:
        if self._args.verbose:
            print(f"{time.monotonic() - self._begin:7.2f} s  {what}", file=sys.stderr, flush=True)


def _stuck(job: JobDir, *, patience_s: float) -> str:
    pending = len(job.pending_shards()) if job.exists() else "all"
    return (
        f"{job.job_id}{' (paused)' if job.is_paused else ''}: no row was saved for {patience_s:.0f} s, although there "
        f"were no more faults; {pending} shards are missing"
    )


def write_input(path: Path, num_rows: int, *, job_id: str, seed: str) -> tuple[InputRow, ...]:
    """Write the rows of a job, the same for the same seed: prompts of a few words, some of them two in an array."""
    rng = random.Random(seed)
    rows = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            num_prompts = 2 if rng.random() < 0.05 else 1
            prompts = tuple(" ".join(rng.choices(_WORDS, k=rng.randint(3, 12))) for _ in range(num_prompts))
            row = InputRow(f"{job_id}-{number}", prompts, f"topic-{number}")
            rows.append(row)
            values = {
                "custom_id": row.custom_id,
                "prompt": prompts[0] if num_prompts == 1 else prompts,
                "max_tokens": rng.randint(*MAX_TOKENS) // num_prompts,
                "temperature": rng.choice([0, 0.7, 1]),
                "topic": row.topic,
            }
            file.write(json.dumps(values) + "\n")
    return tuple(rows)


def print_table(args: argparse.Namespace, report: Report) -> None:
    """The one table of this bench, as Markdown, and the verdict."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis", "pyarrow"))
    print(
        f"{args.minutes:g} minutes of faults, one every {args.every:g} s, seed {args.seed}; {args.workers} workers "
        f"of {SLOTS} slots, {args.jobs} jobs of {args.rows:,} rows at a time, leases of {LEASE_TTL_S} s; Python "
        f"{platform.python_version()}, {versions}, {os.cpu_count()} cores\n"
    )
    print("| what | number | found nobody to hit |")
    print("|---|---:|---:|")
    for kind in FaultKind:
        print(f"| {kind} | {report.injected[kind]} | {report.missed[kind]} |")
    print(f"| submit killed on its way | {report.num_killed_midway} | |")
    print(f"| **faults injected** | **{report.num_faults:,}** | {report.missed.total()} |")
    for what, number in report.figures().items():
        print(f"| {what} | {number:,} | |")
    print(f"\nAudit of {len(report.audits)} {'job' if len(report.audits) == 1 else 'jobs'}: ", end="")
    print("nothing lost, nothing twice" if report.has_passed else "FAILED")
    for problem in report.all_problems():
        print(f"- {problem}")
    if args.verbose:
        for reason in report.gave_up:
            print(f"gave up: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
