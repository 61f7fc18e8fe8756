"""What servers of the OpenAI API say of themselves, each in its own shape, and chats to ask them."""

import json
from typing import Any

from batcher.types import SamplingParams
from tests.support.openai_server import OpenAIServer, completion
from tests.support.remote_engine import GREEDY
from workers.engines.base import SequenceRequest
from workers.engines.remote.dialects import BATCHER, GENERIC, LLAMA_SERVER, OLLAMA, SGLANG, VLLM, Dialect

#: GET /v1/models of each, and Ollama's GET /api/version.
LISTED: dict[str, dict[str, Any]] = {
    VLLM.name: {
        "object": "list",
        "data": [
            {
                "id": "tiny",
                "object": "model",
                "created": 1700000000,
                "owned_by": "vllm",
                "root": "/models/tiny",
                "parent": None,
                "max_model_len": 4096,
                "permission": [{"id": "modelperm-1", "object": "model_permission"}],
            }
        ],
    },
    SGLANG.name: {
        "object": "list",
        "data": [
            {
                "id": "tiny",
                "object": "model",
                "created": 1700000000,
                "owned_by": "sglang",
                "root": "tiny",
                "max_model_len": 4096,
            }
        ],
    },
    LLAMA_SERVER.name: {
        "models": [{"name": "/models/tiny.gguf", "model": "/models/tiny.gguf", "capabilities": ["completion"]}],
        "object": "list",
        "data": [
            {
                "id": "/models/tiny.gguf",
                "aliases": ["/models/tiny.gguf"],
                "tags": [],
                "object": "model",
                "created": 1796053237,
                "owned_by": "llamacpp",
                "meta": {"vocab_type": 2, "n_vocab": 49152, "n_ctx": 1024, "n_ctx_train": 8192, "ftype": "Q4_1"},
            }
        ],
    },
    OLLAMA.name: {
        "object": "list",
        "data": [
            {"id": "tiny", "object": "model", "created": 1700000000, "owned_by": "library"},
            {"id": "other:7b", "object": "model", "created": 1700000000, "owned_by": "somebody"},
        ],
    },
    BATCHER.name: {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "batcher"}]},
    GENERIC.name: {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "organization-owner"}]},
}


def server_of(dialect: Dialect, answer: Any = completion) -> OpenAIServer:
    version = {"version": "0.12.0"} if dialect is OLLAMA else None
    return OpenAIServer(answer, listed=LISTED[dialect.name], version=version)


def chat(params: SamplingParams = GREEDY, text: str = "A") -> SequenceRequest:
    return SequenceRequest((0, 0), json.dumps([{"role": "user", "content": text}]), params, is_chat=True)
