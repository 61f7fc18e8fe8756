"""Text to tokens and back, by the vocabulary of a GGUF."""

import ctypes
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batcher.errors import EngineError
from workers.engines.llama.binding import address_of, chat_template, llama_cpp, load_gguf
from workers.engines.llama.kv_cache import Tokens


class Vocabulary:
    """Text to tokens and back. Read-only in llama.cpp, so any thread may use it while its model is loaded."""

    def __init__(self, model: Any) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        self._bos: int | None = bos if bos >= 0 else None
        self._adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self._pieces: dict[int, bytes] = {}

    @property
    def bos_text(self) -> str:
        """The BOS token as it is written, which chat templates want to know; "" where there is none."""
        return self._text(self._bos)

    @property
    def eos_text(self) -> str:
        """As `bos_text`, the EOS token."""
        eos = llama_cpp.llama_vocab_eos(self._vocab)
        return self._text(eos if eos >= 0 else None)

    @property
    def fill_in_marks(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, before a suffix and before the middle; None for a model without."""
        kinds = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        prefix, suffix, middle = (kind(self._vocab) for kind in kinds)
        return (prefix, suffix, middle) if min(prefix, suffix, middle) >= 0 else None

    @cached_property
    def most_bytes(self) -> int:
        """No token stands for more bytes of a text than this. Looks at the whole vocabulary once."""
        texts = (llama_cpp.llama_vocab_get_text(self._vocab, token) for token in range(self.size))
        # As they are stored, tokens have at least the bytes that they stand for.
        return max(len(text or b"") for text in texts)

    def tokenize(self, text: str, *, adds_bos: bool = True) -> Tokens:
        """The prompt's tokens, special tokens in the text recognised, with a BOS in front where the model wants one.

        An empty text is a BOS alone, if the model has one at all.
        """
        data = text.encode("utf-8", errors="surrogatepass")
        capacity = len(data) + 2
        buffer = (ctypes.c_int32 * capacity)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, True)
        if count < 0:
            capacity = -count
            buffer = (ctypes.c_int32 * capacity)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, True)
        if count < 0:
            raise EngineError(f"llama_tokenize gave {count} for a prompt of {len(data)} bytes")
        tokens: Tokens = np.frombuffer(memoryview(buffer), np.int32, count)
        if adds_bos and self._bos is not None and (not count or (self._adds_bos and tokens[0] != self._bos)):
            return np.concatenate((np.array([self._bos], np.int32), tokens))
        return tokens.copy()

    def count_tokens(self, text: str) -> int:
        """How many tokens a prompt takes."""
        return len(self.tokenize(text))

    def detokenize(self, tokens: Tokens) -> bytes:
        """The bytes of tokens; special ones have none."""
        return b"".join(map(self.piece, tokens.tolist()))

    def piece(self, token: int) -> bytes:
        """The bytes of a token; special tokens have none."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def written(self, token: int) -> bytes:
        """As `piece`, but a special token is written by its name."""
        return self.piece(token) or self._written(token)

    def entries(self) -> list[tuple[bytes, bool]]:
        """Each token as it is written, and whether it is special rather than text. Takes a fraction of a second."""
        return [(self._written(token), self._is_special(token)) for token in range(self.size)]

    @property
    def tokenize_call(self) -> tuple[int, int]:
        """The addresses of llama.cpp's vocabulary and of the function that tokenizes by it, for native code."""
        return int(self._vocab), address_of("llama_tokenize")

    @cached_property
    def is_end(self) -> npt.NDArray[np.bool_]:
        """Of each token, whether the model ends its text with it. Shape: (size,)."""
        return np.fromiter((llama_cpp.llama_vocab_is_eog(self._vocab, token) for token in range(self.size)), np.bool_)

    def _is_special(self, token: int) -> bool:
        attributes = llama_cpp.llama_vocab_get_attr(self._vocab, token)
        if attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL:
            return True
        text = self._written(token) if attributes & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED else b""
        # Some models have marks such as <think> as tokens of the user's.
        return text.startswith(b"<") and text.endswith(b">")

    def _text(self, token: int | None) -> str:
        text = None if token is None else llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", errors="replace") if text else ""

    def _written(self, token: int) -> bytes:
        return self._read_piece(token, is_special_written=True)

    def _read_piece(self, token: int, *, is_special_written: bool = False) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, is_special_written)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count


class Tokenizer(Vocabulary):
    """The vocabulary of a GGUF alone: no weights are read."""

    def __init__(self, path: Path) -> None:
        # Kept: the vocabulary lives in it.
        self._vocab_model = load_gguf(path, num_gpu_layers=0, vocab_only=True)
        super().__init__(self._vocab_model)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that the GGUF carries; None where it has none."""
        return chat_template(self._vocab_model)
