"""Tiny vocabularies of each kind that llama.cpp knows, to be written into GGUF files. All can spell any text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import gguf

from tests.support.tiny_gguf import MERGED, MERGES, byte_alphabet

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens and their types, by how llama.cpp takes texts apart. `ends`: ids of those that end a text."""

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    ends: Sequence[int]
    pre: str | None = None
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    bos: int | None = None
    adds_bos: bool = False
    adds_space_prefix: bool | None = None
    unknown: int | None = None
    separator: int | None = None

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add it to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        end, *more = self.ends
        writer.add_eos_token_id(end)
        if more:
            writer.add_eot_token_id(more[0])
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        _add_if_given(writer.add_tokenizer_pre, self.pre)
        _add_if_given(writer.add_bos_token_id, self.bos)
        _add_if_given(writer.add_unk_token_id, self.unknown)
        _add_if_given(writer.add_sep_token_id, self.separator)
        _add_if_given(writer.add_add_space_prefix, self.adds_space_prefix)
        writer.add_add_bos_token(self.adds_bos)


def _add_if_given(add: Callable[[_Value], None], value: _Value | None) -> None:
    if value is not None:
        add(value)


def byte_pairs(*, more_ends: Sequence[str] = (), adds_bos: bool = False) -> Vocabulary:
    """BPE: the 256 bytes in the GPT-2 alphabet, a few merged ones, the ends of a text."""
    words = [*byte_alphabet(), *MERGED, "ld"]
    ends = ["<|endoftext|>", *more_ends]
    return Vocabulary(
        model="gpt2",
        pre="gpt-2",
        tokens=[*words, *ends],
        types=[gguf.TokenType.NORMAL] * len(words) + [gguf.TokenType.CONTROL] * len(ends),
        ends=range(len(words), len(words) + len(ends)),
        merges=["l d", *MERGES],
        bos=len(words),
        adds_bos=adds_bos,
    )


def pieces(*, adds_space_prefix: bool) -> Vocabulary:
    """SPM: words with a score, and what they can't spell in tokens of single bytes."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [*map(chr, range(ord("a"), ord("z") + 1)), "▁", "th", "he", "the", "▁the", "▁a", "in", "er"]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words]
    control = gguf.TokenType.CONTROL
    return Vocabulary(
        model="llama",
        tokens=tokens,
        types=[
            *(gguf.TokenType.UNKNOWN, control, control),
            *[gguf.TokenType.BYTE] * len(bytes_),
            *[gguf.TokenType.NORMAL] * len(words),
        ],
        ends=[2],
        scores=[0.0] * (3 + len(bytes_)) + [-float(rank) for rank in range(len(words), 0, -1)],
        bos=1,
        adds_bos=True,
        adds_space_prefix=adds_space_prefix,
        unknown=0,
    )


def word_pieces() -> Vocabulary:
    """WPM: letters at the beginning of a word (`▁a`) and further ones; others are unknown."""
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), *map(str, range(10)), ".", ","]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*("▁" + letter for letter in letters), *letters, "▁the", "▁and", "ing"]
    return Vocabulary(
        model="bert",
        tokens=[*special, *words],
        types=[gguf.TokenType.CONTROL] * len(special) + [gguf.TokenType.NORMAL] * len(words),
        ends=[3],
        bos=2,
        adds_bos=True,
        unknown=1,
        separator=3,
    )
