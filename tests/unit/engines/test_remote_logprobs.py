"""Log-probabilities of servers behind URLs, in whichever shape they come."""

from dataclasses import replace
from typing import Any

import pytest

from batcher.types import TokenLogprob
from tests.support.dialect_shapes import chat, server_of
from tests.support.openai_server import Asked, Reply, completion, events
from tests.support.remote_engine import GREEDY, ask, choice_of, engine_at, error_of, prompts
from workers.engines.base import SequenceDelta
from workers.engines.remote.dialects import GENERIC, OLLAMA

#: What three kinds of server say of the text " Paris", for completions and chats.
LOGPROBS: dict[str, tuple[bool, dict[str, Any]]] = {
    "vLLM and OpenAI, of prompts": (
        False,
        {
            "text_offset": [0, 6],
            "tokens": [" Paris", "bytes:\\xe2\\x82"],
            "token_logprobs": [-0.5, float("-inf")],
            "top_logprobs": [{" Paris": -0.5, " Rome": -2.0, " Bonn": -3.0}, {"bytes:\\xe2\\x82": -9999.0, "x": -0.1}],
        },
    ),
    "llama-server, of both": (
        False,
        {
            "content": [
                {
                    "id": 7042,
                    "token": " Paris",
                    "bytes": [32, 80, 97, 114, 105, 115],
                    "logprob": -0.5,
                    "top_logprobs": [
                        {"id": 7042, "token": " Paris", "bytes": [32, 80, 97, 114, 105, 115], "logprob": -0.5},
                        {"id": 7043, "token": " Rome", "bytes": [32, 82, 111, 109, 101], "logprob": -2.0},
                    ],
                },
                {
                    "id": 3,
                    "token": "\ufffd",
                    "bytes": [226, 130],
                    "logprob": -9999.0,
                    "top_logprobs": [{"id": 9, "token": "x", "bytes": [120], "logprob": -0.1}],
                },
            ]
        },
    ),
    "OpenAI, vLLM and SGLang, of chats": (
        True,
        {
            "content": [
                {
                    "token": " Paris",
                    "bytes": None,
                    "logprob": -0.5,
                    "top_logprobs": [
                        {"token": " Rome", "bytes": None, "logprob": -2.0},
                        {"token": " Paris", "bytes": None, "logprob": -0.5},
                    ],
                },
                {
                    "token": "?",
                    "bytes": [226, 130],
                    "logprob": -9999.0,
                    "top_logprobs": [{"token": "x", "logprob": -0.1}],
                },
            ]
        },
    ),
}


@pytest.mark.parametrize("shape", LOGPROBS)
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_logprobs_of_either_shape_are_the_same_tokens(shape: str, number: int, is_streaming: bool) -> None:
    is_chat, logprobs = LOGPROBS[shape]

    def answer(asked: Asked) -> Reply:
        choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        whole = {"message": {"content": " Paris"}} if is_chat else {"text": " Paris"}
        if not asked.body.get("stream"):
            return Reply({"choices": [choice | whole], "usage": usage})
        piece = {"delta": {"content": " Paris"}} if is_chat else {"text": " Paris"}
        return events({"choices": [choice | piece]}, {"choices": [], "usage": usage}, b"[DONE]")

    server = server_of(GENERIC, answer)
    request = replace(chat() if is_chat else prompts(["A"])[0], params=replace(GREEDY, logprobs=number))
    deltas: list[SequenceDelta] = []
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, request, on_delta=deltas.append if is_streaming else None)

    tops = [((b" Paris", -0.5), (b" Rome", -2.0)), ((b"x", -0.1), (b"\xe2\x82", -9999.0))]
    expected = (
        TokenLogprob(b" Paris", -0.5, tops[0][:number]),
        TokenLogprob(b"\xe2\x82", -9999.0, tops[1][: min(number, 2 if "prompts" in shape else 1)]),
    )
    assert choice_of(result).logprobs == expected
    assert server.seen[0].body["top_logprobs" if is_chat else "logprobs"] == max(1, number)
    if is_streaming:
        assert [delta.logprobs for delta in deltas] == [expected]


def test_logprobs_that_a_server_leaves_out_are_an_error() -> None:
    server = server_of(OLLAMA)
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, *prompts(["A"], replace(GREEDY, logprobs=2)))

    assert error_of(result).message == "logprobs: the server gave none; leave it out"


def test_echo_that_a_server_leaves_out_is_an_error() -> None:
    server = server_of(GENERIC, lambda asked: completion(asked, text="B"))
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, *prompts(["A"], is_echoing=True))

    assert error_of(result).message.startswith("echo: ")
