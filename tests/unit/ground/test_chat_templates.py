"""Chat templates that are given by file or name, and what the built-in ones write."""

import json
from pathlib import Path

import gguf
import pytest

from batcher.chat_templates import BUILT_IN, find_template
from batcher.errors import InputError
from workers.engines.llama.chat import ChatTemplate

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "You?"},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_chat_template([{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\nI.<|im_end|>\n<|im_start|>user\nYou?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nI.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nYou?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "gemma",
            "<s><start_of_turn>user\nBe brief.\n\nWho?<end_of_turn>\n<start_of_turn>model\nI.<end_of_turn>\n"
            "<start_of_turn>user\nYou?<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("mistral", "<s>[INST] Be brief.\n\nWho? [/INST] I.</s>[INST] You? [/INST]"),
        (
            "phi3",
            "<|system|>\nBe brief.<|end|>\n<|user|>\nWho?<|end|>\n<|assistant|>\nI.<|end|>\n<|user|>\nYou?<|end|>\n"
            "<|assistant|>\n",
        ),
    ],
)
def test_built_in_template_writes_what_its_models_were_trained_on(name: str, prompt: str, model: Path) -> None:
    template = ChatTemplate(find_template(name, model), bos_token="<s>", eos_token="</s>")

    assert template.render(json.dumps(CHAT)) == prompt
    assert template.render(json.dumps(CHAT[1:]), adds_generation_prompt=False)


def test_file_goes_before_a_name_of_the_model_and_that_before_a_built_in_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_template("tool_use", model) == "T"
    Path("tool_use").write_text("{{ 1 }}\n")
    assert find_template("tool_use", model) == "{{ 1 }}\n"
    assert find_template("{{ messages }}", model) == "{{ messages }}"
    assert find_template("chatml", model) == BUILT_IN["chatml"]


def test_what_is_no_template_is_refused_with_the_names_that_there_are(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"--chat-template tool: no such file.* m.gguf names tool_use; built in are chatml"
    ):
        find_template("tool", model)
    (tmp_path / "latin.jinja").write_bytes(b"\xff{{")
    with pytest.raises(InputError, match="not UTF-8 at byte 0"):
        find_template(str(tmp_path / "latin.jinja"), model)
