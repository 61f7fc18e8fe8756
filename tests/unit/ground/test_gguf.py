"""The context length in the head of a GGUF file: read where it is, and never a crash on what is no such file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.gguf import ArrayLength, Tensor, read_header, trained_context_length
from tests.support.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context_length=640)
    return path.read_bytes()[:2048]


def test_context_length_is_found(tmp_path: Path) -> None:
    assert trained_context_length(write_tiny_gguf(tmp_path / "tiny.gguf", context_length=640)) == 640


def test_it_is_found_behind_arrays_and_other_numbers(tmp_path: Path) -> None:
    path = tmp_path / "late.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_array("a.strings", ["x", "yy", ""])
    writer.add_array("a.numbers", [1.5, 2.5])
    writer.add_bool("a.bool", True)
    writer.add_uint8("a.small", 3)
    writer.add_int64("a.large", -5)
    writer.add_uint32("llama.context_length", 7)
    writer.add_context_length(40960)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    assert trained_context_length(path) == 40960


def test_header_has_values_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_type("model")
    writer.add_block_count(3)
    writer.add_head_count_kv([0, 8, 4])
    writer.add_token_list(["x" * number for number in range(5000)])
    writer.add_token_scores([0.5] * 5000)
    writer.add_chat_template("{{ ä }}")
    writer.add_tensor("blk.0.attn_k.weight", np.zeros((3, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_header(path)

    assert header is not None
    assert (header.architecture, header.kind) == ("lfm2", "model")
    assert (header.number("block_count"), header.number("expert_count"), header.number("expert_count", 7)) == (3, 0, 7)
    assert (header.numbers("attention.head_count_kv"), header.number("attention.head_count_kv")) == ((0, 8, 4), 8)
    assert header.values["tokenizer.ggml.tokens"] == header.values["tokenizer.ggml.scores"] == ArrayLength(5000)
    assert header.values["tokenizer.chat_template"] == "{{ ä }}"
    assert header.tensors == {"blk.0.attn_k.weight": Tensor((32, 3), 1)}


def test_header_that_ends_too_early_is_none(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    header = read_header(tmp_path / "tiny.gguf")
    assert header is not None
    assert len(header.tensors) == 3 + 2 * 9
    for num_bytes in (0, 3, 24, 100, 2000, whole.index(b"blk.1.ffn_norm.weight")):
        (tmp_path / "cut.gguf").write_bytes(whole[:num_bytes])
        assert read_header(tmp_path / "cut.gguf") is None


def test_file_that_does_not_say_or_is_none_gives_nothing(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "x.gguf"
    assert trained_context_length(path) is None
    for data in (b"", b"GGUF", b"nope" + bytes(100), b"GGUF" + bytes(100), head[:60]):
        path.write_bytes(data)
        assert trained_context_length(path) is None


@given(data=st.data())
def test_damaged_head_is_no_crash(tmp_path_factory: pytest.TempPathFactory, head: bytes, data: st.DataObject) -> None:
    damaged = bytearray(head)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)

    found = trained_context_length(path)
    read_header(path)

    assert found is None or 0 <= found < 2**64


def test_arrays_nested_without_end_are_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "deep.gguf"
    array = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    key = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little")
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + key + array * 10_000)

    assert trained_context_length(path) is None
    assert read_header(path) is None
