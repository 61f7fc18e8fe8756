"""Honest clients and attackers on one `batcher serve` for minutes: nobody honest is failed, and nothing grows.

    .venv/bin/python -m bench.soak [--minutes 20] [--seed 1] [--honest 2] [--attackers 4] [--verbose] [--keep FOLDER]

A server on a tiny random model, with three keys. For a quarter of the time everybody is let loose to warm it up; then
all pause, and what the server's processes have is read. The rest follows, a pause, and a second reading. At last
attackers and honest clients are let loose once more, and the server is told to stop in the midst of it.

It fails, with exit code 1 and the reasons, where an honest request failed but by documented limits (see
`bench/soaking/honest.py`), where processes, threads, descriptors or memory have grown from the first reading to the
second by more than the tolerances below, where the server took more memory than MAX_RSS_BYTES at any moment, where it
obeyed SIGTERM late, or where its log has a traceback. The seed gives what is done, in which order in each thread; how
the threads meet depends on the machine. Linux only: it reads /proc.
"""

import argparse
import contextlib
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.soaking.bombs import MODEL, make_bombs
from bench.soaking.honest import KINDS, HonestClient, Tally
from bench.soaking.hostile import Attacker
from bench.soaking.meter import PeakMeter, Reading, read
from bench.tables import markdown
from tests.support.family import Family
from tests.support.long_runs import forget_options, own_folder
from tests.support.serving import Server, serve
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.waiting import wait_for

#: Share of the time before the first reading.
WARM_UP = 0.25
#: Seconds: in which requests may finish when the server is told to stop, and again its engines; and what it may take on
#: top of both.
GRACE_S = 4.0
STOP_TOLERANCE_S = 2.0
#: Seconds of the traffic in the midst of which the server is stopped.
STOP_AFTER_S = 3.0
#: Seconds that the server gets to let go of what clients left behind; longer than its own timeouts below.
QUIET_S = 60.0
BODY_TIMEOUT_S, WRITE_TIMEOUT_S = 5, 5
MAX_OPEN_FILES = 1024
#: Of the server's own process, at any moment.
MAX_RSS_BYTES = 600 << 20

#: What the second reading may have more than the first: threads of pools and cached descriptors come when first needed,
#: and an allocator keeps what it once had.
MAX_MORE_PROCESSES = 0
MAX_MORE_THREADS = 8
MAX_MORE_DESCRIPTORS = 12
MAX_MORE_RSS = 0.2
MAX_MORE_RSS_BYTES = 48 << 20

_HONEST_KEY, _HOSTILE_KEY, _OTHER_KEY = (f"sk-{name:0>24}" for name in ("honest", "hostile", "other"))


@dataclass
class Report:
    """What a soak has come to."""

    tally: Tally = field(default_factory=Tally)
    attacks: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    readings: list[Reading] = field(default_factory=list)
    peak_rss_bytes: int = 0
    stop_s: float = 0.0
    exit_code: int = 0
    log: str = ""

    def problems(self) -> list[str]:
        """Why it has failed; empty where it has not."""
        found = list(self.tally.failures)
        missing = sorted(KINDS.keys() - self.tally.done.keys())
        found += [f"no {kind} was brought to its end" for kind in missing]
        first, second = self.readings
        for name, before, after, most in (
            ("processes", first.num_processes, second.num_processes, first.num_processes + MAX_MORE_PROCESSES),
            ("threads", first.num_threads, second.num_threads, first.num_threads + MAX_MORE_THREADS),
            (
                "descriptors",
                first.num_descriptors,
                second.num_descriptors,
                first.num_descriptors + MAX_MORE_DESCRIPTORS,
            ),
            ("bytes of memory", first.rss_bytes, second.rss_bytes, _most_rss(first.rss_bytes)),
        ):
            if after > most:
                found.append(f"{name}: {before:,} grew to {after:,}, more than {most:,}")
        if self.peak_rss_bytes > MAX_RSS_BYTES:
            found.append(f"the server had {self.peak_rss_bytes:,} bytes of memory, more than {MAX_RSS_BYTES:,}")
        if self.exit_code != 0:
            found.append(f"the server ended with {self.exit_code}")
        if self.stop_s > 2 * GRACE_S + STOP_TOLERANCE_S:
            found.append(
                f"the server took {self.stop_s:.1f} s to stop, more than {2 * GRACE_S + STOP_TOLERANCE_S:.0f} s"
            )
        if "Traceback" in self.log:
            found.append("the server's log has a traceback")
        return found


