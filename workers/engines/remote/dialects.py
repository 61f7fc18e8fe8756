"""What servers of the same API differ in: docs/engines.md has the table, with where each fact is from.

A server is known by what it says of its models. One that is none of these gets everything, and what it refuses is
learned (`failures`). What a known one would drop in silence is not sent: the answer would be another than was asked
for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from workers.engines.base import Ability

#: What an engine behind a URL can, whatever computes there: our queue holds back what nobody waits for.
_OF_ALL = Ability.PRIORITY
_OF_PROMPTS = Ability.TOKEN_IDS | Ability.ECHO | Ability.PROMPT_SCORES

#: The fields of a body that OpenAI does not document.
_EXTENSIONS = frozenset(
    (
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
        "include_stop_str_in_output",
        "bad_words",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template_kwargs",
    )
)


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """One kind of server.

    `dropped` are fields that it takes and does nothing with, of prompts and of chats. `names` are its own names of
    fields. `every_token` is the `top_k` that keeps every token. `extras` are fields that go along with others of a
    body: by the field that is asked for, name and value. With `counts_each` it says how many tokens each prompt of an
    array has, and each of its choices, where the field `return_token_ids` asks for them. With `ignores_model` one
    model answers to any name.
    """

    name: str
    abilities: Ability = _OF_ALL | _OF_PROMPTS
    dropped: frozenset[str] = frozenset()
    dropped_of_prompts: frozenset[str] = frozenset()
    dropped_of_chats: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    every_token: int = -1
    extras: Mapping[str, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    counts_each: bool = False
    ignores_model: bool = False

    def drops(self, name: str, *, is_chat: bool) -> bool:
        """Whether the field would be dropped in silence."""
        return name in self.dropped or name in (self.dropped_of_chats if is_chat else self.dropped_of_prompts)


#: llama.cpp's penalties look at the last 64 tokens unless told otherwise. It makes room for as many as it is told.
_ALL_TOKENS = ("repeat_last_n", 65_536)

GENERIC = Dialect("a server of the OpenAI API")
VLLM = Dialect("vLLM", dropped_of_prompts=frozenset({"bad_words", "suffix"}), counts_each=True)
SGLANG = Dialect(
    "SGLang",
    dropped=frozenset({"bad_words", "include_stop_str_in_output", "add_generation_prompt"}),
    dropped_of_prompts=frozenset({"suffix"}),
)
LLAMA_SERVER = Dialect(
    "llama-server",
    abilities=_OF_ALL | Ability.TOKEN_IDS,
    dropped=frozenset({"min_tokens", "stop_token_ids", "include_stop_str_in_output", "bad_words", "suffix"}),
    names=MappingProxyType({"repetition_penalty": "repeat_penalty"}),
    every_token=0,
    extras=MappingProxyType(
        {
            "repetition_penalty": _ALL_TOKENS,
            "presence_penalty": _ALL_TOKENS,
            "frequency_penalty": _ALL_TOKENS,
        }
    ),
    ignores_model=True,
)
OLLAMA = Dialect("Ollama", abilities=_OF_ALL, dropped=_EXTENSIONS | {"logit_bias"})
BATCHER = Dialect("batcher serve", every_token=0)

#: By what a server says owns its models; Ollama's are owned by their publishers.
BY_OWNER: Mapping[str, Dialect] = MappingProxyType(
    {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMA_SERVER, "batcher": BATCHER}
)
ALL = (VLLM, SGLANG, LLAMA_SERVER, OLLAMA, BATCHER, GENERIC)
