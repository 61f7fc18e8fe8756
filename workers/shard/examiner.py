"""What an engine would make of a request, found out without its weights: the tokens of its prompts, or its error."""

from pathlib import Path

from batcher.types import Request, RowError
from workers.engines.open import load_token_counter
from workers.shard.choices import sequence_requests


class Examiner:
    """Examines requests for one model as the engine does that gets them, whose sequences hold `limit` tokens."""

    def __init__(self, path: Path, *, limit: int) -> None:
        """Load the vocabulary. Raises ModelError."""
        self._count = load_token_counter(path, limit=limit)

    def examine(self, request: Request) -> tuple[int, ...] | RowError:
        """The number of tokens of each prompt, or why the request can't run."""
        counts = []
        for sequence in sequence_requests(request, position=0, job_seed=0, timeout_s=None):
            # The sequences of one prompt differ in their seeds alone.
            if sequence.key[1] % request.params.num_drawn:
                continue
            found = self._count(sequence)
            if isinstance(found, RowError):
                return found
            counts.append(found)
        return tuple(counts)