def _most_rss(before: int) -> int:
    return int(before * (1 + MAX_MORE_RSS)) + MAX_MORE_RSS_BYTES


class Crowd:
    """Honest clients and attackers, each a thread; the same each time they are let loose, further on in their seeds."""

    def __init__(self, server: Server, *, seed: int, num_honest: int, num_attackers: int) -> None:
        self._server = server
        self._bombs = make_bombs()
        self._honest = [(kind, random.Random(f"{seed}-{kind}-{n}")) for kind in KINDS for n in range(num_honest)]
        self._hostile = [random.Random(f"{seed}-hostile-{n}") for n in range(num_attackers)]

    @contextlib.contextmanager
    def let_loose(self, report: Report) -> Iterator[None]:
        """Everybody works within the block, and what comes of it is noted; what has begun is ended after it."""
        stopping = threading.Event()
        keys = (_HOSTILE_KEY, _OTHER_KEY)
        attackers = [
            Attacker(self._server.port, keys[n % 2], rng=rng, bombs=self._bombs, stopping=stopping)
            for n, rng in enumerate(self._hostile)
        ]
        work: list[Callable[[], None]] = [attacker.run for attacker in attackers]
        work += [self._honest_work(kind, rng, report.tally, stopping) for kind, rng in self._honest]
        threads = [threading.Thread(target=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
            for attacker in attackers:
                report.attacks += attacker.done
                report.answers += attacker.answers

    def _honest_work(
        self, kind: str, rng: random.Random, tally: Tally, stopping: threading.Event
    ) -> Callable[[], None]:
        client = HonestClient(self._server.base_url, _HONEST_KEY, rng=rng, tally=tally, stopping=stopping)
        return lambda: client.run(kind)


def main() -> int:
    """Soak, print, and return the exit code."""
    args = parse_args()
    forget_options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with own_folder(args.keep, name="soak") as folder:
            report = soak(args, folder)
    except KeyboardInterrupt:
        print("interrupted; everything that was started is gone", file=sys.stderr)
        return 130
    print_tables(args, report)
    return 1 if report.problems() else 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of what everybody does (default: 1)")
    parser.add_argument("--honest", type=int, default=2, help="clients for each kind of honest work (default: 2)")
    parser.add_argument("--attackers", type=int, default=4, help="attackers (default: 4)")
    parser.add_argument("--verbose", "-v", action="store_true", help="say on stderr how it goes")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work in this new folder, and leave it there")
    return parser.parse_args()


def soak(args: argparse.Namespace, folder: Path) -> Report:
    """Blocks for `args.minutes` and some more. Whatever happens, nothing that it started is left."""
    report = Report()
    # With the folder of jobs, by which its broker is found.
    family = Family(folder, jobs=[folder / "jobs"])
    model = write_tiny_gguf(folder / "tiny.gguf", end_bias=-30.0)
    limited = ("sh", "-c", f'ulimit -n {MAX_OPEN_FILES} && exec "$@"', "sh")
    options = (
        *("--model", f"{MODEL}={model}", "--threads", 1, "--slots", 8, "--ctx", 512, "--grace", GRACE_S),
        *("--body-timeout", BODY_TIMEOUT_S, "--write-timeout", WRITE_TIMEOUT_S, "--lease-ttl", 5),
    )
    keys = {"BATCHER_API_KEYS": f"{_HONEST_KEY},{_HOSTILE_KEY},{_OTHER_KEY}"}
    with serve(family, *options, env=keys, prefix=limited) as server:
        crowd = Crowd(server, seed=args.seed, num_honest=args.honest, num_attackers=args.attackers)
        say = Narrator(server, family, report) if args.verbose else None
        with PeakMeter(lambda: [server.pid]) as meter:
            for share in (WARM_UP, 1 - WARM_UP):
                with crowd.let_loose(report):
                    _pass(args.minutes * 60 * share, server, say)
                report.readings.append(_read_when_quiet(family, after=report.readings[-1:]))
        report.peak_rss_bytes = meter.peak_bytes
        _stop_in_the_midst(server, crowd, report)
        report.log = server.stderr
    return report


class Narrator:
    """Says on stderr how it goes."""

    def __init__(self, server: Server, family: Family, report: Report) -> None:
        self._server = server
        self._family = family
        self._report = report

    def __call__(self) -> None:
        own, all_ = read([self._server.pid]), read(self._family.pids())
        done = ", ".join(f"{kind} {number}" for kind, number in sorted(self._report.tally.done.items()))
        print(
            f"server {own.rss_bytes >> 20} MB, {own.num_descriptors} fds, {own.num_threads} threads; all "
            f"{all_.num_processes} processes {all_.rss_bytes >> 20} MB; {done}; "
            f"{len(self._report.tally.failures)} failed",
            file=sys.stderr,
            flush=True,
        )


def _pass(seconds: float, server: Server, say: Narrator | None) -> None:
    """Let time go by. Raises RuntimeError where the server ends."""
    deadline = time.monotonic() + seconds
    next_at = time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if not Path(f"/proc/{server.pid}").exists():
            raise RuntimeError(f"the server ended: {server.stderr[-2000:]}")
        if say is not None and time.monotonic() > next_at:
            next_at = time.monotonic() + 10
            say()


def _read_when_quiet(family: Family, *, after: list[Reading]) -> Reading:
    """The reading once nobody wants anything: within the tolerances, or that after QUIET_S seconds."""

    def look() -> bool:
        now = read(family.pids())
        return all(
            now.num_processes <= first.num_processes + MAX_MORE_PROCESSES
            and now.num_threads <= first.num_threads + MAX_MORE_THREADS
            and now.num_descriptors <= first.num_descriptors + MAX_MORE_DESCRIPTORS
            and now.rss_bytes <= _most_rss(first.rss_bytes)
            for first in after
        )

    # Connections and requests of those who are gone end by the server's timeouts.
    time.sleep(max(BODY_TIMEOUT_S, WRITE_TIMEOUT_S) + 2)
    with contextlib.suppress(AssertionError):
        wait_for(look, what="the server is quiet", timeout_s=QUIET_S)
    return read(family.pids())


def _stop_in_the_midst(server: Server, crowd: Crowd, report: Report) -> None:
    """Stop the server while everybody is at work; what fails for that is nobody's fault, and not noted."""
    with crowd.let_loose(Report()):
        time.sleep(STOP_AFTER_S)
        began_at = time.monotonic()
        report.exit_code = server.stop()
        report.stop_s = time.monotonic() - began_at


def print_tables(args: argparse.Namespace, report: Report) -> None:
    """The summary, and the reasons where it has failed."""
    tally = report.tally
    print(
        f"\n{args.minutes:g} minutes, seed {args.seed}: {args.honest} honest clients of a kind, "
        f"{args.attackers} attackers\n"
    )
    kinds = sorted(KINDS)
    rows = [[kind, *(f"{each[kind]:,}" for each in (tally.done, tally.refused, tally.retried))] for kind in kinds]
    print(markdown(["honest work", "done", "told to come again (429, 503)", "connection tried again"], rows))
    attacks = sorted(report.attacks.items())
    print(markdown(["attack", "number"], [[name, f"{number:,}"] for name, number in attacks]))
    answers = ", ".join(f"{number} x {code}" for code, number in sorted(report.answers.items()))
    print(f"Attackers with a key, or that spoke HTTP to the end, were answered {answers}.\n")
    names = ("processes", "memory, MB", "descriptors", "threads")
    values = [(r.num_processes, r.rss_bytes >> 20, r.num_descriptors, r.num_threads) for r in report.readings]
    columns = [list(map(str, each)) for each in zip(names, *values, strict=True)]
    print(markdown(["all processes, at rest", "after warming up", "at the end"], columns))
    print(
        f"Most memory of the server's own process: {report.peak_rss_bytes >> 20} MB. "
        f"It stopped in {report.stop_s:.1f} s."
    )
    problems = report.problems()
    for problem in problems[:50]:
        print(f"FAILED: {problem}")
    if not problems:
        print("Nobody honest was failed, and nothing has grown.")


if __name__ == "__main__":
    sys.exit(main())
