"""What servers of the same API differ in, on answers as they give them: docs/engines.md says where each is from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batcher.types import ErrorCode, FinishReason, Reasoning, SamplingParams, Usage
from tests.support.dialect_shapes import chat, server_of
from tests.support.openai_server import Asked, Reply, completion, events
from tests.support.remote_engine import GREEDY, ask, choice_of, engine_at, error_of, prompts
from workers.engines.base import Ability, SequenceDelta, SequenceRequest
from workers.engines.remote import dialects
from workers.engines.remote.bodies import COMPLETIONS
from workers.engines.remote.dialects import ALL, BATCHER, GENERIC, LLAMA_SERVER, OLLAMA, VLLM, Dialect

PAGE = Path(__file__).parents[3] / "docs" / "engines.md"

EVERYTHING = SamplingParams(
    max_tokens=5,
    temperature=0.5,
    top_p=0.9,
    stop=("\n", "END"),
    seed=7,
    presence_penalty=0.5,
    frequency_penalty=0.25,
    logit_bias=((5, -100.0),),
    top_k=40,
    min_p=0.1,
    repetition_penalty=1.1,
    min_tokens=2,
    ignore_eos=True,
    stop_token_ids=(3,),
    include_stop_str_in_output=True,
    bad_words=("x",),
)


def sent(dialect: Dialect, *requests: SequenceRequest) -> list[dict[str, Any]]:
    """The bodies that went out for requests that all were answered."""
    server = server_of(dialect)
    with server.running(), engine_at(server) as engine:
        for result in ask(engine, *requests):
            choice_of(result)
    return [asked.body for asked in server.seen]


@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
def test_server_is_known_by_what_it_says_of_its_models(dialect: Dialect) -> None:
    server = server_of(dialect)
    with server.running(), engine_at(server) as engine:
        assert engine.servers[0].dialect is dialect
        assert engine.abilities & ~Ability.PRIORITY == dialect.abilities & ~Ability.PRIORITY


def test_llama_server_answers_to_any_name_of_its_one_model() -> None:
    server = server_of(LLAMA_SERVER)
    with server.running(), engine_at(server, model="mine") as engine:
        [result] = ask(engine, *prompts(["A"]))

    assert choice_of(result).text == "<A>"


@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
def test_nothing_narrows_the_sampling_unless_it_is_asked_for(dialect: Dialect) -> None:
    [body] = sent(dialect, *prompts(["A"], SamplingParams(max_tokens=5)))

    assert (body["temperature"], body["top_p"]) == (1, 1)
    if dialect is OLLAMA:
        assert set(body) == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed"}
    else:
        assert body["top_k"] == (0 if dialect in (LLAMA_SERVER, BATCHER) else -1)
        assert body["min_p"] == 0
        assert body["repeat_penalty" if dialect is LLAMA_SERVER else "repetition_penalty"] == 1


@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("is_chat", [False, True])
def test_field_goes_out_or_its_row_is_an_error_that_names_it(dialect: Dialect, is_chat: bool) -> None:
    names = [name for name in EVERYTHING.__dataclass_fields__ if getattr(EVERYTHING, name) != getattr(GREEDY, name)]
    prompt = '[{"role":"user","content":"A"}]' if is_chat else "A"
    params = [replace(GREEDY, **{name: getattr(EVERYTHING, name)}) for name in names]
    server = server_of(dialect)
    with server.running(), engine_at(server, num_slots=1) as engine:
        requests = [SequenceRequest((at, 0), prompt, each, seed=9, is_chat=is_chat) for at, each in enumerate(params)]
        results = ask(engine, *requests)

    bodies = iter([asked.body for asked in server.seen])
    for name, result in zip(names, results, strict=True):
        if result.error is not None:
            assert dialect.drops(name, is_chat=is_chat)
            assert result.error.code is ErrorCode.INVALID_REQUEST
            assert result.error.message.startswith(f"{name}: {dialect.name} at http://127.0.0.1")
        else:
            assert not dialect.drops(name, is_chat=is_chat)
            value = next(bodies)[dialect.names.get(name, name)]
            expected = getattr(EVERYTHING, name)
            assert value == {"seed": 9, "logit_bias": {"5": -100}}.get(
                name, list(expected) if isinstance(expected, tuple) else expected
            )


def test_penalties_of_llama_server_look_at_the_whole_text() -> None:
    for params in (
        replace(GREEDY, presence_penalty=1.5),
        replace(GREEDY, frequency_penalty=1.5),
        replace(GREEDY, repetition_penalty=1.5),
    ):
        [body] = sent(LLAMA_SERVER, *prompts(["A"], params))
        assert body["repeat_last_n"] == 65_536
    [body] = sent(LLAMA_SERVER, *prompts(["A"]))
    assert "repeat_last_n" not in body


def test_seed_of_its_own_goes_along_with_each_row_that_is_drawn() -> None:
    bodies = sent(GENERIC, *prompts(["A", "B"], SamplingParams(max_tokens=5)))

    assert [body["seed"] for body in bodies] == [0, 1]


def test_row_that_is_not_drawn_says_nothing_of_how_to_draw() -> None:
    [body] = sent(GENERIC, *prompts(["A"]))

    assert set(body) == {"model", "prompt", "max_tokens", "temperature", "repetition_penalty"}


# -- several prompts in a request ---------------------------------------------------------------------------------


def counted(asked: Asked) -> Reply:
    """As vLLM answers with `return_token_ids`: the last choice first, as nothing says in which order they come."""
    reply = completion(asked)
    prompts_sent = asked.body["prompt"]
    if asked.body.get("return_token_ids"):
        for choice in reply.body["choices"]:
            choice["prompt_token_ids"] = list(range(len(prompts_sent[choice["index"]])))
            choice["token_ids"] = [1, 2, 3]
        reply.body["choices"].reverse()
        reply.body["usage"] = {"prompt_tokens": 999, "completion_tokens": 999, "total_tokens": 1998}
    return reply


def test_several_prompts_go_out_in_one_request_where_each_is_counted() -> None:
    texts = [f"{'A' * (number + 1)}" for number in range(40)]
    server = server_of(VLLM, counted)
    with server.running(), engine_at(server) as engine:
        results = ask(engine, *prompts(texts))

    assert len(server.seen) <= 12
    assert [choice_of(result).text for result in results] == [f"<{text}>" for text in texts]
    together = [each for each in server.seen if isinstance(each.body["prompt"], list)]
    assert together
    in_arrays = {text for asked in together for text in asked.body["prompt"]}
    for text, result in zip(texts, results, strict=True):
        assert choice_of(result).usage == (Usage(len(text), 3) if text in in_arrays else Usage(3, 2))


def test_rows_that_are_drawn_or_differ_go_out_one_by_one() -> None:
    drawn = prompts([f"{number}" for number in range(20)], SamplingParams(max_tokens=5))
    differing = [
        SequenceRequest((100 + number, 0), "A", replace(GREEDY, max_tokens=number + 1)) for number in range(20)
    ]
    server = server_of(VLLM, counted)
    with server.running(), engine_at(server) as engine:
        ask(engine, *drawn, *differing)

    assert all(isinstance(asked.body["prompt"], str) for asked in server.seen)


def test_server_that_does_not_count_each_prompt_is_sent_one_at_a_time_from_then_on() -> None:
    # An older vLLM, which leaves out fields that it does not know.
    server = server_of(VLLM)
    with server.running(), engine_at(server) as engine:
        results = ask(engine, *prompts([f"{number}" for number in range(60)]))

    assert [choice_of(result).usage for result in results] == [Usage(3, 2)] * 60
    assert 1 <= sum(isinstance(asked.body["prompt"], list) for asked in server.seen) <= 16
    assert all(isinstance(asked.body["prompt"], str) for asked in server.seen[-40:])


def test_one_bad_prompt_of_several_is_an_error_of_its_own() -> None:
    def answer(asked: Asked) -> Reply:
        if "bad" in (asked.body["prompt"] if isinstance(asked.body["prompt"], list) else [asked.body["prompt"]]):
            return Reply({"object": "error", "message": "bad is bad", "type": "BadRequestError", "code": 400}, 400)
        return counted(asked)

    texts = [*(f"{number}" for number in range(20)), "bad", *(f"{number}" for number in range(20, 40))]
    server = server_of(VLLM, answer)
    with server.running(), engine_at(server) as engine:
        results = ask(engine, *prompts(texts))

    assert error_of(results[20]).message == "bad is bad"
    assert [result.choice is not None for result in results] == [text != "bad" for text in texts]


# -- chats --------------------------------------------------------------------------------------------------------


def test_chat_that_is_as_long_as_the_context_allows_is_ended_by_the_server() -> None:
    def answer(asked: Asked) -> Reply:
        if "max_tokens" in asked.body:
            message = "This model's maximum context length is 1024 tokens. However, you requested 1500 tokens"
            return Reply({"object": "error", "message": message, "type": "BadRequestError", "code": 400}, 400)
        return completion(asked)

    server = server_of(VLLM, answer)
    with server.running(), engine_at(server) as engine:
        [clipped] = ask(engine, chat(replace(GREEDY, max_tokens=1024, clips_max_tokens=True)))
        [other] = ask(engine, chat(replace(GREEDY, max_tokens=1024)))

    assert choice_of(clipped).text == "<A>"
    assert error_of(other).code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_thoughts_that_a_server_tells_from_the_text_are_the_reasoning_of_the_choice(
    name: str, is_streaming: bool
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}

    def answer(asked: Asked) -> Reply:
        said = {"content": "4", name: "2 and 2"}
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if asked.body.get("stream"):
            return events({"choices": [choice | {"delta": said}]}, {"choices": [], "usage": usage}, b"[DONE]")
        return Reply({"choices": [choice | {"message": said}], "usage": usage})

    server = server_of(VLLM, answer)
    deltas: list[SequenceDelta] = []
    with server.running(), engine_at(server) as engine:
        request = chat(replace(GREEDY, reasoning=Reasoning.SPLIT))
        [result] = ask(engine, request, on_delta=deltas.append if is_streaming else None)
        [off] = ask(engine, chat(replace(GREEDY, reasoning=Reasoning.OFF)))

    assert (choice_of(result).text, choice_of(result).reasoning) == ("4", "2 and 2")
    assert choice_of(result).usage == Usage(3, 9, 0, 7)
    assert [delta.reasoning for delta in deltas] == ["2 and 2"] * is_streaming
    assert error_of(off).message.startswith("reasoning: ")


def test_max_tokens_is_called_otherwise_for_a_server_that_says_so() -> None:
    def answer(asked: Asked) -> Reply:
        if "max_tokens" in asked.body:
            message = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            )
            return Reply({"error": {"message": message, "param": "max_tokens", "code": "unsupported_parameter"}}, 400)
        return completion(asked)

    server = server_of(GENERIC, answer)
    with server.running(), engine_at(server) as engine:
        [first] = ask(engine, chat())
        [second] = ask(engine, chat())

    assert choice_of(first).text == choice_of(second).text == "<A>"
    assert [asked.body.get("max_completion_tokens") for asked in server.seen] == [None, 5, 5]


@pytest.mark.parametrize("content", [None, ""])
def test_chat_that_holds_only_thoughts_or_a_call_has_an_empty_text(content: str | None) -> None:
    def answer(asked: Asked) -> Reply:
        body = completion(asked).body
        message: dict[str, Any] = {"role": "assistant", "content": content, "reasoning_content": "hm", "tool_calls": []}
        return Reply(body | {"choices": [body["choices"][0] | {"message": message, "finish_reason": "tool_calls"}]})

    server = server_of(VLLM, answer)
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, chat())

    assert (choice_of(result).text, choice_of(result).finish_reason) == ("", FinishReason.STOP)


# -- the rest -----------------------------------------------------------------------------------------------------


def test_live_request_is_streamed_and_its_usage_comes_last() -> None:
    server = server_of(VLLM)
    deltas: list[SequenceDelta] = []
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, *prompts(["AB"], is_live=True), on_delta=deltas.append)

    assert [delta.text for delta in deltas] == ["<", "A", "B", ">"]
    assert choice_of(result).text == "<AB>"
    assert choice_of(result).usage == Usage(3, 2)
    assert server.seen[0].body["stream_options"] == {"include_usage": True}


def test_cached_tokens_and_fingerprint_are_as_the_server_says() -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 20}}
    server = server_of(
        LLAMA_SERVER, lambda asked: Reply(completion(asked).body | {"usage": usage, "system_fingerprint": "b1-0c1e570"})
    )
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, *prompts(["A"]))
        assert engine.system_fingerprint == "b1-0c1e570"

    assert choice_of(result).usage == Usage(30, 2, 20)


def test_key_goes_along_with_each_request() -> None:
    server = server_of(GENERIC)
    with server.running(), engine_at(server, key="geheim") as engine:
        ask(engine, *prompts(["A"]))

    assert server.seen[0].headers["authorization"] == "Bearer geheim"
    assert server.seen[0].route == COMPLETIONS


def test_each_dialect_is_a_column_of_the_page() -> None:
    heads = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| |")]

    assert any(all(dialect.name in head for dialect in dialects.ALL if dialect is not GENERIC) for head in heads)
