"""Text as it comes: what is told bit by bit adds up to the whole, and nothing is told that a stop string takes back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batcher.types import SamplingParams, TokenLogprob
from workers.engine.transcript import Transcript, transcript_of

LOGITS = np.zeros(4, np.float32)


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

    def hear(self, text: str, logprobs: tuple[TokenLogprob, ...] | None) -> None:
        self.texts.append(text)
        self.logprobs.extend(logprobs or ())


@given(
    st.lists(st.binary(min_size=0, max_size=4) | st.text("ab€日😀", max_size=3).map(str.encode), max_size=20),
    st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3).map(tuple),
    st.sampled_from([None, 0, 2]),
)
def test_what_is_told_adds_up_to_the_whole(pieces: list[bytes], stop: tuple[str, ...], logprobs: int | None) -> None:
    listener = Listener(SamplingParams(stop=stop, logprobs=logprobs), pieces)

    text, listed = listener.whole
    assert "".join(listener.texts) == text
    assert listener.logprobs == list(listed or ())


def test_possible_beginning_of_a_stop_string_is_held_back() -> None:
    listener = Listener(SamplingParams(stop=("END",)), [b"one E", b"N", b"ough E", b"ND two"])

    assert listener.texts == ["one ", "ENough "]


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
