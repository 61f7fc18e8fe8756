"""Tiny random models of every architecture that the engine is tried on: real GGUF files, 32 bits a weight.

What each has of keys and tensors is what llama.cpp reads (src/models/*.cpp). None of their numbers equals another by
chance: heads are wider than width / heads where an architecture allows it, keys than values, layers differ.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tests.support.vocabularies import Vocabulary, byte_pairs

WIDTH = 128
HIDDEN = 96
NUM_LAYERS = 3
NUM_HEADS, NUM_KV_HEADS, HEAD_WIDTH = 4, 2, 32
#: Tokens that a layer with a sliding window sees.
WINDOW = 32
CONTEXT_LENGTH = 1024

_NUM_EXPERTS, _NUM_EXPERTS_USED = 4, 2
_EXPERT_HIDDEN = 32

_Floats = npt.NDArray[np.float32]


class Draft:
    """A model that is being written. Shapes are llama.cpp's: what a matrix takes comes first."""

    def __init__(
        self, path: Path, architecture: str, vocabulary: Vocabulary, *, seed: int, spoiled_token: int | None = None
    ) -> None:
        """`spoiled_token`: one whose embedding is no number, and so all behind it."""
        self._spoiled_token = spoiled_token
        self._architecture = architecture
        self._writer = gguf.GGUFWriter(path, architecture)
        self._rng = np.random.default_rng(seed)
        self.vocab_size = len(vocabulary.tokens)
        vocabulary.write(self._writer)

    def keys(self, **values: float | str | list[int]) -> None:
        """Add keys of this architecture; `__` stands for a point."""
        add: dict[type, Callable[..., None]] = {
            bool: self._writer.add_bool,
            int: self._writer.add_uint32,
            float: self._writer.add_float32,
            str: self._writer.add_string,
            list: self._writer.add_array,
        }
        for name, value in values.items():
            add[type(value)](f"{self._architecture}.{name.replace('__', '.')}", value)

    def matrix(self, name: str, *shape: int, scale: float = 1.0) -> None:
        """Random numbers that keep the size of what they are multiplied with."""
        self._writer.add_tensor(name, self._random(*shape, scale=scale))

    def _random(self, *shape: int, scale: float) -> _Floats:
        return self._rng.standard_normal(shape[::-1], np.float32) * np.float32(scale / np.sqrt(shape[0]))

    def ones(self, name: str, *shape: int, value: float = 1.0) -> None:
        """A tensor of equal numbers, such as a norm's."""
        self._writer.add_tensor(name, np.full(shape[::-1], value, np.float32))

    def array(self, name: str, array: _Floats) -> None:
        self._writer.add_tensor(name, array.astype(np.float32))

    def uniform(self, name: str, *shape: int) -> None:
        """Random numbers from 0 to 1."""
        self._writer.add_tensor(name, self._rng.random(shape[::-1], np.float32))

    def ends(self, *, norm: str = "output_norm", has_output: bool = True) -> None:
        """Embeddings, the last norm and the output, which may be the embeddings once more: logits deviate by about 4.

        Embeddings are then so small that a model does not just repeat its last token.
        """
        embeddings = self._random(WIDTH, self.vocab_size, scale=11.0 if has_output else 0.7)
        if self._spoiled_token is not None:
            assert has_output, "the token's logit would be none in any row"
            embeddings[self._spoiled_token] = np.nan
        self.array("token_embd.weight", embeddings)
        self.ones(f"{norm}.weight", WIDTH, value=1.0 if has_output else 8.0)
        if has_output:
            self.matrix("output.weight", WIDTH, self.vocab_size, scale=4.0)

    def write(self) -> None:
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()


def _common(draft: Draft, **others: float | str | list[int]) -> None:
    draft.keys(
        context_length=CONTEXT_LENGTH,
        embedding_length=WIDTH,
        block_count=NUM_LAYERS,
        feed_forward_length=HIDDEN,
        attention__layer_norm_rms_epsilon=1e-5,
        vocab_size=draft.vocab_size,
    )
    draft.keys(**others)


