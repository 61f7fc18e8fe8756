"""The first few tokens that a model computes, before any row: whether it can compute at all, and how fast."""

from collections.abc import Callable

import numpy as np

from batcher.errors import EngineError
from batcher.types import SamplingParams
from workers.engines.base import SequenceRequest, Ticket
from workers.engines.llama.kv_cache import KvCache, Placement
from workers.engines.llama.model import Model
from workers.engines.llama.sampling.sampler import NO_TOKEN, Sampler
from workers.engines.llama.scheduler import Scheduler
from workers.engines.llama.sequence import Sequence

TRIAL_TOKENS = 8


def try_out(
    model: Model, cache: KvCache, scheduler: Scheduler, sampler: Sampler, *, clock: Callable[[], float]
) -> float:
    """Compute a few tokens in the first slot, and forget them. Returns the seconds that a token took.

    Sees to it that nothing is shared of a memory that can't be cut. Raises EngineError.
    """
    params = SamplingParams(max_tokens=1, temperature=0)
    prompt = np.zeros(min(TRIAL_TOKENS, cache.cells_per_sequence - 1), np.int32)
    trial = Sequence(SequenceRequest((0, 0), "", params), prompt, lambda result: None, Ticket())
    scheduler.add([trial])
    batch = scheduler.schedule()
    assert batch is not None
    started_at = clock()
    for placement in batch.placements:
        model.place(placement)
    if sampler.sample(model.decode(batch), [params], [trial.draws]) == [NO_TOKEN]:
        raise EngineError("its logits are no numbers (NaN); the GGUF file or the build of llama.cpp is broken")
    cache.is_sharing &= model.place(Placement(0, 0, len(prompt) // 2))
    scheduler.finish(trial)
    cache.forget(0)
    return (clock() - started_at) / len(prompt)
