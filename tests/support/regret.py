"""How good the tokens of an engine are by llama.cpp alone, one sequence at a time: the judge of whether it computes
right, where equal texts are none, as roundings turn over which of two tokens is the likelier.

The regret of a token is by how much its log-probability is below the likeliest one's, given all tokens before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import llama_cpp
import numpy as np
import numpy.typing as npt

from batcher.types import FinishReason
from tests.support.tiny_engine import WAIT_S, complete
from workers.engines.base import SequenceRequest
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.sequence import Sequence as EngineSequence

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Decoded:
    """What an engine made of a prompt, in tokens. `num_cached`: of the prompt, those that were copied. `logprobs`: of
    the completion's tokens, where the request wanted them."""

    prompt: Tokens
    completion: Tokens
    num_cached: int
    logprobs: tuple[float, ...] = ()


def decode(engine: LlamaEngine, requests: Sequence[SequenceRequest], *, patience_s: float = WAIT_S) -> list[Decoded]:
    """What becomes of requests, in their order. Each must succeed."""
    found: dict[tuple[int, int], tuple[Tokens, Tokens]] = {}
    finish = engine._finish

    def note(sequence: EngineSequence, reason: FinishReason) -> None:
        found[sequence.request.key] = sequence.prompt, engine._scheduler.completion(sequence).copy()
        finish(sequence, reason)

    engine._finish = note  # type: ignore[method-assign]
    results = complete(engine, requests, patience_s=patience_s)
    engine._finish = finish  # type: ignore[method-assign]
    decoded = []
    for result in results:
        assert result.choice is not None, result.error
        logprobs = tuple(each.logprob or 0.0 for each in result.choice.logprobs or ())
        decoded.append(Decoded(*found[result.key], result.choice.usage.cached_tokens, logprobs))
    return decoded


class Reference:
    """llama-cpp-python as it is: one sequence, no flash attention."""

    def __init__(self, path: Path, *, context_length: int) -> None:
        self._llama = llama_cpp.Llama(str(path), n_ctx=context_length, n_threads=1, n_threads_batch=1, verbose=False)

    def regrets(self, decoded: Decoded) -> npt.NDArray[np.float64]:
        """Of each token of a completion. Shape: (tokens,)."""
        logprobs = self.logprobs(decoded)
        own = logprobs[np.arange(len(decoded.completion)), decoded.completion]
        regrets: npt.NDArray[np.float64] = logprobs.max(axis=-1) - own
        return regrets

    def logprobs(self, decoded: Decoded) -> npt.NDArray[np.float64]:
        """Before each token of a completion, of all tokens. Shape: (tokens, vocabulary)."""
        self._llama.reset()  # type: ignore[no-untyped-call]
        self._llama.eval(decoded.prompt.tolist())
        rows = []
        for token in decoded.completion.tolist():
            raw = llama_cpp.llama_get_logits_ith(self._llama.ctx, -1)
            rows.append(np.ctypeslib.as_array(raw, (self._llama.n_vocab(),)).astype(np.float64))
            self._llama.eval([token])
        logits = np.array(rows)
        logits -= logits.max(axis=-1, keepdims=True)
        logprobs: npt.NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return logprobs

    def tokenize(self, text: str) -> list[int]:
        """A prompt, with what the vocabulary says that goes in front. What would go behind ends texts, and is not for
        those that are to go on."""
        tokens = self._llama.tokenize(text.encode())
        return tokens[:-1] if len(tokens) > 1 and tokens[-1] == self._llama.token_eos() else tokens

    def text_of(self, decoded: Decoded) -> str:
        """What a completion adds to the text of its prompt."""
        before, after = decoded.prompt.tolist(), decoded.completion.tolist()
        start, whole = self._llama.detokenize(before), self._llama.detokenize([*before, *after])
        return whole.removeprefix(start).decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._llama.close()