def _heads(draft: Draft, *, width: int | None = HEAD_WIDTH, num_kv_heads: int | list[int] = NUM_KV_HEADS) -> None:
    draft.keys(attention__head_count=NUM_HEADS, attention__head_count_kv=num_kv_heads)
    if width is not None:
        draft.keys(attention__key_length=width, attention__value_length=width, rope__dimension_count=width)


def _attention(draft: Draft, layer: int, *, width: int = HEAD_WIDTH, has_bias: bool = False) -> None:
    sizes = {"q": NUM_HEADS * width, "k": NUM_KV_HEADS * width, "v": NUM_KV_HEADS * width}
    for name, size in sizes.items():
        draft.matrix(f"blk.{layer}.attn_{name}.weight", WIDTH, size)
        if has_bias:
            draft.matrix(f"blk.{layer}.attn_{name}.bias", size)
    draft.matrix(f"blk.{layer}.attn_output.weight", NUM_HEADS * width, WIDTH)


def _norms(draft: Draft, layer: int, *names: str, width: int = WIDTH) -> None:
    for name in names:
        draft.ones(f"blk.{layer}.{name}.weight", width)


def _feed_forward(draft: Draft, layer: int) -> None:
    draft.matrix(f"blk.{layer}.ffn_gate.weight", WIDTH, HIDDEN)
    draft.matrix(f"blk.{layer}.ffn_up.weight", WIDTH, HIDDEN)
    draft.matrix(f"blk.{layer}.ffn_down.weight", HIDDEN, WIDTH)


def _experts(draft: Draft, layer: int) -> None:
    draft.matrix(f"blk.{layer}.ffn_gate_inp.weight", WIDTH, _NUM_EXPERTS, scale=4.0)
    draft.matrix(f"blk.{layer}.ffn_gate_exps.weight", WIDTH, _EXPERT_HIDDEN, _NUM_EXPERTS)
    draft.matrix(f"blk.{layer}.ffn_up_exps.weight", WIDTH, _EXPERT_HIDDEN, _NUM_EXPERTS)
    draft.matrix(f"blk.{layer}.ffn_down_exps.weight", _EXPERT_HIDDEN, WIDTH, _NUM_EXPERTS)


def _expert_keys(draft: Draft) -> None:
    draft.keys(
        expert_count=_NUM_EXPERTS,
        expert_used_count=_NUM_EXPERTS_USED,
        expert_feed_forward_length=_EXPERT_HIDDEN,
    )


