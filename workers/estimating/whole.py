"""What a whole job takes of one model, from its prompts and from what some of them took.

The prompts of the job are counted in characters, and tokens reckoned from these as the rows that were run have them.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.shards import read_shard
from batcher.types import Request
from workers.estimating.forecast import Work, forecast_s
from workers.estimating.lengths import Lengths
from workers.estimating.trial import SeenSequence, TrialReport

#: Shards whose prompts are counted; of more, these stand for all.
_MAX_COUNTED_SHARDS = 256
#: Sequences whose steps are counted one by one.
_MAX_COUNTED = 8000
#: Of a step, where nobody says; as the engine has it.
_BATCH_TOKENS = 2048
#: A machine is never twice the same, as a share.
_USUAL_SPREAD = 0.05


@dataclass(frozen=True, slots=True)
class ModelForecast:
    """Seconds of computing, and of the start before; `spread` is the standard error of the first, as a share."""

    seconds: float
    start_s: float
    spread: float
    prompt_tokens: float
    cached_tokens: float
    completion_tokens: float
    num_measured: int


def some_shards(shards: Sequence[ShardInfo], number: int) -> list[ShardInfo]:
    """So many of them at most, from the whole of the job, in order; the same ones each time."""
    if len(shards) <= number:
        return list(shards)
    return sorted(random.Random(0).sample(list(shards), number), key=lambda info: info.shard)  # noqa: S311 (no secret)


@dataclass(frozen=True, slots=True)
class JobTokens:
    """The tokens of a job's prompts and completions, of some of its sequences, in the order in which slots take them.

    Of all `num_sequences` they are `1 / share`. `cached` is the share of prompt tokens that need not be computed.
    """

    prompts: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    num_sequences: int
    share: float
    cached: float

    @property
    def num_prompt(self) -> float:
        return float(self.prompts.sum()) * self.share

    @property
    def num_completion(self) -> float:
        return float(self.lengths.sum()) * self.share


def count_tokens(job: JobDir, model: str, seen: Sequence[SeenSequence]) -> JobTokens:
    """What all rows of a model come to, by sequences of it that were `seen`. Reads shards."""
    shards = [info for info in job.manifest.shards if info.model == model]
    counted = some_shards(shards, _MAX_COUNTED_SHARDS)
    sequences = np.array([each for info in counted for each in _sequences(job, info)], np.int64)
    num_sequences = round(len(sequences) * sum(s.num_rows for s in shards) / sum(s.num_rows for s in counted))
    sequences = sequences[:: math.ceil(len(sequences) / _MAX_COUNTED)]
    ended = [each for each in seen if each.num_prompt_tokens is not None]
    num_ended_tokens = sum(each.num_prompt_tokens or 0 for each in ended)
    return JobTokens(
        prompts=_prompt_tokens(sequences[:, 0], ended),
        lengths=Lengths([each.length for each in seen]).draw(sequences[:, 1], seed=0),
        num_sequences=num_sequences,
        share=num_sequences / len(sequences),
        cached=sum(each.num_cached_tokens for each in ended) / max(1, num_ended_tokens),
    )


def forecast_model(job: JobDir, model: str, report: TrialReport, *, max_batch_tokens: int | None) -> ModelForecast:
    """What the whole job takes of a model, from its beginning, whatever of it is done. Reads shards."""
    tokens = count_tokens(job, model, report.seen)
    sequences = zip(tokens.prompts, tokens.lengths.tolist(), strict=True)
    seconds = forecast_s(
        [Work(round(prompt * (1 - tokens.cached)), drawn) for prompt, drawn in sequences],
        report.cost,
        num_work=tokens.num_sequences,
        num_slots=report.num_slots,
        max_batch_tokens=max_batch_tokens or _BATCH_TOKENS,
    )
    return ModelForecast(
        seconds=seconds,
        start_s=report.start_s,
        spread=math.hypot(spread_of_lengths(report.seen), report.cost.spread, _USUAL_SPREAD),
        prompt_tokens=tokens.num_prompt,
        cached_tokens=tokens.num_prompt * tokens.cached,
        completion_tokens=tokens.num_completion,
        num_measured=len(report.seen),
    )


def _sequences(job: JobDir, info: ShardInfo) -> list[tuple[int, int]]:
    """The characters of the prompt, and max_tokens, of each sequence of a shard: what holds a slot longest first, as
    the engine takes them."""
    shard = read_shard(job.shard_path(info.shard), carried=job.manifest.carried, store=job.store)
    found = [each for row in shard.rows for each in _sequences_of(row.request)]
    return sorted(found, key=lambda each: (-each[1], -each[0]))


def _sequences_of(request: Request) -> list[tuple[int, int]]:
    params = request.params
    return [(len(prompt), params.max_tokens) for prompt in request.prompts for _ in range(params.num_drawn)]


def _prompt_tokens(num_chars: npt.NDArray[np.int64], seen: Sequence[SeenSequence]) -> npt.NDArray[np.float64]:
    """The tokens of prompts of so many characters: a straight line through those that are known, but never falling."""
    if not seen:
        return num_chars / 4
    chars = np.array([each.num_chars for each in seen], np.float64)
    tokens = np.array([each.num_prompt_tokens for each in seen], np.float64)
    slope = 0.0
    if chars.std() > 0:
        slope = max(0.0, float(np.cov(chars, tokens, bias=True)[0, 1] / chars.var()))
    line: npt.NDArray[np.float64] = np.maximum(1.0, tokens.mean() + slope * (num_chars - chars.mean()))
    return line


def spread_of_lengths(seen: Sequence[SeenSequence]) -> float:
    """The standard error of the mean length of completions, as a share of it."""
    lengths = np.array([each.length.num_tokens for each in seen], np.float64)
    return float(lengths.std() / max(1.0, lengths.mean()) / max(1, len(lengths)) ** 0.5)
