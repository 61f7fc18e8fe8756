"""The nouns that pass between modules: frozen, slotted, and free of any import but the standard library.

A *request* is one input row; each of its prompts is decoded as one *sequence* and becomes one *choice*.
"""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

#: Documented defaults of the legacy `POST /v1/completions` API.
DEFAULT_MAX_TOKENS = 16
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 1.0
#: A chat has no documented default: it ends where the model ends it. This bounds the place that it reserves.
DEFAULT_CHAT_MAX_TOKENS = 1024

_MASK_64 = (1 << 64) - 1

#: Priorities of jobs, of which the last is the most urgent; that of a job that has none; and their names.
PRIORITIES, NORMAL = range(10), 5
PRIORITY_NAMES = {"low": PRIORITIES[0], "normal": NORMAL, "urgent": PRIORITIES[-1]}


class FinishReason(StrEnum):
    """Why a choice ended: a stop string or the model's own end (`stop`), `max_tokens` reached (`length`), or a call of
    a function, after which the function's answer is due (`tool_calls`)."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


class Reasoning(StrEnum):
    """What becomes of the thoughts of a model that reasons before it answers, by the marks of its chat template."""

    SPLIT = "split"  # they are told apart from the text
    KEEP = "keep"  # they stay in the text, as the model writes them
    OFF = "off"  # the model is not to think; what it thinks all the same is left out


class RowStatus(StrEnum):
    """The `status` column of a result row."""

    OK = "ok"
    ERROR = "error"


class ErrorCode(StrEnum):
    """The closed taxonomy of why a row has no completion; nothing else may appear in `error_code`."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    MODEL_NOT_FOUND = "model_not_found"
    ENGINE_ERROR = "engine_error"
    WORKER_CRASHED = "worker_crashed"
    TIMEOUT = "timeout"
    TRUNCATED = "truncated"
    INVALID_ANSWER = "invalid_answer"

    @property
    def is_retriable(self) -> bool:
        """Whether the same row could succeed on another attempt (`batcher retry`)."""
        return self not in (ErrorCode.INVALID_REQUEST, ErrorCode.TRUNCATED)


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a request failed: a code of the taxonomy, and a message that names the thing, the value, the remedy.

    `param` is the field that is wrong, where it is one and known.
    """

    code: ErrorCode
    message: str
    param: str | None = None


class ConstraintKind(StrEnum):
    """What the text of a constraint is: a JSON schema, nothing (any JSON object), a JSON array of strings of which the
    completion is one, the same to be scored (the completion is the likeliest, and nothing is drawn), a regular
    expression, or a context-free grammar by Lark or by llama.cpp (GBNF).

    TOOLS is no user's: the grammar, by Lark, that an engine makes of functions which may be called.
    """

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    CHOICE = "choice"
    SCORED_CHOICE = "scored_choice"
    REGEX = "regex"
    LARK = "lark"
    TOOLS = "tools"
    GBNF = "gbnf"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What every completion of a request must be. Made by `batcher.constraints`, so that equal ones have equal texts.

    The order of a schema's properties counts: completions have them in that order.
    """

    kind: ConstraintKind
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """The constraint whose `str` this is."""
        kind, _, own = text.partition(":")
        return cls(ConstraintKind(kind), own)

    def __str__(self) -> str:
        return f"{self.kind}:{self.text}"

    @property
    def name(self) -> str:
        """What messages call it."""
        return "choice" if self.kind is ConstraintKind.SCORED_CHOICE else self.kind.value

    @property
    def labels(self) -> tuple[str, ...]:
        """The texts to choose from; of another kind none."""
        is_choice = self.kind in (ConstraintKind.CHOICE, ConstraintKind.SCORED_CHOICE)
        return tuple(json.loads(self.text)) if is_choice else ()


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that an answer may call; it must call one if `is_required`, and that of `name` if there is one.

    `functions` is the JSON text of an array of objects with name, description and parameters, a JSON schema.
    """

    functions: str
    is_required: bool = False
    name: str = ""

    def list_functions(self) -> list[dict[str, Any]]:
        """The functions as objects."""
        found: list[dict[str, Any]] = json.loads(self.functions)
        return found

    @classmethod
    def parse(cls, text: str) -> "Tools":
        """The tools whose `str` this is."""
        choice, _, functions = text.partition(" ")
        return cls(functions, choice != "auto", choice.removeprefix("=") if choice[:1] == "=" else "")

    def __str__(self) -> str:
        return f"{'=' + self.name if self.name else 'required' if self.is_required else 'auto'} {self.functions}"


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function that an answer calls. Its arguments are JSON text, as far as it goes where `max_tokens` cut it off."""

    name: str
    arguments: str


