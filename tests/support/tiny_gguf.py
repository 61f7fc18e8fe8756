"""Writes a tiny random llama model: a real GGUF that llama.cpp loads in milliseconds.

Its vocabulary is the 256 bytes in the GPT-2 alphabet, an end-of-text token and a few merged ones, so every text can be
tokenized. It writes printable ASCII: the embeddings share one coordinate, which works as a bias on the logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"
MERGED = ("he", "ll", "hell", "hello", "Ġw", "or", "Ġwor", "Ġworld")
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor ld")


#: The marks of a model that can fill in, by the names that llama.cpp knows them under.
FILL_IN_MARKS = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")

#: A chat template that shows what it was given.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


#: One that opens the thoughts of an answer, unless it is told otherwise, and leaves those before out.
REASONING_TEMPLATE = (
    "{% for message in messages %}"
    "[{{ message.role }}] {{ message.content.split('</think>')[-1] }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant] <think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
#: Its marks, of which the second comes now and then.
THINK_MARKS = {"<think>": 0.0, "</think>": 13.0}
NO_MARKS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the model's layers. Queries of a few heads share a head of keys and values.

    By default it is small to load and, by a wide feed-forward part, not so fast that tests could not interrupt it.
    """

    num_heads: int = 2
    num_kv_heads: int = 2
    head_width: int = 32
    hidden: int = 384
    num_layers: int = 2

    @property
    def width(self) -> int:
        return self.num_heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_width


TINY = Shape()


def write_tiny_gguf(
    path: Path,
    *,
    shape: Shape = TINY,
    seed: int = 0,
    context_length: int = 512,
    sharpness: float = 4.0,
    end_bias: float = 0.0,
    chat_template: str | None = CHAT_TEMPLATE,
    can_fill_in: bool = False,
    thought_marks: Mapping[str, float] = NO_MARKS,
) -> Path:
    """Write the model and return `path`.

    `sharpness` is about the standard deviation of its logits; `end_bias` is about what goes on top of end-of-text's.
    `thought_marks` are special tokens as well, each with what goes on top of its own.
    """
    marks = (*(FILL_IN_MARKS if can_fill_in else ()), *thought_marks)
    tokens = [*byte_alphabet(), *MERGED, "ld", *marks, END_OF_TEXT]
    num_control = len(marks) + 1
    types = [gguf.TokenType.NORMAL] * (len(tokens) - num_control) + [gguf.TokenType.CONTROL] * num_control
    end = len(tokens) - 1

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["l d", *MERGES])
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    biases = {**thought_marks, END_OF_TEXT: end_bias}
    _add_tensors(writer, tokens, shape, seed=seed, sharpness=sharpness, biases=biases)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(
    writer: gguf.GGUFWriter,
    tokens: list[str],
    shape: Shape,
    *,
    seed: int,
    sharpness: float,
    biases: Mapping[str, float],
) -> None:
    """Random weights."""
    rng = np.random.default_rng(seed)

    def tensor(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-1]))

    embeddings = tensor(len(tokens), shape.width)
    # The residual stream keeps this coordinate, and the last norm brings it to about 2 to 4.
    embeddings[:, 0] = 2.0
    output = tensor(len(tokens), shape.width) * np.float32(sharpness)
    output[:, 0] = [0.0 if token.isascii() or "\u0120" in token else -8.0 for token in tokens]
    for token, bias in biases.items():
        output[tokens.index(token), 0] = bias / 2
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(shape.width, np.float32))
    for layer in range(shape.num_layers):
        for name, rows in (
            ("attn_q", shape.width),
            ("attn_k", shape.kv_width),
            ("attn_v", shape.kv_width),
            ("attn_output", shape.width),
        ):
            writer.add_tensor(f"blk.{layer}.{name}.weight", tensor(rows, shape.width))
        writer.add_tensor(f"blk.{layer}.ffn_gate.weight", tensor(shape.hidden, shape.width))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", tensor(shape.hidden, shape.width))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", tensor(shape.width, shape.hidden))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(shape.width, np.float32))


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, in order of bytes (openai/gpt-2, encoder.py `bytes_to_unicode`)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    alphabet, extra = [], 0
    for byte in range(256):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(256 + extra))
            extra += 1
    return alphabet
