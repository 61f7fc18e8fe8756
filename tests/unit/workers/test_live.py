"""The channel between the server and its engines: what is sent is what comes, and its end is the end of the process."""

import math
import socket
import threading
from collections.abc import Iterator

import pytest

from batcher.types import Delta, Request, SamplingParams, TokenLogprob
from tests.support.fake_model import FakeModel, FakeVocabulary, complete_alone
from tests.support.waiting import PATIENCE_S
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.kv_cache import KvCache, Tokens
from workers.engines.pool import EnginePool
from workers.live.engine_end import LiveRequests
from workers.live.frames import (
    AskStats,
    Failed,
    Finished,
    Gained,
    Hello,
    Stats,
    Submit,
    decode_answer,
    encode_answers,
    encode_question,
)


class Server:
    """The server's end of a channel."""

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(PATIENCE_S)
        self.channel = channel
        self.lines = channel.makefile("rb")
        self.has_ended = threading.Event()

    def hang_up(self) -> None:
        self.lines.close()
        self.channel.close()


@pytest.fixture
def server() -> Iterator[Server]:
    ours, theirs = socket.socketpair()
    server = Server(ours)
    cache = KvCache(num_slots=2, cells_per_sequence=512)
    engine = LlamaEngine("fake", FakeModel(num_slots=2), cache=cache, max_batch_tokens=64, system_fingerprint="fp_fake")  # type: ignore[arg-type]
    engine.start()
    LiveRequests(
        theirs,
        EnginePool({"fake": engine}),
        on_answered=lambda: None,
        on_engine_failure=lambda exc: None,
        on_end=server.has_ended.set,
    ).start()
    assert decode_answer(server.lines.readline()) == Hello({"fake": "fp_fake"})
    yield server
    server.hang_up()
    assert server.has_ended.wait(PATIENCE_S)
    engine.close()
    theirs.close()


def ask(number: int, prompt: str, *, client: str = "1", variables: str = "") -> bytes:
    params = SamplingParams(max_tokens=5, temperature=0.0, chat_template_kwargs=variables)
    request = Request(0, "", "fake", (prompt,), False, params)
    return encode_question(Submit(number, request, is_streaming=False, timeout_s=None, job_seed=1, client=client))


def test_questions_are_answered_under_their_numbers(server: Server) -> None:
    server.channel.sendall(ask(7, "hello") + encode_question(AskStats(8)))

    answers = {answer.number: answer for answer in map(decode_answer, (server.lines.readline() for _ in range(2)))}

    finished, stats = answers[7], answers[8]
    assert isinstance(finished, Finished)
    assert finished.choice.text == complete_alone("hello", max_tokens=5)
    assert isinstance(stats, Stats)


@pytest.mark.parametrize(("prompt", "variables"), [("x" * 100_000, ""), ("x" * 1_000, "x" * 100_000)])
def test_long_prompt_holds_up_nobody(
    server: Server, monkeypatch: pytest.MonkeyPatch, prompt: str, variables: str
) -> None:
    tokenize, can_go_on = FakeVocabulary.tokenize, threading.Event()

    def wait_for_long(vocabulary: FakeVocabulary, text: str) -> Tokens:
        assert text == "hello" or can_go_on.wait(PATIENCE_S)
        return tokenize(vocabulary, text)

    monkeypatch.setattr(FakeVocabulary, "tokenize", wait_for_long)
    monkeypatch.setattr(FakeVocabulary, "most_bytes", 1 << 20)
    server.channel.sendall(ask(1, prompt, variables=variables) + ask(2, "hello") + encode_question(AskStats(3)))

    assert {decode_answer(server.lines.readline()).number for _ in range(2)} == {2, 3}
    can_go_on.set()
    assert isinstance(decode_answer(server.lines.readline()), Failed)


def test_prompts_of_several_clients_are_tokenized_in_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize, can_go_on = FakeVocabulary.tokenize, threading.Event()
    tokenized: list[str] = []

    def wait(vocabulary: FakeVocabulary, text: str) -> Tokens:
        assert can_go_on.wait(PATIENCE_S)
        tokenized.append(text)
        return tokenize(vocabulary, text)

    monkeypatch.setattr(FakeVocabulary, "tokenize", wait)
    server.channel.sendall(ask(0, "a0", client="a"))
    for number, prompt in enumerate(("a1", "a2", "a3", "b0", "b1", "c0"), start=1):
        server.channel.sendall(ask(number, prompt, client=prompt[0]))
    # When this is answered, all before it have come.
    server.channel.sendall(encode_question(AskStats(9)))
    assert decode_answer(server.lines.readline()).number == 9
    can_go_on.set()

    answered = {decode_answer(server.lines.readline()).number for _ in range(7)}

    assert answered == set(range(7))
    # The first may have been on its way before any other came.
    assert tokenized[:4] in (["a0", "a1", "b0", "c0"], ["a0", "b0", "c0", "a1"])
    assert sorted(tokenized[4:]) == sorted({"a1", "a2", "a3", "b0", "b1", "c0"} - set(tokenized[:4]))


def test_server_that_hangs_up_ends_it(server: Server) -> None:
    server.hang_up()

    assert server.has_ended.wait(PATIENCE_S)


def test_question_that_is_none_ends_it(server: Server) -> None:
    server.channel.sendall(b"{}\n")

    assert server.has_ended.wait(PATIENCE_S)


def test_token_that_is_impossible_by_the_model_goes_through() -> None:
    delta = Delta(0, "x", (TokenLogprob(b"\xff", -1.0, ((b"y", -math.inf),)),))

    answer = decode_answer(encode_answers([Gained(1, delta)]))

    assert answer == Gained(1, delta)