#: Below this a temperature is greedy: 1/T would overflow a float32.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request is sampled; the documented parameters, with the documented defaults.

    `clips_max_tokens`: where the context has no room for `max_tokens`, they are as many as it has room for.
    `temperature` 0 is greedy. `seed` None means: derive it from the job's seed (see `Request.choice_seed`). Of each
    prompt `best_of` completions are made (None: as many as are wanted) and the `n` likeliest by their tokens are given.
    `echo` puts the prompt in front of the text. `logprobs` None: none; k: of each token its own log-probability and
    those of the k likeliest. `logit_bias` are pairs of a token id and what is added to its logit. `suffix` is what
    comes after the text (fill-in-the-middle).

    What the API does not document and its peers take (vLLM's names and meanings), all off by default: `top_k` 0 keeps
    every token; `min_p` is a share of the likeliest token's probability; `repetition_penalty` 1 changes nothing.
    Before `min_tokens` nothing ends a completion; with `ignore_eos` the model's own end does not. `stop_token_ids` end
    it where they come. `include_stop_str_in_output` leaves a stop string in the text. `bad_words` are never
    generated. For chats: `add_generation_prompt` opens the answer, `continue_final_message` goes on with the last
    message instead, `chat_template_kwargs` is the JSON text of an object of further variables for the template;
    `reasoning` (see `Reasoning`) says what becomes of the model's thoughts.
    `constraint` is what every text must be, whatever is drawn, and `tools` what may be called in its place.
    """

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suffix: str = ""
    clips_max_tokens: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    bad_words: tuple[str, ...] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: str = ""
    reasoning: str = "keep"
    constraint: Constraint | None = None
    tools: Tools | None = None

    @property
    def num_drawn(self) -> int:
        """How many completions are made of a prompt; `n` of them are given."""
        return self.n if self.best_of is None else self.best_of

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken and nothing drawn."""
        return self.temperature < MIN_TEMPERATURE or self.top_k == 1 or self.top_p <= 0.0


class OnTruncation(StrEnum):
    """What becomes of a row with an answer that `max_tokens` cut off."""

    MARK = "mark"  # `finish_reason` says so
    FAIL = "fail"  # it is an error row
    RETRY = "retry"  # it is computed again with twice the max_tokens, once, and then marked


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """Which answers a job does not take as they are, and what becomes of their rows.

    `validator` is a function as "module:function", which is asked of each answer that is not cut off. A row with an
    answer that it refuses, or for which the job's schema or choices have no room, is computed again with other seeds up
    to `retry_invalid` times, and then an error row. Without either, nothing is refused.
    """

    on_truncation: OnTruncation = OnTruncation.MARK
    retry_invalid: int = 0
    validator: str = ""


#: Of a job that takes every answer.
TAKE_ALL = AnswerRules()


@dataclass(frozen=True, slots=True)
class Request:
    """One validated input row.

    `prompts` has one entry for a single prompt and n for an array of n; `is_array` remembers which it was. Of a chat
    (`is_chat`) it has one entry, the JSON text of its messages; of prompts that are token ids (`is_token_ids`) each
    entry is the JSON text of an array of them. `row` counts from 0 over all input files of the job.

    A request is decoded as `num_sequences` sequences. Those of prompt i are numbered from i * `params.num_drawn`; the
    choices that it gives from i * `params.n`.
    """

    row: int
    custom_id: str
    model: str
    prompts: tuple[str, ...]
    is_array: bool
    params: SamplingParams
    is_chat: bool = False
    is_token_ids: bool = False

    @property
    def num_sequences(self) -> int:
        return len(self.prompts) * self.params.num_drawn

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.params.n

    @property
    def scores_prompts(self) -> bool:
        """Whether the log-probabilities of its prompts' tokens are wanted."""
        return self.params.echo and self.params.logprobs is not None

    @property
    def is_echoed_by_engine(self) -> bool:
        """Whether the engine is to put the prompts in front of the texts: only it knows the texts of token ids, and
        what goes along with log-probabilities."""
        return self.params.echo and (self.is_token_ids or self.params.logprobs is not None)

    def choice_seed(self, index: int, *, job_seed: int) -> int:
        """The 32-bit seed of sequence `index`: the same on every attempt, different for every sequence of a job.

        A request's own seed is the seed of its first sequence, and its further ones count up from it.
        """
        if self.params.seed is not None:
            return (self.params.seed + index) & 0xFFFF_FFFF
        return splitmix64(splitmix64(splitmix64(job_seed) ^ self.row) ^ index) & 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a response says of its request that no result row does.

    `num_choices_each` are the choices of each prompt (`n`); of a row that was refused at submit (`is_refused`)
    `error_param` is the field that is wrong. `system_fingerprint` says what computed it, where that is known.
    """

    num_choices_each: int = 1
    is_chat: bool = False
    is_refused: bool = False
    error_param: str | None = None
    system_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one choice.

    `completion_tokens` counts every token sampled but the model's end-of-generation token that ended it: also tokens
    that a stop string cut from the text, and one of `stop_token_ids`. `cached_tokens` are those of the prompt that were
    not computed anew, `reasoning_tokens` those of the completion that are thoughts or marks around them.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def is_copied(self) -> bool:
        """Whether nothing was computed for it: it has the answer of an equal request. Else the prompt's last token is
        computed, whatever else of it was cached."""
        return self.prompt_tokens > 0 and self.cached_tokens == self.prompt_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token by its bytes, its natural log-probability, and the likeliest tokens at its place.

    The first token of a prompt has none: `logprob` is None and `top` empty. The probabilities are the model's own,
    before temperature, top_p, bias and penalties. `top` is sorted, the likeliest first.
    """

    token: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What a choice has gained since the last one: text that no stop string can take back any more, or thoughts.

    `call` is what its call has gained: the name, which comes first and once ("" later), and arguments.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""
    call: FunctionCall | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One completed prompt. `latency_ms` runs from its first prefill to its last token.

    `logprobs` has an entry for each token of the text, if they were asked for; with an echo those of the prompt come
    first, and the token by which the model ended its text last. The first `num_echoed` characters of the text are the
    prompt. Where choices were scored, `label_logprobs` has the
    natural log-probability of each in their order: the sum of its tokens', by the model's own logits. `reasoning` are
    the thoughts before the text, no part of it; None where there were none, or nobody was to tell them apart.
    `call` is the function that it calls, no part of the text either.
    """

    index: int
    text: str
    finish_reason: FinishReason
    usage: Usage
    latency_ms: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    label_logprobs: tuple[float, ...] | None = None
    reasoning: str | None = None
    call: FunctionCall | None = None
    num_echoed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request: all its choices in order of index, or the error that replaced them.

    `id` is the response's id ("cmpl-...", of a chat "chatcmpl-..."); `created` is in Unix seconds. `system_fingerprint`
    says what computed it, where that is known.
    """

    request: Request
    id: str
    created: int
    choices: tuple[Choice, ...] = ()
    error: RowError | None = None
    system_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteServers:
    """Servers of the OpenAI API that compute the same models: the URL of the API of each, and the key for all."""

    urls: tuple[str, ...]
    key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model that servers compute: its name here, and theirs. `context_length`: tokens of a sequence, where they say
    so.
    """

    name: str
    served_name: str
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the user wants an engine to be; None means: choose. `context_length` is in tokens per sequence.

    `memory` are the bytes that a worker's weights and all else of it may take.
    `chat_templates` are pairs of a model's name and the Jinja source that goes before that in its file.
    Without `is_deduplicating` equal requests are decoded each for itself. With `servers` these compute, and of the
    others only the slots matter: the prompts in flight at each server.
    """

    num_slots: int | None = None
    num_threads: int | None = None
    num_gpu_layers: int | None = None
    context_length: int | None = None
    max_batch_tokens: int | None = None
    max_micro_batch_tokens: int | None = None
    memory: int | None = None
    is_deduplicating: bool = True
    chat_templates: tuple[tuple[str, str], ...] = ()
    servers: RemoteServers | None = None


#: An engine that chooses everything for itself.
CHOOSE_ALL = EngineConfig()


@dataclass(frozen=True, slots=True)
class Demand:
    """What an engine is opened for: `num_workers` share the machine, and `num_prompts` are all that there are, none of
    which takes more than `longest_request` tokens with its completion. None: nobody knows what will come.
    """

    num_workers: int = 1
    num_prompts: int | None = None
    longest_request: int | None = None


#: Of one worker, which may get anything.
UNKNOWN_DEMAND = Demand()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine at a moment. Cells are those of the KV cache; totals count from the start of its process.

    `num_running` and `num_waiting` count sequences, of live requests (`num_live_...`) and of batch rows together.
    `num_completion_tokens` are of those that are finished, `num_tokens_in_flight` of those that run. `longest_step_s`
    is the longest that a step took so far.
    """

    num_slots: int
    num_running: int
    num_waiting: int
    num_live_running: int
    num_live_waiting: int
    num_cells: int
    num_cells_used: int
    num_steps: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_completion_tokens: int
    num_preempted: int
    longest_step_s: float
    num_tokens_in_flight: int = 0


def splitmix64(x: int) -> int:
    """One output of the SplitMix64 generator (Steele, Lea, Flood 2014): a bijective 64-bit mixer."""
    x = (x + 0x9E37_79B9_7F4A_7C15) & _MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK_64
    x = ((x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK_64
    return x ^ (x >> 31)
