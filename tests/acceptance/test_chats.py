"""Chats from tables on the real model: it gets its own template, whichever way a row became a chat."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.jobdir.folder import JobDir
from tests.acceptance.conftest import Batcher
from tests.support.job_files import result_rows
from workers.engines.llama.loader import load_tokenizer

QUESTION = "What is the capital of France?"


def test_instruct_model_gets_its_template_from_a_table(tmp_path: Path, smollm2: Path, batcher: Batcher) -> None:
    """Given one chat as a prompt, as messages and as a batch line, when they run, then the model sees the same."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    pq.write_table(pa.table({"prompt": [QUESTION], "from": ["prompt"]}), tmp_path / "prompts.parquet")
    pq.write_table(pa.table({"messages": [messages], "from": ["messages"]}), tmp_path / "messages.parquet")
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    line = {"custom_id": "line", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line))
    options = ("--model", f"smollm2={smollm2}", "--max-tokens", 12, "--temperature", 0)

    tables = batcher(
        *("run", "prompts.parquet", "messages.parquet", "-o", "tables"),
        *("--chat", "--system", "Be brief.", *options),
    )
    lines = batcher("run", "lines.jsonl", "-o", "lines", *options)

    assert (tables.returncode, lines.returncode) == (0, 0), tables.stderr + lines.stderr
    prompt, given = result_rows(JobDir(tmp_path / "tables"))
    (expected,) = result_rows(JobDir(tmp_path / "lines"))
    assert [row["from"] for row in (prompt, given)] == ["prompt", "messages"]
    for row in (prompt, given):
        assert row["object"] == "chat.completion"
        assert [row[name] for name in ("prompt", "text", "prompt_tokens")] == [
            expected[name] for name in ("prompt", "text", "prompt_tokens")
        ]
    # The marks of the model's template (ChatML) around each message, and the beginning of the answer.
    template = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert expected["prompt_tokens"] == load_tokenizer(smollm2).count_tokens(template.format(QUESTION))
    assert "Paris" in expected["text"]
