"""What lm-eval asks of a server, live and as the lines of a batch: likelihoods, rolling ones, and texts up to a stop.

The bodies are those of PyPI's lm-eval 0.4.13, `--model local-completions`, and are read as it reads them.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import numpy as np
import pytest

from tests.support.family import Family
from tests.support.serving import Server, serve
from tests.support.tiny_gguf import END_OF_TEXT
from tests.support.waiting import wait_for
from workers.engines.llama.loader import load_tokenizer

WAIT_S = 60

CONTEXT = "Which of these is a colour? " * 3
ANSWERS = ("red", "a house", "hello world", "42")
DOCUMENT = "The quick brown fox jumps over the lazy dog. 日本語. " * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    family = Family(tmp_path_factory.mktemp("scoring"))
    with serve(family, "--model", f"tiny={model}", "--no-auth", "--threads", 1, "--slots", 4) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.root_url, timeout=WAIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def tokens_of(model: Path) -> Any:
    tokenizer = load_tokenizer(model)
    return lambda text: tokenizer.tokenize(text).tolist()


@pytest.fixture(scope="module")
def likeliness(model: Path) -> Iterator[Any]:
    """Of ids and where they go on: the sum of their log-probabilities, and whether each was the likeliest.

    From llama-cpp-python's raw logits.
    """
    llama = llama_cpp.Llama(str(model), n_ctx=512, n_threads=1, flash_attn=True, logits_all=True, verbose=False)

    def find(ids: list[int], start: int) -> tuple[float, bool]:
        llama.reset()  # type: ignore[no-untyped-call]
        llama.eval(ids)
        logits = np.array(llama.scores[: len(ids)], np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        places = range(start, len(ids))
        return (
            float(sum(logprobs[at - 1, ids[at]] for at in places)),
            all(int(logits[at - 1].argmax()) == ids[at] for at in places),
        )

    yield find
    llama.close()


def scoring(prompt: Any) -> dict[str, Any]:
    """The body that asks for log-likelihoods."""
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    return {"model": "tiny", "prompt": prompt, **asked}


def generating(prompt: Any) -> dict[str, Any]:
    """The body that asks for a text up to one of these stops."""
    stop = ["\n", "e", END_OF_TEXT]
    return {"prompt": prompt, "model": "tiny", "max_tokens": 32, "temperature": 0, "stop": stop, "seed": 1234}


def read_likeliness(answer: dict[str, Any], starts: list[int]) -> list[tuple[float, bool]]:
    """As lm-eval reads it: it takes the last entry for the token that was generated, whatever that was."""
    found = []
    for choice, start in zip(sorted(answer["choices"], key=lambda choice: choice["index"]), starts, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        is_greedy = all(value == max(top.values()) for value, top in zip(logprobs, tops, strict=True))
        found.append((sum(logprobs), is_greedy))
    return found


def complete(client: httpx.Client, *bodies: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The answers to the bodies, live and as the lines of a batch."""
    live = [client.post("/v1/completions", json=body) for body in bodies]
    assert [answer.status_code for answer in live] == [200] * len(bodies), [answer.text for answer in live]

    line = {"method": "POST", "url": "/v1/completions"}
    lines = "".join(json.dumps({"custom_id": f"{n}", **line, "body": body}) + "\n" for n, body in enumerate(bodies))
    uploaded = client.post("/v1/files", files={"file": ("b.jsonl", lines)}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    url = f"/v1/batches/{client.post('/v1/batches', json=asked).json()['id']}"
    wait_for(lambda: client.get(url).json()["status"] == "completed", what="the batch is completed")
    content = client.get(f"/v1/files/{client.get(url).json()['output_file_id']}/content").text
    found = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, content.splitlines())}
    return [[answer.json() for answer in live], [found[f"{n}"] for n in range(len(bodies))]]


def is_near(found: tuple[float, bool], expected: tuple[float, bool], num_tokens: int) -> bool:
    return math.isclose(found[0], expected[0], abs_tol=0.02 * num_tokens) and found[1] == expected[1]


@pytest.mark.parametrize("size", [1, 4])
def test_answers_of_a_multiple_choice_are_as_likely_as_the_models_logits_say(
    client: httpx.Client, tokens_of: Any, likeliness: Any, size: int
) -> None:
    """In requests of one prompt and of several."""
    start = len(tokens_of(CONTEXT))
    prompts = [tokens_of(CONTEXT) + tokens_of(answer) for answer in ANSWERS]
    bodies = [scoring(prompts[at : at + size]) for at in range(0, len(prompts), size)]

    for answers in complete(client, *bodies):
        found = [one for answer in answers for one in read_likeliness(answer, [start] * size)]
        for one, ids in zip(found, prompts, strict=True):
            assert is_near(one, likeliness(ids, start), len(ids) - start)


def test_greedy_continuation_is_found_to_be_greedy(client: httpx.Client, tokens_of: Any, likeliness: Any) -> None:
    context = tokens_of("hello")
    text = client.post("/v1/completions", json=scoring([context]) | {"max_tokens": 6}).json()["choices"][0]["text"]
    ids = tokens_of(text)

    for (answer,) in complete(client, scoring([ids])):
        (found,) = read_likeliness(answer, [len(context)])
        assert found[1]
        assert is_near(found, likeliness(ids, len(context)), len(ids))


def test_rolling_likelihood_of_a_document(client: httpx.Client, tokens_of: Any, likeliness: Any) -> None:
    """Behind a token that stands for nothing before it, as lm-eval puts one there."""
    ids = tokens_of(END_OF_TEXT) + tokens_of(DOCUMENT)

    for (answer,) in complete(client, scoring([ids])):
        (found,) = read_likeliness(answer, [1])
        assert is_near(found, likeliness(ids, 1), len(ids))
        assert answer["usage"]["prompt_tokens"] == len(ids)


def test_texts_are_scored_like_their_tokens(client: httpx.Client, tokens_of: Any, likeliness: Any) -> None:
    """As lm-eval sends them with tokenized_requests=False."""
    ids = tokens_of(CONTEXT + ANSWERS[0])
    for (answer,) in complete(client, scoring([CONTEXT + ANSWERS[0]])):
        (found,) = read_likeliness(answer, [1])
        assert is_near(found, likeliness(ids, 1), len(ids))


def test_text_is_generated_up_to_the_first_stop(client: httpx.Client, tokens_of: Any) -> None:
    as_ids, as_text = generating([tokens_of("hello world")]), generating(["hello world"])
    for answers in complete(client, as_ids, as_text):
        texts = [answer["choices"][0]["text"] for answer in answers]
        assert texts[0] == texts[1]
        assert not {"\n", "e"} & {*texts[0]}


def test_stream_of_a_scored_prompt_adds_up_to_what_is_given_whole(client: httpx.Client, tokens_of: Any) -> None:
    body = scoring([tokens_of(CONTEXT), tokens_of(DOCUMENT)]) | {"max_tokens": 5}
    whole = client.post("/v1/completions", json=body).json()["choices"]

    lines = client.post("/v1/completions", json=body | {"stream": True}).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if line.startswith("data: {")]

    for choice in whole:
        mine = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert "".join(chunk["text"] for chunk in mine) == choice["text"]
        for name in ("tokens", "text_offset"):
            joined = [one for chunk in mine for one in (chunk["logprobs"] or {name: []})[name]]
            assert joined == choice["logprobs"][name]


def test_id_that_the_model_has_not_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json=scoring([[5, 100_000]]))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"
    assert "the token 100000" in answer.json()["error"]["message"]
