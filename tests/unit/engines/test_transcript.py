"""Text as it comes: what is told bit by bit adds up to the whole, and nothing is told that a stop string takes back."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batcher.types import SamplingParams, TokenLogprob
from workers.engines.llama.sampling.transcript import Transcript, transcript_of


class Listener:
    """What it was told."""

    def __init__(self, params: SamplingParams, pieces: list[bytes]) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.whole: tuple[str, tuple[TokenLogprob, ...] | None] = ("", None)
        transcript = Transcript(params, piece=lambda token: pieces[token], tell=self.hear)
        for token in range(len(pieces)):
            if transcript.append(token, np.zeros(len(pieces), np.float32)):
                break
        self.before_end = len(self.texts)
        self.whole = transcript.finish()

    def hear(self, text: str, logprobs: tuple[TokenLogprob, ...] | None, thoughts: str) -> None:
        assert not thoughts
        self.texts.append(text)
        self.logprobs.extend(logprobs or ())


@given(
    st.lists(st.binary(min_size=0, max_size=4) | st.text("ab€日😀", max_size=3).map(str.encode), max_size=20),
    st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3).map(tuple),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.integers(0, 6),
    st.lists(st.integers(0, 19), max_size=2).map(tuple),
)
def test_what_is_told_adds_up_to_the_whole(
    pieces: list[bytes],
    stop: tuple[str, ...],
    logprobs: int | None,
    includes_stop: bool,
    min_tokens: int,
    stop_ids: tuple[int, ...],
) -> None:
    params = SamplingParams(
        stop=stop,
        logprobs=logprobs,
        include_stop_str_in_output=includes_stop,
        min_tokens=min_tokens,
        stop_token_ids=stop_ids,
    )
    listener = Listener(params, pieces)

    text, listed = listener.whole
    assert "".join(listener.texts) == text
    assert listener.logprobs == list(listed or ())


def test_possible_beginning_of_a_stop_string_is_held_back() -> None:
    listener = Listener(SamplingParams(stop=("END",)), [b"one E", b"N", b"ough E", b"ND two"])

    assert listener.texts == ["one ", "ENough "]


def test_nothing_is_held_back_where_the_stop_string_is_text_as_well() -> None:
    params = SamplingParams(stop=("END",), include_stop_str_in_output=True)
    listener = Listener(params, [b"one E", b"N", b"ough E", b"ND two"])

    assert listener.texts == ["one E", "N", "ough E", "ND"]


def test_stop_string_before_min_tokens_is_text_and_one_that_begins_there_is_none() -> None:
    params = SamplingParams(stop=("aa",), min_tokens=2)
    assert Listener(params, [b"aa", b"ba", b"a", b"x"]).whole[0] == "aab"


def test_token_to_stop_at_is_text_only_if_stop_strings_are() -> None:
    pieces = [b"one", b" two", b" three"]
    stopping = SamplingParams(stop_token_ids=(1,), logprobs=0)
    cut, whole = (
        Listener(replace(stopping, include_stop_str_in_output=includes), pieces).whole for includes in (False, True)
    )

    assert (cut[0], whole[0]) == ("one", "one two")
    assert [len(listed or ()) for _, listed in (cut, whole)] == [1, 2]


def test_half_a_character_is_held_back() -> None:
    euro = "€".encode()
    listener = Listener(SamplingParams(), [b"5 ", euro[:1], euro[1:], b"!"])

    assert listener.texts == ["5 ", "€", "!"]


def test_logprobs_come_with_the_text_of_their_tokens() -> None:
    listener = Listener(SamplingParams(stop=("abc",), logprobs=0), [b"x", b"a", b"b", b"y", b"ab", b"c"])

    assert "".join(listener.texts) == "xaby"
    assert [token.token for token in listener.logprobs] == [b"x", b"a", b"b", b"y"]


def test_request_that_wants_its_text_at_the_end_has_none() -> None:
    assert transcript_of(SamplingParams(), piece=lambda token: b"", tell=None) is None
