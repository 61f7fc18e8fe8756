"""GGUF files that complete no text: what they are, by the beginning of the file, before anything is loaded.

llama.cpp loads some of them all the same. An embedding model then answers with garbage, or the process dies at the
first prompt.
"""

from pathlib import Path

from batcher.errors import ModelError
from batcher.gguf import GgufHeader, read_summary

_EMBEDDING = "an embedding model: it makes vectors of texts and writes none"
_DIFFUSION = "a diffusion model: it writes all of a text at once, which llama.cpp's decoding can't"
_ENCODER_DECODER = "an encoder-decoder model, of which only the encoder would be computed"

#: Architectures that llama.cpp gives no memory of what was read (llama-model.cpp: `create_memory`), or an encoder.
_BY_ARCHITECTURE = {
    **dict.fromkeys(
        (
            *("bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert"),
            *("modern-bert", "gemma-embedding", "llama-embed"),
        ),
        _EMBEDDING,
    ),
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), _DIFFUSION),
    **dict.fromkeys(("t5", "t5encoder"), _ENCODER_DECODER),
    **dict.fromkeys(("wavtokenizer-dec", "qwen3tts", "pockettts"), "a part of a model that speaks"),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), "a draft of another model's texts, and no model alone"),
    "clip": "a projector of images or sounds (mmproj), a part of a model",
}

#: By `general.type`.
_BY_KIND = {
    "adapter": "a LoRA adapter alone, which changes a model and is none",
    "mmproj": _BY_ARCHITECTURE["clip"],
    "vocab": "a vocabulary without weights",
}

#: llama.h, LLAMA_POOLING_TYPE_RANK.
_POOLING_RANK = 4


def check_completes_text(path: Path) -> None:
    """Raise ModelError for a file that is something else than a model which completes text."""
    if (found := other_kind(path)) is not None:
        raise ModelError(f"{path}: {found}; give the GGUF file of a model that writes text")


def check_adapter(path: Path) -> None:
    """Raise ModelError for a file that is no LoRA adapter."""
    header = read_summary(path)
    if header is not None and header.kind != "adapter":
        raise ModelError(
            f"{path}: no LoRA adapter; give one as GGUF, as llama.cpp's convert_lora_to_gguf.py makes it, in "
            "NAME=BASE+ADAPTER.gguf"
        )


def other_kind(path: Path) -> str | None:
    """What the file at `path` is instead of a model that completes text, in words; None for such a model.

    Reads no further than to the vocabulary. A file that can't be read, or is damaged, is left to llama.cpp.
    """
    header = read_summary(path)
    return None if header is None else _other_kind(header)


def _other_kind(header: GgufHeader) -> str | None:
    pooling = header.number("pooling_type")
    if pooling == _POOLING_RANK:
        return "a reranking model: it scores pairs of texts and writes none"
    for found, kinds in ((header.kind, _BY_KIND), (header.architecture, _BY_ARCHITECTURE)):
        if found in kinds:
            return kinds[found]
    if pooling:
        return _EMBEDDING
    # The first file of a split model may have none either.
    if not header.num_tensors and not header.values.get("split.count"):
        return _BY_KIND["vocab"]
    if header.values.get(f"{header.architecture}.attention.causal", True) is False:
        return "a model that reads texts from both sides, as those for embeddings do, and writes none"
    return None
