"""What a header says of its model, whatever the file is called."""

from pathlib import Path

import gguf
import pytest

from batcher.models.facts import Facts, read_facts
from tests.support.tiny_gguf import write_tiny_gguf


def test_facts_of_a_model_without_a_file_type_are_by_its_weights(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny-Q4_K_M.gguf", context_length=640)

    assert read_facts(path) == Facts("llama", 640, "F32")


@pytest.mark.parametrize("kind", list(gguf.LlamaFileType))
def test_file_types_are_called_as_llama_cpp_calls_them(tmp_path: Path, kind: gguf.LlamaFileType) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_file_type(kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    expected = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
    facts = read_facts(path)
    assert facts is not None
    assert facts.quantization == (None if expected == "GUESSED" else expected)


@pytest.mark.parametrize("kind", list(gguf.GGMLQuantizationType))
def test_types_of_weights_are_called_as_ggml_calls_them(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    from batcher.models.facts import _TENSOR_TYPES, _type_name

    # Those are of what is computed on the way, not of weights.
    unused = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
    assert _type_name(_TENSOR_TYPES, kind.value) == (None if kind.name in unused else kind.name)


def test_file_that_is_none_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))

    assert read_facts(tmp_path / "x.gguf") is None
    assert read_facts(tmp_path / "none.gguf") is None
