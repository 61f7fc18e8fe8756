"""An examiner says of each request what the engine does with it: so many tokens of a prompt, or the same error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batcher.types import Request, RowError, SamplingParams
from tests.support.tiny_engine import complete, running
from tests.support.tiny_gguf import write_tiny_gguf
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.settings import context_limit
from workers.shard.choices import sequence_requests
from workers.shard.examiner import Examiner


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[LlamaEngine]:
    with running(tiny, num_slots=2, context_length=200) as engine:
        yield engine


def make(*prompts: str, is_chat: bool = False, is_token_ids: bool = False, **params: Any) -> Request:
    usual: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
    params = usual | params
    return Request(0, "a", "tiny", prompts, len(prompts) > 1, SamplingParams(**params), is_chat, is_token_ids)


def chat(role: str, content: str, **params: Any) -> Request:
    return make(json.dumps([{"role": role, "content": content}]), is_chat=True, **params)


#: Of 256 tokens, to which llama.cpp rounds 200 up.
REQUESTS = [
    make("hello world"),
    make(""),
    make("zq " * 20, "x", n=2),
    make("q" * 255),
    make("q" * 256),
    make("q" * 250, max_tokens=6),
    make("q" * 250, max_tokens=7),
    make("q" * 100_000),
    make("[70, 80, 90]", "[5]", is_token_ids=True),
    make("[70, 99999]", is_token_ids=True),
    make("x", logit_bias=((99_999, 1.0),)),
    make("x", suffix="y"),
    chat("user", "hello"),
    chat("tool", "hello"),
    chat("user", "q" * 200, max_tokens=1024, clips_max_tokens=True),
    chat("user", "q" * 300, max_tokens=1024, clips_max_tokens=True),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_examiner_and_engine_agree(tiny: Path, engine: LlamaEngine, request_: Request) -> None:
    [examined] = Examiner(tiny, limit=context_limit(200, trained=512)).examine([request_])

    results = complete(engine, list(sequence_requests(request_, position=0, job_seed=0, timeout_s=None)))

    errors = [result.error for result in results if result.error is not None]
    if isinstance(examined, RowError):
        assert examined in errors
    else:
        assert errors == []
        num_drawn = request_.params.num_drawn
        prompts = [result.choice.usage.prompt_tokens for result in results[::num_drawn] if result.choice is not None]
        assert examined == tuple(prompts)


def test_model_without_a_chat_template_completes_no_chats(tmp_path: Path) -> None:
    bare = write_tiny_gguf(tmp_path / "bare.gguf", chat_template=None)

    [error] = Examiner(bare, limit=512).examine([chat("user", "hello")])

    assert isinstance(error, RowError)
    assert "the model has no chat template" in error.message
