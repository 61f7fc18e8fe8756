"""What goes wrong at a server: a row is answered all the same, or has an error that says why; the engine never dies."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from batcher.errors import EngineError, ModelError
from batcher.types import ErrorCode, RemoteServers, SamplingParams
from tests.support.engine_contract import Caller
from tests.support.openai_server import (
    MODELS,
    Asked,
    Cut,
    Hold,
    OpenAIServer,
    Reply,
    completion,
    in_turn,
    refusal,
)
from tests.support.remote_engine import GREEDY, ask, choice_of, engine_at, error_of, prompts
from tests.support.waiting import PATIENCE_S, wait_for
from workers.engines.remote import engine as engine_module
from workers.engines.remote.engine import MAX_BROKEN, MAX_CUTS, MAX_CUTS_ALONE, RemoteEngine


@pytest.fixture(autouse=True)
def _no_long_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_FIRST_DELAY_S", 0.001)


HTML = b"<html><head><title>502</title></head><body><h1>Bad Gateway</h1><hr>nginx</body></html>"


def without(name: str) -> Any:
    def answer(asked: Asked) -> Reply:
        body = dict(completion(asked).body)
        del body[name]
        return Reply(body)

    return answer


def with_choice(**more: Any) -> Any:
    def answer(asked: Asked) -> Reply:
        body = completion(asked).body
        return Reply(body | {"choices": [body["choices"][0] | more]})

    return answer


#: What another try heals.
PASSING = {
    "too many requests": Reply({"error": {"message": "slow down"}}, 429),
    "too many requests, with a time": Reply({"error": "slow down"}, 429, {"retry-after": "0"}),
    "too many requests, with a date": Reply({}, 429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "too many requests, with a date of another age": Reply(
        {}, 429, {"retry-after": "Wed, 21 Oct 99999999999 07:28:00 GMT"}
    ),
    "too many requests, with nonsense": Reply({}, 429, {"retry-after": "soon"}),
    "overloaded": Reply({"error": {"code": 503, "message": "Loading model"}}, 503),
    "a proxy without its server": Reply(HTML, 502, {"content-type": "text/html"}),
    "a proxy that gave up": Reply(HTML, 504, {"content-type": "text/html"}),
    "internal error": Reply({"error": {"message": "CUDA error"}}, 500),
    "request timeout": Reply(b"", 408),
    "connection cut": Cut(),
    "answer cut": replace(Reply({"choices": [], "padding": "x" * 1000}), is_cut=True),
    "HTML": Reply(HTML, headers={"content-type": "text/html"}),
    "nothing": Reply(b""),
    "half of the JSON": Reply(b'{"choices": [{"index": 0, "text": "hel'),
    "no object": Reply([1, 2]),
    "no choices": without("choices"),
    "an empty list of choices": Reply({"choices": [], "usage": {"prompt_tokens": 1}}),
    "an index that was not asked for": with_choice(index=7),
    "a choice without a text": with_choice(text=None),
    "a text that is a number": with_choice(text=5),
    "no reason to end": with_choice(finish_reason=None),
    "an unknown reason to end": with_choice(finish_reason="abort"),
    "counts below zero": lambda asked: Reply(completion(asked).body | {"usage": {"prompt_tokens": -1}}),
    "counts beyond all bounds": lambda asked: Reply(completion(asked).body | {"usage": {"prompt_tokens": 1 << 70}}),
    "a surrogate alone": Reply(b'{"choices":[{"index":0,"text":"\\ud800","finish_reason":"stop"}]}'),
    "bytes that are no UTF-8": Reply(b'{"choices":[{"index":0,"text":"\xff\xfe","finish_reason":"stop"}]}'),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_row_is_answered_once_the_trouble_has_passed(trouble: str) -> None:
    server = OpenAIServer(in_turn(PASSING[trouble], PASSING[trouble], completion))
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, *prompts(["A"]))

    assert choice_of(result).text == "<A>"
    assert len(server.seen) == 3


#: What no other try would change: what is answered, and the code and words of the row's error.
LASTING: dict[str, tuple[Any, ErrorCode, str]] = {
    "no usage": (without("usage"), ErrorCode.ENGINE_ERROR, "no usage"),
    "a content filter": (with_choice(finish_reason="content_filter"), ErrorCode.ENGINE_ERROR, "content filter"),
    "a bad request": (refusal("prompt is bad"), ErrorCode.INVALID_REQUEST, "prompt is bad"),
    "a row that is too large": (Reply(HTML, 413), ErrorCode.INVALID_REQUEST, "Bad Gateway"),
    "a route that is not there": (Reply({"detail": "Not Found"}, 404), ErrorCode.MODEL_NOT_FOUND, "Not Found"),
    "a row that is forbidden": (Reply(HTML, 403), ErrorCode.ENGINE_ERROR, "status 403"),
    "another address": (Reply(b"", 307, {"location": "https://x/"}), ErrorCode.MODEL_NOT_FOUND, "https://x/"),
    "too long by OpenAI": (
        refusal("This model's maximum context length is 4097 tokens.", code="context_length_exceeded"),
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        "4097",
    ),
    "too long by llama-server": (
        Reply(
            {"error": {"code": 400, "message": "request (3001 tokens) exceeds", "type": "exceed_context_size_error"}},
            400,
        ),
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        "3001",
    ),
}


@pytest.mark.parametrize("trouble", LASTING)
def test_row_that_is_at_fault_has_an_error_at_once_and_others_are_answered(trouble: str) -> None:
    answer, code, words = LASTING[trouble]
    server = OpenAIServer(lambda asked: completion(asked) if asked.body["prompt"] != "bad" else in_turn(answer)(asked))
    with server.running(), engine_at(server) as engine:
        good, bad, other = ask(engine, *prompts(["good", "bad", "other"]))

    assert choice_of(good).text == "<good>"
    assert choice_of(other).text == "<other>"
    assert error_of(bad).code is code
    assert words in error_of(bad).message
    assert len(server.seen) == 3


def test_server_that_fails_for_one_row_alone_is_asked_a_number_of_times() -> None:
    server = OpenAIServer(
        lambda asked: Reply({"error": {"message": "boom"}}, 500) if asked.body["prompt"] == "bad" else completion(asked)
    )
    with server.running(), engine_at(server) as engine:
        good, bad = ask(engine, *prompts(["good", "bad"]))

    assert choice_of(good).text == "<good>"
    assert error_of(bad).code is ErrorCode.ENGINE_ERROR
    assert "boom" in error_of(bad).message
    assert len(server.seen) == 1 + MAX_BROKEN


def test_row_that_cuts_its_connection_each_time_is_tried_alone_and_then_set_aside() -> None:
    others: list[int] = []
    server = OpenAIServer()

    def answer(asked: Asked) -> Reply | Cut:
        if asked.body["prompt"] != "bad":
            return completion(asked)
        others.append(server.num_in_flight - 1)
        return Cut()

    server.answer = answer
    with server.running(), engine_at(server) as engine:
        results = ask(engine, *prompts(["bad", *(f"good {number}" for number in range(40))]))

    assert error_of(results[0]).code is ErrorCode.ENGINE_ERROR
    assert "with nothing else under way" in error_of(results[0]).message
    assert [choice_of(each).text for each in results[1:]] == [f"<good {number}>" for number in range(40)]
    assert len(others) == MAX_CUTS + MAX_CUTS_ALONE
    assert others[-MAX_CUTS_ALONE:] == [0] * MAX_CUTS_ALONE


def test_server_that_dies_is_waited_for_and_its_rows_are_not_at_fault() -> None:
    first = OpenAIServer(lambda asked: Hold())
    with first.running():
        engine = RemoteEngine("mine", "tiny", RemoteServers((first.url,)))
        engine.start()
        caller = Caller(engine)
        caller.submit(*prompts([f"{number}" for number in range(30)]))
        wait_for(lambda: len(first.seen) == 16, what="as many are in flight as fit")
    # It is dead, with 16 prompts in it.
    wait_for(lambda: not engine.servers[0].is_up, what="the engine has noticed")
    num_steps = engine.num_steps
    assert engine.is_busy
    wait_for(lambda: engine.num_steps > num_steps, what="the engine shows that it lives")

    second = OpenAIServer(port=first.port)
    with second.running():
        results = caller.results(30)
        engine.close()

    assert {choice_of(result).text for result in results.values()} == {f"<{number}>" for number in range(30)}
    assert caller.received() == []


def test_several_servers_share_the_rows_and_those_of_one_that_dies_go_to_the_other() -> None:
    left, right = OpenAIServer(), OpenAIServer()
    with right.running():
        with left.running():
            engine = RemoteEngine("mine", "tiny", RemoteServers((left.url, right.url)))
            engine.start()
            wait_for(lambda: all(server.is_up for server in engine.servers), what="both are up")
            ask(engine, *prompts([f"{number}" for number in range(50)]))
            assert left.seen
            assert right.seen
            left.answer = lambda asked: Hold()
            caller = Caller(engine)
            caller.submit(*prompts([f"{number}" for number in range(50)]))
            wait_for(lambda: left.num_in_flight == 0 and len(left.seen) > 16, what="the left one holds rows")
        results = caller.results(50)
        engine.close()

    assert {choice_of(result).text for result in results.values()} == {f"<{number}>" for number in range(50)}


def test_start_waits_for_a_server_that_is_not_there_yet() -> None:
    server = OpenAIServer()
    with server.running():
        pass
    engine = RemoteEngine("mine", "tiny", RemoteServers((server.url,)))
    is_started = threading.Event()

    def start() -> None:
        engine.start()
        is_started.set()

    thread = threading.Thread(target=start)
    thread.start()
    assert not is_started.wait(0.3)

    with server.running():
        thread.join()
        [result] = ask(engine, *prompts(["A"]))
        engine.close()

    assert choice_of(result).text == "<A>"


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (Reply({"error": {"message": "no key"}}, 401), "BATCHER_ENGINE_KEY"),
        (Reply(HTML, headers={"content-type": "text/html"}), "Most end in /v1"),
        (Reply(b"no gzip", headers={"content-encoding": "gzip"}), "Most end in /v1"),
        (Reply(b"", 301, {"location": "https://elsewhere/v1/models"}), "https://elsewhere"),
        ({"object": "list", "data": [{"id": "tiny-2"}, {"id": "large"}]}, "it serves tiny-2"),
    ],
)
def test_server_that_never_will_be_of_use_ends_the_start(listed: Any, words: str) -> None:
    server = OpenAIServer(listed=listed)
    with server.running():
        engine = RemoteEngine("mine", "tiny", RemoteServers((server.url,)))
        with pytest.raises(ModelError, match=words):
            engine.start()
        engine.close()


def test_key_that_is_taken_back_ends_the_engine_and_blames_no_row() -> None:
    server = OpenAIServer(in_turn(completion, Reply({"error": "key expired"}, 401)))
    with server.running(), engine_at(server) as engine:
        ask(engine, *prompts(["A"]))
        server.listed = Reply({"error": "key expired"}, 401)
        caller = Caller(engine)

        caller.submit(*prompts(["B", "C"]))
        wait_for(lambda: engine.failure, what="the engine gives up")

        [failure] = caller.received()
        assert isinstance(failure, EngineError)
        assert "key expired" in str(failure)


def test_model_that_a_server_has_lost_is_waited_for() -> None:
    server = OpenAIServer(in_turn(refusal("The model `tiny` does not exist", status=404), completion))
    with server.running(), engine_at(server) as engine:
        server.listed = {"object": "list", "data": [{"id": "another"}]}
        caller = Caller(engine)
        caller.submit(*prompts(["A"]))
        wait_for(lambda: server.seen and not engine.servers[0].is_up, what="the engine has noticed")
        assert caller.received() == []

        server.listed = MODELS

        assert choice_of(caller.results(1)[0, 0]).text == "<A>"


def test_retry_after_pauses_the_server() -> None:
    server = OpenAIServer(in_turn(Reply({}, 429, {"retry-after": "0.4"}), completion))
    with server.running(), engine_at(server) as engine:
        began_at = time.monotonic()
        [result] = ask(engine, *prompts(["A"]))

    assert choice_of(result).text == "<A>"
    assert time.monotonic() - began_at >= 0.4


@pytest.mark.parametrize("change", [{"is_up": False}, {"pause_until": float("inf")}], ids=["away", "paused"])
def test_live_request_goes_to_a_server_that_takes_some(change: dict[str, Any]) -> None:
    """Though another has as many rows in flight that live requests would go beyond."""

    def answer(asked: Asked) -> Reply | Hold:
        return completion(asked) if asked.body["prompt"] == "live" else Hold()

    first, second = OpenAIServer(lambda asked: Hold()), OpenAIServer(answer)
    with first.running(), second.running(), engine_at(first, second) as engine:
        wait_for(lambda: all(server.is_up for server in engine.servers), what="both are up")
        rows = Caller(engine)
        rows.submit(*prompts([f"{number}" for number in range(40)]))
        wait_for(lambda: len(first.seen) == len(second.seen) == 16, what="both are full")
        for name, value in change.items():
            setattr(engine.servers[0], name, value)

        live = Caller(engine)
        live.submit(*prompts(["live"], is_live=True))

        assert choice_of(live.results(1)[0, 0]).text == "<live>"


def test_row_that_takes_longer_than_it_may_is_a_timeout_and_hangs_up() -> None:
    server = OpenAIServer(lambda asked: Hold() if asked.body["prompt"] == "slow" else completion(asked))
    with server.running(), engine_at(server) as engine:
        slow, quick = ask(engine, *prompts(["slow", "quick"], timeout_s=0.3))

    assert error_of(slow).code is ErrorCode.TIMEOUT
    assert choice_of(quick).text == "<quick>"


def test_neutral_field_that_a_server_refuses_is_left_out_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    def answer(asked: Asked) -> Reply:
        for name in ("top_k", "min_p", "seed"):
            if name in asked.body:
                return refusal(f"Unrecognized request argument supplied: {name}")
        return completion(asked)

    server = OpenAIServer(answer)
    params = SamplingParams(max_tokens=5)
    with server.running(), engine_at(server) as engine:
        results = ask(engine, *prompts([f"{number}" for number in range(40)], params))
        num_asked = len(server.seen)
        ask(engine, *prompts(["A", "B"], params))

    assert all(result.choice for result in results)
    assert num_asked <= 40 + 3 * 16
    assert len(server.seen) == num_asked + 2
    for name in ("top_k", "min_p", "seed"):
        assert sum(f"refuses the field {name}" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    "reply",
    [
        refusal("Unrecognized request argument supplied: top_k"),
        refusal("Unknown parameter: 'top_k'.", param="top_k"),
        Reply(
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs are not permitted"}
                ]
            },
            422,
        ),
        Reply(
            {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'top_k'), 'msg': 'no'}]"}, 400
        ),
        Reply({"error": "unsupported field `top_k`"}, 400),
    ],
)
def test_field_that_a_row_asks_for_and_the_server_refuses_is_named_in_its_error_and_asked_once(reply: Reply) -> None:
    server = OpenAIServer(lambda asked: reply if asked.body.get("top_k") == 40 else completion(asked))
    with server.running(), engine_at(server, num_slots=1) as engine:
        results = ask(engine, *prompts(["A", "B"], replace(GREEDY, top_k=40)))
        [other] = ask(engine, *prompts(["C"]))

    for result in results:
        assert error_of(result).code is ErrorCode.INVALID_REQUEST
        assert error_of(result).message.startswith("top_k: ")
        assert error_of(result).param == "top_k"
    assert choice_of(other).text == "<C>"
    assert len(server.seen) == 2


def test_value_that_a_server_refuses_is_no_refusal_of_its_field() -> None:
    server = OpenAIServer(
        lambda asked: (
            refusal("temperature must be at most 1", param="temperature")
            if asked.body["temperature"] > 1
            else completion(asked)
        )
    )
    with server.running(), engine_at(server, num_slots=1) as engine:
        [hot] = ask(engine, *prompts(["A"], SamplingParams(temperature=1.5)))
        [warm] = ask(engine, *prompts(["A"], SamplingParams(temperature=0.7)))

    assert error_of(hot).message == "temperature: temperature must be at most 1"
    assert choice_of(warm).text == "<A>"


def test_closing_hangs_up() -> None:
    server = OpenAIServer(lambda asked: Hold())
    with server.running():
        engine = RemoteEngine("mine", "tiny", RemoteServers((server.url,)))
        engine.start()
        caller = Caller(engine)
        caller.submit(*prompts(["A"]))
        wait_for(lambda: server.seen, what="it is sent")

        engine.close()

        assert isinstance(caller.received()[0], EngineError)


def test_bug_of_ours_while_a_failure_is_judged_ends_the_engine_and_leaves_no_row_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def judge(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(RemoteEngine, "_judge", judge)
    with OpenAIServer(in_turn(Reply({}, 500))).running() as server, engine_at(server) as engine:
        caller = Caller(engine)
        caller.submit(*prompts(["a"]))
        failure = caller.inbox.get(timeout=PATIENCE_S)

    assert isinstance(failure, EngineError)
    assert "ZeroDivisionError('a bug')" in str(failure)
