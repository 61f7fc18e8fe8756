"""What an engine would make of a request, found out without its weights: the tokens of its prompts, or its error."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from batcher.types import Request, RowError
from workers.engines.base import SequenceRequest
from workers.engines.open import load_token_counter
from workers.shard.choices import sequence_requests


class Examiner:
    """Examines requests for one model as the engine does that gets them, whose sequences hold `limit` tokens."""

    def __init__(self, path: Path, *, limit: int) -> None:
        """Load the vocabulary. Raises ModelError."""
        self._count = load_token_counter(path, limit=limit)

    def examine(self, requests: Sequence[Request]) -> Iterator[tuple[int, ...] | RowError]:
        """Of each request the number of tokens of each prompt, or why it can't run."""
        # The sequences of one prompt differ in their seeds alone.
        prompts = [
            [sequence for sequence in _sequences(request) if not sequence.key[1] % request.params.num_drawn]
            for request in requests
        ]
        counts = iter(self._count(list(itertools.chain.from_iterable(prompts))))
        for some in prompts:
            found = list(itertools.islice(counts, len(some)))
            error = next((each for each in found if isinstance(each, RowError)), None)
            yield tuple(each for each in found if isinstance(each, int)) if error is None else error


def _sequences(request: Request) -> Iterator[SequenceRequest]:
    return sequence_requests(request, position=0, job_seed=0, timeout_s=None)
