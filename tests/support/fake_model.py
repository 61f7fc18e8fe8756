"""A model of the engine's own interface that computes nothing: what it says next is a digest of all tokens before.

It keeps the tokens that each slot's cells hold, and refuses what llama.cpp would compute wrongly: tokens at positions
that do not follow on, batches out of order. So whatever the scheduler does with slots, copies and chunks, a sequence
comes out right only if its cells held its own tokens and no others.
"""

import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workers.engines.llama.kv_cache import Placement, Tokens
from workers.engines.llama.step import StepBatch

END = 0


class FakeVocabulary:
    """Each character below `size` is a token; token 0 ends a text."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_end = np.arange(size) == END

    bos_text = eos_text = ""
    fill_in_marks: tuple[int, int, int] | None = None
    most_bytes = 1

    def tokenize(self, text: str, *, adds_bos: bool = True) -> Tokens:
        return np.array([ord(character) for character in text], np.int32)

    def piece(self, token: int) -> bytes:
        return chr(token).encode(errors="surrogatepass")

    def written(self, token: int) -> bytes:
        return self.piece(token)

    def detokenize(self, tokens: Tokens) -> bytes:
        return b"".join(map(self.piece, tokens.tolist()))


class FakeModel:
    """`num_decoded` counts the tokens computed, `num_copied` the cells that placements moved between slots."""

    path = Path("fake.gguf")
    chat_template: str | None = None

    #: As few as make chunks of most prompts.
    max_scored_tokens = 7

    def __init__(self, *, num_slots: int, vocab_size: int = 97, can_cut: bool = True) -> None:
        self.vocabulary = FakeVocabulary(vocab_size)
        self.cells: list[list[int]] = [[] for _ in range(num_slots)]
        self.num_decoded = self.num_copied = 0
        self.batch_sizes: list[int] = []
        self._can_cut = can_cut

    def place(self, placement: Placement) -> bool:
        kept = self.cells[placement.source][: placement.num_kept]
        assert len(kept) == placement.num_kept, "cells are kept that were never computed"
        if placement.source != placement.target:
            assert self._can_cut
            self.num_copied += placement.num_kept
        self.cells[placement.target] = kept
        return self._can_cut or not placement.num_kept

    def clear(self) -> None:
        self.cells = [[] for _ in self.cells]

    def decode(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        assert (np.diff(batch.slots) >= 0).all(), "slots must ascend"
        says = []
        for token, position, slot, wants in zip(
            batch.tokens.tolist(), batch.positions.tolist(), batch.slots.tolist(), batch.wants_logits, strict=True
        ):
            cells = self.cells[slot]
            assert position == len(cells), "a token must follow those in its slot"
            cells.append(token)
            if wants:
                says.append(next_token(cells, self.vocabulary.size))
        self.num_decoded += len(batch.tokens)
        self.batch_sizes.append(len(batch.tokens))
        assert len(says) == batch.num_logits
        assert len(says) <= len(self.cells) + self.max_scored_tokens
        logits = np.zeros((len(says), self.vocabulary.size), np.float32)
        logits[np.arange(len(says)), says] = 1.0
        return logits

    def close(self) -> None:
        pass


def next_token(tokens: list[int], vocab_size: int) -> int:
    """What the model says after `tokens`."""
    return zlib.crc32(np.array(tokens, np.int32).tobytes()) % vocab_size


def complete_alone(prompt: str, *, max_tokens: int, vocab_size: int = 97) -> str:
    """The greedy completion of a prompt by itself."""
    tokens = [ord(character) for character in prompt]
    text = ""
    for _ in range(max_tokens):
        token = next_token(tokens, vocab_size)
        if token == END:
            break
        tokens.append(token)
        text += chr(token)
    return text
