"""The example prompts on the real model, beside llama-cpp-python's own `create_completion`, at temperature 0.

Kernels for many rows add up in another order than those for one. That turns roundings of activations over, and among
tokens that are nearly as likely another is chosen: so a text that is not the same must be one that the loop finds all
but as likely, token for token.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from llama_cpp import ChatCompletionRequestMessage

from batcher.jobdir.folder import JobDir
from tests.acceptance.conftest import ROOT, Batcher
from tests.support.job_files import result_rows
from workers.engines.llama.loader import load_tokenizer

#: The texts of the loop are made once.
pytestmark = pytest.mark.xdist_group("equality")

#: Enough to tell completions apart, few enough for a test on 2 cores.
MAX_TOKENS = 8
#: A logit's distance from the best one that other roundings can make up. Logits of this model deviate by 4.
MAX_REGRET = 1.0

PROMPTS_FILE = ROOT / "jobs" / "completions" / "prompts.jsonl"


def example_prompts() -> list[str]:
    """Every third of them, those of arrays one by one."""
    values = [json.loads(line)["prompt"] for line in PROMPTS_FILE.read_text().splitlines()]
    return [prompt for value in values for prompt in ([value] if isinstance(value, str) else value)][::3]


class Loop:
    """llama-cpp-python's own loop, one prompt after the other."""

    def __init__(self, model: Path) -> None:
        # The same attention as ours and llama-server's; llama-cpp-python leaves it off by default.
        self.llama = llama_cpp.Llama(str(model), n_ctx=512, flash_attn=True, verbose=False)

    def complete(self, prompt: str) -> str:
        answer = self.llama.create_completion(prompt, max_tokens=MAX_TOKENS, temperature=0)
        assert isinstance(answer, dict)
        return answer["choices"][0]["text"]

    def regret(self, prompt: str, text: str) -> float:
        """How far the logit of a token of `text` is below the best one, at most. The text may end amid a character."""
        start = self.llama.tokenize(prompt.encode())
        tokens = self.llama.tokenize((prompt + text).encode())
        assert tokens[: len(start)] == start, "the prompt's last token goes on in the text"
        self.llama.reset()  # type: ignore[no-untyped-call]
        self.llama.eval(start)
        worst = 0.0
        for token in tokens[len(start) :]:
            raw = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
            logits = np.ctypeslib.as_array(raw, (self.llama.n_vocab(),))
            best = int(logits.argmax())
            if not (token == tokens[-1] and self._piece(best).startswith(self._piece(token))):
                worst = max(worst, float(logits[best] - logits[token]))
            self.llama.eval([token])
        return worst

    def _piece(self, token: int) -> bytes:
        return self.llama.detokenize([token])


@pytest.fixture(scope="module")
def loop(smollm2: Path) -> Iterator[Loop]:
    loop = Loop(smollm2)
    yield loop
    loop.llama.close()


@pytest.fixture(scope="module")
def loop_texts(loop: Loop) -> dict[str, str]:
    """What `create_completion` says to each prompt."""
    return {prompt: loop.complete(prompt) for prompt in example_prompts()}


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
    assert num_same >= len(chats) - 1
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


def differing(rows: Sequence[dict[str, object]], loop_texts: dict[str, str]) -> list[tuple[str, str]]:
    """Prompt and text of the rows that the loop completes in another way."""
    texts = [(str(row["prompt"]), str(row["text"])) for row in rows]
    return [(prompt, text) for prompt, text in texts if not same_text(text, loop_texts[prompt])]


def regrets(loop: Loop, texts: list[tuple[str, str]]) -> float:
    """The largest."""
    return max((loop.regret(prompt, text) for prompt, text in texts), default=0.0)


def test_regret_tells_another_text_from_one_that_is_as_likely(loop: Loop, loop_texts: dict[str, str]) -> None:
    prompt, other = example_prompts()[:2]
    assert loop.regret(prompt, loop_texts[prompt]) == 0.0
    assert loop.regret(prompt, loop_texts[other]) > MAX_REGRET


def test_one_slot_says_what_create_completion_says(
    batcher: Batcher, tmp_path: Path, loop: Loop, loop_texts: dict[str, str]
) -> None:
    rows = run_greedy(batcher, tmp_path, slots=1)
    assert [row["prompt"] for row in rows] == example_prompts()
    different = differing(rows, loop_texts)
    assert len(different) <= 0.05 * len(rows), different
    assert regrets(loop, different) <= MAX_REGRET


def test_sixteen_slots_say_what_is_as_likely_and_count_tokens_right(
    batcher: Batcher, tmp_path: Path, smollm2: Path, loop: Loop, loop_texts: dict[str, str]
) -> None:
    rows = run_greedy(batcher, tmp_path, slots=16)
    different = differing(rows, loop_texts)
    assert len(different) <= 0.5 * len(rows)
    assert regrets(loop, different) <= MAX_REGRET

    tokenizer = load_tokenizer(smollm2)
    for row in rows:
        assert row["prompt_tokens"] == tokenizer.count_tokens(str(row["prompt"]))
        assert row["total_tokens"] == int(str(row["prompt_tokens"])) + int(str(row["completion_tokens"]))
        is_full = row["completion_tokens"] == MAX_TOKENS
        assert row["finish_reason"] == ("length" if is_full else "stop")
