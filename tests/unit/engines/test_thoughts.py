"""Thoughts told from text: byte by byte, token by token, and by an engine whose model's template opens them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.thoughts import HARMONY, THINK, ThoughtMarks, find_marks
from batcher.types import Constraint, ConstraintKind, FinishReason, Reasoning, SamplingParams, TokenLogprob
from tests.support.tiny_engine import complete, running
from tests.support.tiny_gguf import REASONING_TEMPLATE, THINK_MARKS, write_tiny_gguf
from workers.engines.base import SequenceRequest
from workers.engines.llama.sampling.thoughts import Kind, ThoughtSplitter, ThoughtText
from workers.engines.llama.sampling.transcript import Transcript

SPLIT = SamplingParams(reasoning=Reasoning.SPLIT)
GRANITE = find_marks("<think></think><response></response>")
assert GRANITE is not None


def split(data: bytes, marks: ThoughtMarks, *, is_open: bool = False, size: int = 1) -> tuple[str, str]:
    """Thoughts and text, of which `size` bytes come at a time."""
    splitter = ThoughtSplitter(marks, is_open=is_open, special=lambda token: b"")
    pieces = [piece for at in range(0, len(data), size) for piece in splitter.feed(data[at : at + size])]
    pieces += splitter.finish()
    assert b"".join(piece for _, piece in pieces) == data
    of = {kind: b"".join(piece for each, piece in pieces if each is kind).decode() for kind in Kind}
    return of[Kind.THOUGHT], of[Kind.TEXT]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("marks", "is_open", "data", "thoughts", "text"),
    [
        # A model that writes the mark itself, and one whose prompt ends with it.
        (THINK, False, "<think>\n2 + 3\n</think>\n\n5", "\n2 + 3\n", "5"),
        (THINK, True, "2 + 3\n</think>\n\n5", "2 + 3\n", "5"),
        (THINK, False, "\n<think>a</think>b", "a", "b"),
        # No thoughts: the text is as the model writes it.
        (THINK, False, "\n\n5 <think> is a mark</think>", "", "\n\n5 <think> is a mark</think>"),
        (THINK, False, "<thin", "", "<thin"),
        (THINK, False, " \n", "", " \n"),
        # Ended within the thoughts, or within a mark.
        (THINK, True, "2 + 3", "2 + 3", ""),
        (THINK, True, "a < b </thi", "a < b </thi", ""),
        (THINK, True, "", "", ""),
        (THINK, False, "<think></think>", "", ""),
        (THINK, True, "a</think>\n\n", "a", ""),
        # Thoughts again.
        (THINK, False, "<think>a</think>\n<think>b</think>c", "ab", "c"),
        # Of gpt-oss.
        (
            HARMONY,
            False,
            "<|channel|>analysis<|message|>2 + 3<|end|><|start|>assistant<|channel|>final<|message|>5",
            "2 + 3",
            "5",
        ),
        (HARMONY, False, "<|channel|>final<|message|>5", "", "5"),
        (
            HARMONY,
            False,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c",
            "ab",
            "I look.c",
        ),
        # A call of a tool stays whole in the text, for whoever reads calls.
        (
            HARMONY,
            False,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f "
            "<|constrain|>json<|message|>{}",
            "a",
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}",
        ),
        # Of Granite.
        (GRANITE, False, "<think>a</think><response>b</response>", "a", "b"),
    ],
)
def test_bytes_are_split_however_they_come(
    marks: ThoughtMarks, is_open: bool, data: str, thoughts: str, text: str, size: int
) -> None:
    assert split(data.encode(), marks, is_open=is_open, size=size) == (thoughts, text)


_SNIPPETS = st.sampled_from([b"<", b"<think>", b"</think>", b"</th", b" ", b"\n", b"a", b"\xe2\x82", b"\xac"])


@given(st.lists(_SNIPPETS, max_size=12), st.booleans(), st.data())
def test_where_bytes_are_cut_makes_no_difference(snippets: list[bytes], is_open: bool, data: st.DataObject) -> None:
    whole = b"".join(snippets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))

    def pieces(parts: Iterable[bytes]) -> list[tuple[Kind, bytes]]:
        splitter = ThoughtSplitter(THINK, is_open=is_open, special=lambda token: b"")
        found = [(kind, byte) for part in parts for kind, piece in splitter.feed(part) for byte in piece]
        found += [(kind, byte) for kind, piece in splitter.finish() for byte in piece]
        return [(kind, bytes([byte])) for kind, byte in found]

    assert pieces([whole]) == pieces(whole[start:end] for start, end in pairwise([0, *cuts, len(whole)]))


def test_blanks_around_thoughts_are_not_told() -> None:
    thoughts = ThoughtText()
    told = []
    for data in (b"\n ", b"a", b" ", b"\n", b"b\n"):
        thoughts.append(data, is_apart=False)
        told.append(thoughts.take())

    assert told == ["", "a", "", "", " \nb"]
    assert thoughts.take_rest() == ""
    assert thoughts.text() == "a \nb"


class Told:
    """A transcript of tokens, which are given by their bytes; those in brackets are special."""

    def __init__(self, params: SamplingParams, tokens: Sequence[str], *, is_open: bool = False) -> None:
        self.reasoning, self.text = "", ""
        self.logprobs: list[TokenLogprob] = []
        self._special = {at: name[1:-1].encode() for at, name in enumerate(tokens) if name.startswith("{")}
        self.bytes = [b"" if at in self._special else token.encode() for at, token in enumerate(tokens)]
        splitter = ThoughtSplitter(THINK, is_open=is_open, special=self._special.__getitem__)
        self.transcript = Transcript(params, piece=self.bytes.__getitem__, tell=self._hear, splitter=splitter)
        self.is_stopped = False
        for token in range(len(tokens)):
            if self.transcript.append(token, np.zeros(len(tokens), np.float32)):
                self.is_stopped = True
                break
        text, logprobs = self.transcript.finish()
        assert (self.text, self.reasoning) == (text, self.transcript.reasoning or "")
        assert self.logprobs == list(logprobs or ())

    def _hear(self, text: str, logprobs: tuple[TokenLogprob, ...] | None, thoughts: str) -> None:
        assert not (thoughts and self.text), "thoughts come first"
        self.text += text
        self.reasoning += thoughts
        self.logprobs.extend(logprobs or ())

    @property
    def listed(self) -> list[bytes]:
        return [token.token for token in self.logprobs]


def test_stop_string_ends_the_text_and_not_the_thoughts() -> None:
    told = Told(replace(SPLIT, stop=("END",)), ["<think>", "END", "</think>", "a", " EN", "D b"])

    assert (told.is_stopped, told.reasoning, told.text) == (True, "END", "a ")
    # Of a model whose thoughts are kept it is text like any other.
    kept = Transcript(SamplingParams(stop=("END",)), piece=told.bytes.__getitem__, tell=None)
    assert [kept.append(token, np.zeros(6, np.float32)) for token in (0, 1)] == [False, True]


def test_log_probabilities_are_those_of_the_text() -> None:
    tokens = ["{<think>}", "\nhm", "\n", "</thi", "nk>\n", "\n", "a<", "b", " c"]

    told = Told(replace(SPLIT, logprobs=0), tokens)

    assert (told.reasoning, told.text) == ("hm", "a<b c")
    assert told.listed == [b"a<", b"b", b" c"]
    assert told.transcript.num_reasoning_tokens == 5


def test_token_that_ends_the_thoughts_and_begins_the_text_is_of_the_text() -> None:
    told = Told(replace(SPLIT, logprobs=0), ["hm", "</think>\n\na", "b"], is_open=True)

    assert (told.reasoning, told.text, told.listed) == ("hm", "ab", [b"</think>\n\na", b"b"])
    assert told.transcript.num_reasoning_tokens == 1


def test_special_token_that_is_no_mark_where_it_comes_is_left_out_as_ever() -> None:
    told = Told(replace(SPLIT, logprobs=0), ["a", "{<think>}", "{<|im_end|>}", "b"])

    assert (told.text, told.transcript.reasoning) == ("ab", None)
    assert told.transcript.num_reasoning_tokens == 0
    assert len(told.listed) == 4


def test_thoughts_that_nobody_wants_are_counted_and_left_out() -> None:
    told = Told(SamplingParams(reasoning=Reasoning.OFF), ["hm", "</think>", "a"], is_open=True)

    assert (told.text, told.transcript.reasoning, told.transcript.num_reasoning_tokens) == ("a", None, 2)


def test_thoughts_that_have_only_begun_are_empty_and_no_thoughts_are_none() -> None:
    assert Told(SPLIT, ["{<think>}"]).transcript.reasoning == ""
    assert Told(SPLIT, [], is_open=True).transcript.reasoning == ""
    assert Told(SPLIT, ["a"]).transcript.reasoning is None
    # It could have become a mark.
    assert Told(SPLIT, ["<thi"]).text == "<thi"


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "{<think>}", "{</think>}", "a", " ", "\n", "€", "</th", "X"])),
    st.booleans(),
    st.sampled_from([None, 0]),
    st.lists(st.sampled_from(["X", "a\n", "€ "]), max_size=2),
)
def test_what_is_told_adds_up(tokens: list[str], is_open: bool, logprobs: int | None, stop: list[str]) -> None:
    told = Told(replace(SPLIT, logprobs=logprobs, stop=tuple(stop)), tokens, is_open=is_open)

    assert told.transcript.num_reasoning_tokens <= len(tokens)
    assert told.reasoning == told.reasoning.strip()
    if logprobs is not None:
        assert told.text in b"".join(told.listed).decode(errors="replace") or "\n\n" in told.text


# -- an engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reasons")
    return write_tiny_gguf(folder / "r.gguf", chat_template=REASONING_TEMPLATE, thought_marks=THINK_MARKS, end_bias=6)


def ask(key: int, params: SamplingParams, *, is_chat: bool = True) -> SequenceRequest:
    prompt = f'[{{"role":"user","content":"hi {key % 8}"}}]'
    return SequenceRequest((key, 0), prompt, params, seed=key % 8, is_chat=is_chat)


def test_engine_tells_thoughts_from_text(model: Path) -> None:
    params = SamplingParams(max_tokens=60, reasoning=Reasoning.SPLIT)
    with running(model) as engine:
        results = complete(engine, [ask(key, params) for key in range(8)])
        kept = complete(engine, [ask(key, replace(params, reasoning=Reasoning.KEEP)) for key in range(8)])

    choices = [result.choice for result in results if result.choice is not None]
    assert len(choices) == 8
    finished = [choice for choice in choices if choice.text]
    assert finished, "no model of this seed has closed its thoughts"
    for choice, whole in zip(choices, kept, strict=True):
        assert whole.choice is not None
        assert choice.reasoning
        assert 0 < choice.usage.reasoning_tokens <= choice.usage.completion_tokens
        # The mark is a special token, and so no part of the text that is kept whole.
        assert choice.reasoning + choice.text == whole.choice.text
        assert (whole.choice.reasoning, whole.choice.usage.reasoning_tokens) == (None, 0)
        if not choice.text and choice.finish_reason is FinishReason.LENGTH:
            assert choice.usage.reasoning_tokens == choice.usage.completion_tokens == 60


def test_engine_has_no_thoughts_where_they_are_off(model: Path) -> None:
    params = SamplingParams(max_tokens=4, temperature=0, reasoning=Reasoning.OFF)
    with running(model) as engine:
        [off] = complete(engine, [ask(0, params)])
        [told] = complete(engine, [ask(0, replace(params, chat_template_kwargs='{"enable_thinking":false}'))])
        [on] = complete(engine, [ask(0, replace(params, chat_template_kwargs='{"enable_thinking":true}'))])

    assert off.choice is not None
    assert told.choice is not None
    assert on.choice is not None
    assert off.choice.reasoning is None
    assert off.choice.text == told.choice.text
    assert off.choice.usage.prompt_tokens == told.choice.usage.prompt_tokens
    # Who says otherwise in so many words is taken at them, but thoughts that the prompt has opened are closed.
    assert on.choice.text == off.choice.text


def test_constraint_is_for_the_text_and_leaves_thoughts_free(model: Path) -> None:
    constraint = Constraint(ConstraintKind.CHOICE, '["yes","no"]')
    params = SamplingParams(max_tokens=100, reasoning=Reasoning.SPLIT, constraint=constraint)
    with running(model) as engine:
        results = complete(engine, [ask(key, params) for key in range(8)])

    choices = [result.choice for result in results if result.choice is not None]
    whole = [choice for choice in choices if choice.finish_reason is FinishReason.STOP and choice.text]
    assert whole, "no model of this seed has closed its thoughts"
    assert {choice.text for choice in whole} <= {"yes", "no"}
    assert all(choice.reasoning not in (None, "", "yes", "no") for choice in choices)


def test_plain_prompt_of_a_model_that_reasons_is_not_split(model: Path) -> None:
    params = SamplingParams(max_tokens=30, temperature=0, reasoning=Reasoning.SPLIT)
    chat = ask(0, params)
    with running(model) as engine:
        # The same tokens as the chat's, so that the two could be taken for twins.
        plain = SequenceRequest((1, 0), "[user] hi 0<|endoftext|>\n[assistant] <think>\n", params)
        as_chat, as_text = complete(engine, [chat, plain])

    assert as_chat.choice is not None
    assert as_text.choice is not None
    assert as_text.choice.usage.prompt_tokens == as_chat.choice.usage.prompt_tokens
    assert as_text.choice.reasoning is None
    assert as_text.choice.text == (as_chat.choice.reasoning or "") + as_chat.choice.text


def test_chat_that_is_gone_on_with_in_its_thoughts_goes_on_there(model: Path) -> None:
    params = SamplingParams(
        max_tokens=3, temperature=0, reasoning=Reasoning.SPLIT, add_generation_prompt=False, continue_final_message=True
    )
    contents = ["<think>so", "<think>so</think>then", "so"]
    chats = [f'[{{"role":"user","content":"x"}},{{"role":"assistant","content":"{each}"}}]' for each in contents]
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{# </think> #}"
    path = write_tiny_gguf(model.with_name("c.gguf"), chat_template=template, thought_marks={"<think>": 0.0})
    with running(path) as engine:
        results = complete(
            engine, [SequenceRequest((i, 0), chat, params, is_chat=True) for i, chat in enumerate(chats)]
        )

    found = [(result.choice.reasoning is None, not result.choice.text) for result in results if result.choice]
    assert found == [(False, True), (True, False), (True, False)]
