"""What is told of a model file: by its header, as names of files say what somebody liked."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from batcher.gguf import GgufHeader, read_header

_FILE_TYPE = "general.file_type"
#: By their numbers in llama.h, `enum llama_ftype`; `-` is none, or one of the past.
_FILE_TYPES = """
F32 F16 Q4_0 Q4_1 - - - Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S
IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 - - - TQ1_0 TQ2_0 MXFP4 NVFP4 Q1_0 Q2_0
"""
#: By their numbers in ggml.h, `enum ggml_type`.
_TENSOR_TYPES = """
F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 - Q2_K Q3_K Q4_K Q5_K Q6_K - IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS
- - - - - IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4 NVFP4 Q1_0 Q2_0
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of its model; None is what it does not say.

    `quantization` is by the type that llama.cpp gave the file, else by the type that most of its weights have.
    """

    architecture: str | None
    context_length: int | None
    quantization: str | None


def read_facts(path: Path) -> Facts | None:
    """What the file says of its model; None where it can't be read, or is no GGUF file."""
    header = read_header(path)
    if header is None:
        return None
    named = _type_name(_FILE_TYPES, header.values.get(_FILE_TYPE))
    return Facts(header.architecture, header.number("context_length") or None, named or _most_used_type(header))


def _most_used_type(header: GgufHeader) -> str | None:
    num_weights: Counter[int] = Counter()
    for tensor in header.tensors.values():
        num_weights[tensor.kind] += math.prod(tensor.shape)
    return _type_name(_TENSOR_TYPES, num_weights.most_common(1)[0][0]) if num_weights else None


def _type_name(table: str, number: object) -> str | None:
    names = table.split()
    found = names[number] if isinstance(number, int) and 0 <= number < len(names) else "-"
    return None if found == "-" else found
