"""Decoding by the definitions, a token at a time, nothing shared and nothing clever: what an engine must agree with.

The model's logits depend on all tokens before (see `fake_model`); a few tokens are likely, so that words come up again.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from batcher.types import FinishReason, SamplingParams
from tests.support.fake_model import FakeModel, next_token
from workers.engines.llama.sampling.sampler import Draws
from workers.engines.llama.step import StepBatch

VOCAB_SIZE = 97

#: Both end a text of the model; the second has bytes all the same.
ENDS = (0, 1)

LIKELY = [*ENDS, *map(ord, " ABC")]

Doubles = npt.NDArray[np.float64]


def _table() -> npt.NDArray[np.float32]:
    # Steps of 1/8: no two differ by so little that float32 could take one for the other, some are equal.
    steps = np.random.default_rng(2).integers(-16, 17, (VOCAB_SIZE, VOCAB_SIZE)) / 8
    steps -= 12
    steps[:, LIKELY] += 12
    return steps.astype(np.float32)


TABLE = _table()


class TableModel(FakeModel):
    """After each text a row of the table, by a digest of the text."""

    def __init__(self, *, num_slots: int, can_cut: bool = True) -> None:
        super().__init__(num_slots=num_slots, vocab_size=VOCAB_SIZE, can_cut=can_cut)
        self.vocabulary.is_end[list(ENDS)] = True

    def decode(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = TABLE[super().decode(batch).argmax(axis=1)]
        return logits


@dataclass
class Plain:
    """What becomes of a prompt. `logprobs` are those of the tokens that are text."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = FinishReason.LENGTH


def decode_plainly(prompt: str, params: SamplingParams, *, seed: int) -> Plain:
    """The completion of `prompt` by `params`."""
    before, found, draws = [ord(character) for character in prompt], Plain(), Draws(seed)
    while len(found.tokens) < params.max_tokens:
        logits = TABLE[next_token(before + found.tokens, VOCAB_SIZE)].astype(np.float64)
        token = draw(adjust(logits, before, found.tokens, params), params, draws)
        if is_over(found, token, logits, params):
            found.reason = FinishReason.STOP
            break
    return found


def is_over(found: Plain, token: int, logits: Doubles, params: SamplingParams) -> bool:
    """Add a token. Whether it is the last, as something other than `max_tokens` ends the completion."""
    may_end = len(found.tokens) >= params.min_tokens
    is_stop_token = may_end and token in params.stop_token_ids
    if may_end and token in ENDS and (is_stop_token or not params.ignore_eos):
        return True
    found.tokens.append(token)
    if is_stop_token and not params.include_stop_str_in_output:
        return True
    num_chars = len(found.text)
    found.text += chr(token)
    found.logprobs.append(float(logits[token] - np.log(np.exp(logits).sum())))
    ends = [
        (at, at + len(stop))
        for stop in params.stop
        for at in range(len(found.text))
        if found.text.startswith(stop, at) and at + len(stop) > num_chars
    ]
    if not (may_end and ends):
        return is_stop_token
    start, end = min(ends)
    found.text = found.text[: end if params.include_stop_str_in_output else start]
    del found.logprobs[len(found.text) :]
    return True


def adjust(logits: Doubles, prompt: list[int], generated: list[int], params: SamplingParams) -> Doubles:
    """In vLLM's order: bad words, ends before min_tokens, bias, repetition, frequency, presence."""
    logits = logits.copy()
    for word in params.bad_words:
        for text in (word.lstrip(), " " + word.lstrip()):
            *beginning, last = map(ord, text)
            if generated[len(generated) - len(beginning) :] == beginning:
                logits[last] = -np.inf
    if len(generated) < params.min_tokens:
        logits[[*ENDS, *params.stop_token_ids]] = -np.inf
    for token, bias in params.logit_bias:
        logits[token] += bias
    for token in {*prompt, *generated}:
        logits[token] *= params.repetition_penalty if logits[token] < 0 else 1 / params.repetition_penalty
    for token in generated:
        logits[token] -= params.frequency_penalty
    for token in set(generated):
        logits[token] -= params.presence_penalty
    return logits


def draw(logits: Doubles, params: SamplingParams, draws: Draws) -> int:
    """The likeliest, or by the softmax at a temperature, then min_p, top_k and top_p, each of what is left."""
    order = np.argsort(-logits, kind="stable")
    if params.is_greedy:
        return int(order[0])
    left = np.exp((logits - logits.max()) / params.temperature)
    left[left < params.min_p * left.max()] = 0
    if params.top_k:
        left[order[params.top_k :]] = 0
    ahead = np.empty_like(left)
    ahead[order] = left[order].cumsum() - left[order]
    is_outside = ahead >= params.top_p * left.sum()
    rank = np.argsort(order)
    while True:
        running = left.cumsum()
        token = int(np.searchsorted(running, draws.next() * running[-1], side="right"))
        if params.top_p == 1 or not is_outside[token]:
            return token
        left[rank >= rank[token]] = 0
