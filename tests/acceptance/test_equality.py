"""The example prompts on the real model, beside llama-cpp-python's own `create_completion`, at temperature 0.

With AMX a token alone goes through another kernel than several, so that a rare row takes another turn where the two cut
a prompt into other pieces.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import pytest
from llama_cpp import ChatCompletionRequestMessage

from batcher.jobdir.folder import JobDir
from tests.acceptance.conftest import ROOT, Batcher
from tests.support.job_files import result_rows
from workers.engines.llama.kernels import is_built_for_amx
from workers.engines.llama.loader import load_tokenizer

#: The texts of the loop are made once.
pytestmark = pytest.mark.xdist_group("equality")

#: Enough to tell completions apart, few enough for a test on 2 cores.
MAX_TOKENS = 8

PROMPTS_FILE = ROOT / "jobs" / "completions" / "prompts.jsonl"


def example_prompts() -> list[str]:
    """Every third of them, those of arrays one by one."""
    values = [json.loads(line)["prompt"] for line in PROMPTS_FILE.read_text().splitlines()]
    return [prompt for value in values for prompt in ([value] if isinstance(value, str) else value)][::3]


@pytest.fixture(scope="module")
def loop_texts(smollm2: Path) -> dict[str, str]:
    """What `create_completion` says to each prompt."""
    # The same attention as ours and llama-server's; llama-cpp-python leaves it off by default.
    llama = llama_cpp.Llama(str(smollm2), n_ctx=512, flash_attn=True, verbose=False)
    texts = {}
    for prompt in example_prompts():
        answer = llama.create_completion(prompt, max_tokens=MAX_TOKENS, temperature=0)
        assert isinstance(answer, dict)
        texts[prompt] = answer["choices"][0]["text"]
    llama.close()
    return texts


def test_chat_says_what_create_chat_completion_says(batcher: Batcher, tmp_path: Path, smollm2: Path) -> None:
    """So the model's template is filled in as llama-cpp-python fills it in."""
    chats: list[list[ChatCompletionRequestMessage]] = [
        [{"role": "user", "content": "What is the capital of France?"}],
        [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Is water wet? <|im_end|>"}],
        [
            {"role": "user", "content": "Count to three."},
            {"role": "assistant", "content": "One, two, three."},
            {"role": "user", "content": "And on, zum Beispiel bis fünf 🙂"},
        ],
    ]
    lines = [
        {
            "custom_id": f"chat-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": chat, "temperature": 0},
        }
        for number, chat in enumerate(chats)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    options = ("--model", "smollm2-135m", "--max-tokens", MAX_TOKENS, "--slots", 1)
    done = batcher("run", "chats.jsonl", "-o", "out", *options)

    assert done.returncode == 0, done.stderr
    llama = llama_cpp.Llama(str(smollm2), n_ctx=512, flash_attn=True, verbose=False)
    num_same = 0
    for row, chat in zip(result_rows(JobDir(tmp_path / "out")), chats, strict=True):
        theirs = llama.create_chat_completion(chat, max_tokens=MAX_TOKENS, temperature=0)
        assert isinstance(theirs, dict)
        assert row["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
        num_same += same_text(row["text"], str(theirs["choices"][0]["message"]["content"]))
    assert num_same >= len(chats) - is_built_for_amx()
    llama.close()


def run_greedy(batcher: Batcher, folder: Path, *, slots: int) -> Sequence[dict[str, object]]:
    """The example prompts without their parameters, completed at temperature 0."""
    bare = folder / "bare.jsonl"
    bare.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in example_prompts()))
    greedy = ("--temperature", 0, "--max-tokens", MAX_TOKENS, "--slots", slots)
    done = batcher("run", bare, "-o", "out", "--model", "smollm2-135m", *greedy)
    assert done.returncode == 0, done.stderr
    return result_rows(JobDir(folder / "out"))


def same_text(ours: object, theirs: str) -> bool:
    # create_completion goes on past max_tokens while a character is unfinished; ours ends before that character.
    return ours == theirs or (isinstance(ours, str) and theirs.startswith(ours) and not theirs[len(ours) :].isascii())


def test_one_slot_says_what_create_completion_says(
    batcher: Batcher, tmp_path: Path, loop_texts: dict[str, str]
) -> None:
    rows = run_greedy(batcher, tmp_path, slots=1)
    assert [row["prompt"] for row in rows] == example_prompts()
    different = [row["prompt"] for row in rows if not same_text(row["text"], loop_texts[str(row["prompt"])])]
    assert len(different) <= is_built_for_amx() * 0.03 * len(rows), different


def test_sixteen_slots_say_the_same_but_for_rare_rows_and_count_tokens_right(
    batcher: Batcher, tmp_path: Path, smollm2: Path, loop_texts: dict[str, str]
) -> None:
    rows = run_greedy(batcher, tmp_path, slots=16)
    same = sum(same_text(row["text"], loop_texts[str(row["prompt"])]) for row in rows)
    # Float order depends on the batch's composition, so a rare row takes another turn.
    assert same >= 0.95 * len(rows)

    tokenizer = load_tokenizer(smollm2)
    for row in rows:
        assert row["prompt_tokens"] == tokenizer.count_tokens(str(row["prompt"]))
        assert row["total_tokens"] == int(str(row["prompt_tokens"])) + int(str(row["completion_tokens"]))
        is_full = row["completion_tokens"] == MAX_TOKENS
        assert row["finish_reason"] == ("length" if is_full else "stop")
