"""The order in which waiting sequences run: common beginnings together, long ones first.

Sorted by their tokens, prompts that begin alike are neighbours, and the lengths that neighbours have in common are the
radix tree of all prompts: a run of neighbours with much in common is a branch, and in it runs with more in common are
branches of its own. Branches stay together, so that each prefix is computed once, copied while it is there, and may
go then. Of two branches or two prompts the one with more to do goes first: what starts last should end soon, and
prompts of like length fill a batch best.
"""

import itertools
from collections.abc import Callable

from workers.engine.kv_cache import Tokens
from workers.engine.sequence import Sequence


def order(waiting: list[Sequence], *, min_shared: int, is_cached: Callable[[Tokens], bool]) -> list[Sequence]:
    """`waiting` in the order to run. Prefixes shorter than `min_shared` tokens don't count.

    Branches of which `is_cached` says that their beginning is in the KV cache go first, before it is overwritten.
    """
    by_tokens = sorted(waiting, key=lambda sequence: sequence.sort_key)
    num_common = [0, *(_num_common(a.prompt, b.prompt) for a, b in itertools.pairwise(by_tokens))]
    branches = _branches(0, len(by_tokens), num_common, least=min_shared)
    ranked = sorted(
        branches,
        key=lambda branch: (
            not is_cached(by_tokens[branch[0]].prompt),
            -max(s.num_cells for s in by_tokens[slice(*branch)]),
        ),
    )
    return [sequence for branch in ranked for sequence in _walk(by_tokens, *branch, num_common, min_shared=min_shared)]


def _walk(by_tokens: list[Sequence], start: int, end: int, num_common: list[int], *, min_shared: int) -> list[Sequence]:
    """One branch, `[start, end)` of the sorted sequences: its own branches one after the other, long ones first."""
    if end - start <= 2:
        return sorted(by_tokens[start:end], key=_by_length)
    shared = min(num_common[start + 1 : end])
    inner = _branches(start, end, num_common, least=shared + min_shared)
    if len(inner) == end - start:
        return sorted(by_tokens[start:end], key=_by_length)
    inner.sort(key=lambda branch: -max(s.num_cells for s in by_tokens[slice(*branch)]))
    return [s for branch in inner for s in _walk(by_tokens, *branch, num_common, min_shared=min_shared)]


def _branches(start: int, end: int, num_common: list[int], *, least: int) -> list[tuple[int, int]]:
    """`[start, end)` cut where neighbours have fewer than `least` tokens in common."""
    cuts = [start, *(at for at in range(start + 1, end) if num_common[at] < least), end]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]


def _by_length(sequence: Sequence) -> int:
    return -sequence.num_cells


def _num_common(a: Tokens, b: Tokens) -> int:
    """How many tokens two prompts have in common from their beginning."""
    limit = min(len(a), len(b))
    differs = a[:limit] != b[:limit]
    first = int(differs.argmax()) if limit else 0
    return first if limit and differs[first] else limit
