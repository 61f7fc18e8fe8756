"""The tables of `bench.throughput`: one for each workload, in Markdown."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.sides import Pass, Setup, Side
from bench.workloads import WORKLOADS, Size

NAMES = {
    Side.LOOP: "create_completion loop",
    Side.SERVER: "llama-server, {slots} slots",
    Side.SERVER_OUR_BUILD: "llama-server, on our build of llama.cpp",
    Side.OURS: "batcher engine, {slots} slots",
    Side.OURS_NO_DEDUP: "batcher engine, no deduplication",
    Side.OURS_NO_COPIES: "batcher engine, no copies",
    Side.OURS_SAMPLED: "batcher engine, sampled",
    Side.CEILING: "ceiling by llama-batched-bench, on our build",
}
#: What others are compared with, where it was measured.
_BASELINES = {Side.SERVER: "of the server", Side.LOOP: "of the loop", Side.OURS: "of ours, greedy"}
#: Compared with ours rather than with peers.
_VARIANTS = frozenset({Side.OURS_NO_DEDUP, Side.OURS_NO_COPIES, Side.OURS_SAMPLED})


@dataclass
class Table:
    """The passes over one workload by side, in the order of the lines; and why sides are missing."""

    workload: str
    size: Size
    setup: Setup
    passes: dict[Side, list[Pass]] = field(default_factory=dict)
    unavailable: dict[Side, str] = field(default_factory=dict)

    def baselines(self) -> list[Side]:
        """The columns of ratios."""
        found = [side for side in _BASELINES if side in self.passes]
        return found if _VARIANTS & set(self.passes) else [side for side in found if side is not Side.OURS]


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def median_rate(passes: Sequence[Pass]) -> float:
    """Tokens/s."""
    return statistics.median(done.tokens_per_s for done in passes)


def print_table(table: Table) -> None:
    """The caption, the lines, and what must be known to read them."""
    size, baselines = table.size, table.baselines()
    print(f"\n**{table.workload}**: {size.num_rows} rows, {size.prompt_tokens:,} prompt tokens, at most ", end="")
    print(f"{size.max_tokens:,} new ones. {WORKLOADS[table.workload].description}.\n")
    header = ["what", "tokens: prompt + generated", "seconds", "tokens/s", "min", "max"]
    lines = [_line(side, passes, table) for side, passes in table.passes.items()]
    print(markdown([*header, *(_BASELINES[side] for side in baselines)], lines))
    if Side.CEILING in table.passes:
        mean_prompt, mean_new = size.prompt_tokens / size.num_rows, size.max_tokens / size.num_rows
        print("\nThe ceiling's time is prompt tokens / S_PP + generated tokens / S_TG, by the rates of", end=" ")
        print(f"llama-batched-bench with {mean_prompt:.0f} + {mean_new:.0f} tokens in each slot:", end=" ")
        print("no sampling, no text, no gaps.")
    for side, reason in table.unavailable.items():
        print(f"\n{side} could not be measured: {reason}.")
    print(end="", flush=True)


def _line(side: Side, passes: Sequence[Pass], table: Table) -> list[str]:
    rates = [done.tokens_per_s for done in passes]
    first = passes[0]
    return [
        NAMES[side].format(slots=table.setup.slots),
        f"{first.prompt_tokens:,} + {first.completion_tokens:,}",
        f"{statistics.median(done.seconds for done in passes):.2f}",
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f}",
        f"{max(rates):,.0f}",
        *(f"{statistics.median(rates) / median_rate(table.passes[base]):.2f}" for base in table.baselines()),
    ]