def _mamba_2(draft: Draft, layer: int, *, inner: int = 2 * WIDTH, state: int = 16, groups: int = 1) -> None:
    num_heads = inner // 32
    convolved = inner + 2 * groups * state
    draft.matrix(f"blk.{layer}.ssm_in.weight", WIDTH, inner + convolved + num_heads)
    draft.matrix(f"blk.{layer}.ssm_conv1d.weight", 4, convolved)
    draft.matrix(f"blk.{layer}.ssm_conv1d.bias", convolved)
    draft.uniform(f"blk.{layer}.ssm_dt.bias", num_heads)
    draft.ones(f"blk.{layer}.ssm_a", 1, num_heads, value=-0.5)
    draft.ones(f"blk.{layer}.ssm_d", 1, num_heads)
    draft.ones(f"blk.{layer}.ssm_norm.weight", inner // groups, groups)
    draft.matrix(f"blk.{layer}.ssm_out.weight", inner, WIDTH)


def _mamba_2_keys(draft: Draft) -> None:
    draft.keys(
        ssm__conv_kernel=4,
        ssm__inner_size=2 * WIDTH,
        ssm__state_size=16,
        ssm__time_step_rank=2 * WIDTH // 32,
        ssm__group_count=1,
    )


def _llama(draft: Draft) -> None:
    _common(draft)
    _heads(draft)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _attention(draft, layer)
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _feed_forward(draft, layer)


def _qwen2(draft: Draft) -> None:
    width = WIDTH // NUM_HEADS
    _common(draft)
    _heads(draft, width=None)
    draft.ends(has_output=False)
    for layer in range(NUM_LAYERS):
        _attention(draft, layer, width=width, has_bias=True)
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _feed_forward(draft, layer)


def _qwen3(draft: Draft) -> None:
    _common(draft)
    _heads(draft)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _attention(draft, layer)
        _norms(draft, layer, "attn_q_norm", "attn_k_norm", width=HEAD_WIDTH)
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _feed_forward(draft, layer)


def _qwen3moe(draft: Draft) -> None:
    _common(draft)
    _heads(draft)
    _expert_keys(draft)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _attention(draft, layer)
        _norms(draft, layer, "attn_q_norm", "attn_k_norm", width=HEAD_WIDTH)
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _experts(draft, layer)


def _gemma2(draft: Draft) -> None:
    _common(draft, attention__sliding_window=WINDOW, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    _heads(draft)
    draft.ends(has_output=False)
    for layer in range(NUM_LAYERS):
        _attention(draft, layer)
        _norms(draft, layer, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        _feed_forward(draft, layer)


def _gemma3(draft: Draft) -> None:
    _common(draft, attention__sliding_window=WINDOW, attention__sliding_window_pattern=2)
    _heads(draft)
    draft.ends(has_output=False)
    for layer in range(NUM_LAYERS):
        _attention(draft, layer)
        _norms(draft, layer, "attn_q_norm", "attn_k_norm", width=HEAD_WIDTH)
        _norms(draft, layer, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        _feed_forward(draft, layer)


def _phi3(draft: Draft) -> None:
    width = WIDTH // NUM_HEADS
    _common(draft, rope__dimension_count=width)
    _heads(draft, width=None)
    draft.ends()
    for layer in range(NUM_LAYERS):
        draft.matrix(f"blk.{layer}.attn_qkv.weight", WIDTH, (NUM_HEADS + 2 * NUM_KV_HEADS) * width)
        draft.matrix(f"blk.{layer}.attn_output.weight", WIDTH, WIDTH)
        _norms(draft, layer, "attn_norm", "ffn_norm")
        draft.matrix(f"blk.{layer}.ffn_up.weight", WIDTH, 2 * HIDDEN)
        draft.matrix(f"blk.{layer}.ffn_down.weight", HIDDEN, WIDTH)


def _gpt_oss(draft: Draft) -> None:
    _common(draft, attention__sliding_window=WINDOW)
    _heads(draft)
    _expert_keys(draft)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _attention(draft, layer, has_bias=True)
        draft.matrix(f"blk.{layer}.attn_output.bias", WIDTH)
        draft.matrix(f"blk.{layer}.attn_sinks.weight", NUM_HEADS)
        _norms(draft, layer, "attn_norm", "post_attention_norm")
        _experts(draft, layer)
        draft.matrix(f"blk.{layer}.ffn_gate_inp.bias", _NUM_EXPERTS)
        draft.matrix(f"blk.{layer}.ffn_gate_exps.bias", _EXPERT_HIDDEN, _NUM_EXPERTS)
        draft.matrix(f"blk.{layer}.ffn_up_exps.bias", _EXPERT_HIDDEN, _NUM_EXPERTS)
        draft.matrix(f"blk.{layer}.ffn_down_exps.bias", WIDTH, _NUM_EXPERTS)


def _deepseek2(draft: Draft) -> None:
    """Attention by latent vectors (MLA), the first layer without experts."""
    q_rank, kv_rank, rope, plain, value = 40, 48, 16, 24, 20
    _common(draft, leading_dense_block_count=1, expert_shared_count=1)
    _expert_keys(draft)
    draft.keys(
        attention__head_count=NUM_HEADS,
        attention__head_count_kv=1,
        attention__key_length=kv_rank + rope,
        attention__value_length=kv_rank,
        attention__key_length_mla=plain + rope,
        attention__value_length_mla=value,
        attention__q_lora_rank=q_rank,
        attention__kv_lora_rank=kv_rank,
        rope__dimension_count=rope,
    )
    draft.ends()
    for layer in range(NUM_LAYERS):
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _norms(draft, layer, "attn_q_a_norm", width=q_rank)
        _norms(draft, layer, "attn_kv_a_norm", width=kv_rank)
        draft.matrix(f"blk.{layer}.attn_q_a.weight", WIDTH, q_rank)
        draft.matrix(f"blk.{layer}.attn_q_b.weight", q_rank, NUM_HEADS * (plain + rope))
        draft.matrix(f"blk.{layer}.attn_kv_a_mqa.weight", WIDTH, kv_rank + rope)
        draft.matrix(f"blk.{layer}.attn_k_b.weight", plain, kv_rank, NUM_HEADS)
        draft.matrix(f"blk.{layer}.attn_v_b.weight", kv_rank, value, NUM_HEADS)
        draft.matrix(f"blk.{layer}.attn_output.weight", NUM_HEADS * value, WIDTH)
        if layer == 0:
            _feed_forward(draft, layer)
            continue
        _experts(draft, layer)
        draft.matrix(f"blk.{layer}.ffn_gate_shexp.weight", WIDTH, _EXPERT_HIDDEN)
        draft.matrix(f"blk.{layer}.ffn_up_shexp.weight", WIDTH, _EXPERT_HIDDEN)
        draft.matrix(f"blk.{layer}.ffn_down_shexp.weight", _EXPERT_HIDDEN, WIDTH)


def _mamba(draft: Draft) -> None:
    inner, state, rank = 2 * WIDTH, 16, 8
    _common(draft, attention__head_count=0)
    draft.keys(ssm__conv_kernel=4, ssm__inner_size=inner, ssm__state_size=state, ssm__time_step_rank=rank)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _norms(draft, layer, "attn_norm")
        draft.matrix(f"blk.{layer}.ssm_in.weight", WIDTH, 2 * inner)
        draft.matrix(f"blk.{layer}.ssm_conv1d.weight", 4, inner)
        draft.matrix(f"blk.{layer}.ssm_conv1d.bias", inner)
        draft.matrix(f"blk.{layer}.ssm_x.weight", inner, rank + 2 * state)
        draft.matrix(f"blk.{layer}.ssm_dt.weight", rank, inner)
        draft.uniform(f"blk.{layer}.ssm_dt.bias", inner)
        draft.array(f"blk.{layer}.ssm_a", -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1)))
        draft.ones(f"blk.{layer}.ssm_d", inner)
        draft.matrix(f"blk.{layer}.ssm_out.weight", inner, WIDTH)


def _rwkv7(draft: Draft) -> None:
    rank = 8
    _common(draft, attention__layer_norm_epsilon=1e-5, attention__head_count=0, wkv__head_size=64, token_shift_count=2)
    draft.keys(
        attention__decay_lora_rank=rank,
        attention__iclr_lora_rank=rank,
        attention__value_residual_mix_lora_rank=rank,
        attention__gate_lora_rank=rank,
    )
    draft.ends()
    for norm in ("token_embd_norm", "output_norm"):
        draft.ones(f"{norm}.bias", WIDTH, value=0.1)
    draft.ones("token_embd_norm.weight", WIDTH)
    for layer in range(NUM_LAYERS):
        _norms(draft, layer, "attn_norm", "attn_norm_2", "time_mix_ln")
        for norm in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            draft.ones(f"blk.{layer}.{norm}.bias", WIDTH, value=0.1)
        for name in "wav":
            draft.matrix(f"blk.{layer}.time_mix_{name}0.weight", WIDTH, scale=4.0)
        for name in "wavg":
            draft.matrix(f"blk.{layer}.time_mix_{name}1.weight", WIDTH, rank)
            draft.matrix(f"blk.{layer}.time_mix_{name}2.weight", rank, WIDTH)
        draft.uniform(f"blk.{layer}.time_mix_lerp_fused.weight", WIDTH, 1, 1, 6)
        draft.uniform(f"blk.{layer}.channel_mix_lerp_k.weight", WIDTH, 1, 1)
        for name in ("k_k", "k_a", "r_k"):
            draft.uniform(f"blk.{layer}.time_mix_{name}.weight", WIDTH)
        for name in ("key", "value", "receptance", "output"):
            draft.matrix(f"blk.{layer}.time_mix_{name}.weight", WIDTH, WIDTH)
        draft.matrix(f"blk.{layer}.channel_mix_key.weight", WIDTH, HIDDEN)
        draft.matrix(f"blk.{layer}.channel_mix_value.weight", HIDDEN, WIDTH)


def _lfm2(draft: Draft) -> None:
    """Short convolutions but for one layer of attention."""
    width, length = WIDTH // NUM_HEADS, 3
    _common(draft, shortconv__l_cache=length)
    _heads(draft, width=None, num_kv_heads=[0, NUM_KV_HEADS, 0])
    draft.ends(norm="token_embd_norm", has_output=False)
    for layer in range(NUM_LAYERS):
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _feed_forward(draft, layer)
        if layer == 1:
            _attention(draft, layer, width=width)
            _norms(draft, layer, "attn_q_norm", "attn_k_norm", width=width)
            continue
        draft.matrix(f"blk.{layer}.shortconv.conv.weight", length, WIDTH)
        draft.matrix(f"blk.{layer}.shortconv.in_proj.weight", WIDTH, 3 * WIDTH)
        draft.matrix(f"blk.{layer}.shortconv.out_proj.weight", WIDTH, WIDTH)


def _granitehybrid(draft: Draft) -> None:
    """Mamba 2 but for one layer of attention."""
    _common(draft, attention__scale=0.2, embedding_scale=1.5, residual_scale=0.8, logit_scale=1.2)
    _heads(draft, num_kv_heads=[0, 0, NUM_KV_HEADS])
    _mamba_2_keys(draft)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _norms(draft, layer, "attn_norm", "ffn_norm")
        _feed_forward(draft, layer)
        if layer == NUM_LAYERS - 1:
            _attention(draft, layer)
        else:
            _mamba_2(draft, layer)


def _falcon_h1(draft: Draft) -> None:
    """Mamba 2 and attention side by side in every layer."""
    _common(draft)
    _heads(draft)
    _mamba_2_keys(draft)
    draft.ends()
    for layer in range(NUM_LAYERS):
        _norms(draft, layer, "attn_norm")
        draft.ones(f"blk.{layer}.ffn_norm", WIDTH)
        _feed_forward(draft, layer)
        _attention(draft, layer)
        _mamba_2(draft, layer)


#: How each architecture is written, by the name that GGUF files have for it.
ZOO: Mapping[str, Callable[[Draft], None]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "mamba": _mamba,
    "rwkv7": _rwkv7,
    "lfm2": _lfm2,
    "granitehybrid": _granitehybrid,
    "falcon-h1": _falcon_h1,
}


def write_zoo_model(
    path: Path,
    architecture: str,
    *,
    vocabulary: Vocabulary | None = None,
    seed: int = 0,
    like: str | None = None,
    spoiled_token: int | None = None,
) -> Path:
    """Write the model of an architecture and return `path`. The vocabulary is of byte pairs by default.

    One that is not in the zoo can have the keys and tensors of one that is.
    """
    draft = Draft(path, architecture, vocabulary or byte_pairs(), seed=seed, spoiled_token=spoiled_token)
    ZOO[like or architecture](draft)
    draft.write()
    return path
