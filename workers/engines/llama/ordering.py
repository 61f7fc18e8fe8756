"""The order in which waiting sequences run: common beginnings together, long ones first.

Sorted by their tokens, prompts that begin alike are neighbours, and the lengths that neighbours have in common are the
radix tree of all prompts: a run of neighbours with much in common is a branch, and in it runs with more in common are
branches of its own. Branches stay together, so that each prefix is computed once, copied while it is there, and may
go then. Of two branches or two prompts the one that holds its slot longer goes first, so that what starts last ends
soon: the fewer sequences run, the less a step computes in its time.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from workers.engines.llama.kv_cache import Tokens
from workers.engines.llama.sequence import Sequence


def order(
    waiting: list[Sequence], *, min_shared: int, num_slots: int, is_cached: Callable[[Tokens], bool]
) -> list[Sequence]:
    """`waiting` in the order to run. Prefixes shorter than `min_shared` tokens don't count.

    Branches of which `is_cached` says that their beginning is in the KV cache go first, before it is overwritten.
    """
    if not waiting:
        return []
    by_tokens = sorted(waiting, key=lambda sequence: sequence.sort_key)
    tree = _Tree(
        by_tokens,
        # A step takes about the time of one more prompt token for each slot.
        num_steps=[s.request.params.max_tokens * num_slots + len(s.prompt) for s in by_tokens],
        num_common=[0, *(_num_common(a.prompt, b.prompt) for a, b in itertools.pairwise(by_tokens))],
        min_shared=min_shared,
    )
    branches = tree.branches(0, len(by_tokens), least=min_shared)
    branches.sort(key=lambda branch: not is_cached(by_tokens[branch[0]].prompt))
    return [by_tokens[at] for branch in branches for at in tree.walk(*branch)]


@dataclass(frozen=True, slots=True)
class _Tree:
    """Sequences sorted by their tokens: `num_common` has the tokens that each has in common with the one before it.

    `num_steps` says how long each holds its slot. Ranges are of positions, `[start, end)`.
    """

    by_tokens: list[Sequence]
    num_steps: list[int]
    num_common: list[int]
    min_shared: int

    def branches(self, start: int, end: int, *, least: int) -> list[tuple[int, int]]:
        """The range cut where neighbours have fewer than `least` tokens in common, the longest of all first."""
        cuts = [start, *(at for at in range(start + 1, end) if self.num_common[at] < least), end]
        return sorted(itertools.pairwise(cuts), key=lambda branch: -max(self.num_steps[slice(*branch)]))

    def walk(self, start: int, end: int) -> Iterator[int]:
        """The positions of a branch, its own branches one after the other."""
        if end - start <= 1:
            yield from range(start, end)
            return
        shared = min(self.num_common[start + 1 : end])
        for branch in self.branches(start, end, least=shared + self.min_shared):
            yield from self.walk(*branch)


def _num_common(a: Tokens, b: Tokens) -> int:
    """How many tokens two prompts have in common from their beginning."""
    limit = min(len(a), len(b))
    differs = a[:limit] != b[:limit]
    first = int(differs.argmax()) if limit else 0
    return first if limit and differs[first] else limit
