"""The fields that change nothing here, and those that are refused: of OpenAI, vLLM, llama.cpp, SGLang, TGI and others.

A field is harmless if it says how a service should work, store or account for a request, or if it has an effect only
beside a refused one. It is refused if it would change the answer, in text or in what else it holds, and if a guarantee
would be dropped (`cache_salt`).
"""

from batcher.openai.body_field import Of, harmless, refused

#: Fields of chats that are variables of the chat template.
TEMPLATE_FIELDS = ("reasoning_effort", "verbosity", "documents")

_ONLY_WITH_OTHERS = "only another field, which is refused"

HARMLESS = (
    *harmless("who asks", "user", "safety_identifier", "metadata", "request_id", "session_id", "rid"),
    *harmless("keeping the answer", "store"),
    *harmless("order and speed", "service_tier", "priority", "prediction", "stream_interval"),
    *harmless("order and speed", "sse_ping_interval", "stream_reasoning", "backend_sampling"),
    *harmless("caches", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *harmless("caches", "cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "n_discard", "keep_alive"),
    *harmless("caches", "kv_transfer_params", "ec_transfer_params"),
    *harmless("several calls in one answer, of which it has one at most", "parallel_tool_calls"),
    *harmless(_ONLY_WITH_OTHERS, "media_io_kwargs", "mm_processor_kwargs", "return_mm_kwargs"),
    *harmless(_ONLY_WITH_OTHERS, "truncation_side", "spaces_between_special_tokens", "routed_experts_prompt_start"),
    *harmless(_ONLY_WITH_OTHERS, "guided_decoding_backend", "guided_whitespace_pattern"),
    *harmless(_ONLY_WITH_OTHERS, "grammar_lazy", "grammar_triggers", "grammar_type", "preserved_tokens"),
    *harmless(_ONLY_WITH_OTHERS, "xtc_threshold", "mirostat_tau", "mirostat_eta", "dynatemp_exponent"),
    *harmless(_ONLY_WITH_OTHERS, "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
    *harmless(_ONLY_WITH_OTHERS, "adaptive_decay", "post_sampling_probs"),
    *harmless("chat templates", *TEMPLATE_FIELDS, of=Of.TEXT),
)

_NO_SAMPLER = "this sampler is not supported; leave it out"
_NOT_GIVEN = "the answer does not hold that; leave it out"
_IS_FOR_TEXT = "it is for /v1/completions; leave it out"
_IS_FOR_CHATS = "it is for /v1/chat/completions; leave it out"
_THOUGHTS = 'use reasoning: "split", "keep" or "off"'
_THINKING = 'use chat_template_kwargs, such as {"enable_thinking": false}, if the model\'s template has that'

REFUSED = (
    # What the output must look like.
    *refused("use tools", of=Of.CHAT, functions=([],)),
    *refused("use tool_choice", of=Of.CHAT, function_call=("none", "auto")),
    *refused("calls are never left in the text; leave it out", parse_tool_calls=(True,)),
    *refused(_IS_FOR_CHATS, of=Of.TEXT, tools=([],), functions=([],)),
    *refused(_IS_FOR_CHATS, of=Of.TEXT, tool_choice=("none", "auto"), function_call=("none", "auto")),
    *refused('only ["text"] is supported', modalities=(["text"],)),
    *refused("audio is not supported; leave it out", audio=()),
    *refused("there is no web search; leave it out", web_search_options=()),
    *refused("there is no moderation; leave it out", moderation=()),
    *refused("use response_format or structured_outputs", structural_tag=(), regex=(), ebnf=(), format=("",)),
    # How tokens are drawn.
    *refused("use logit_bias", allowed_token_ids=()),
    *refused("use logit_bias, bad_words or the penalties", logits_processors=([],), custom_logit_processor=()),
    *refused(_NO_SAMPLER, typical_p=(1,), tfs_z=(1,), top_a=(0,), top_n_sigma=(-1,), xtc_probability=(0,)),
    *refused(_NO_SAMPLER, mirostat=(0,), dry_multiplier=(0,), dynatemp_range=(0,), adaptive_target=(-1,)),
    *refused(_NO_SAMPLER, min_keep=(0, 1), no_repeat_ngram_size=(0,), penalize_nl=(False,)),
    *refused(_NO_SAMPLER, watermark=(False,), watermarking=(False,), vllm_xargs=({},), custom_params=({},)),
    *refused("the order of samplers is fixed; leave it out", samplers=([],)),
    *refused("the penalty is over all of the prompt and the text; use -1 or leave it out", repeat_last_n=(-1,)),
    *refused("use temperature 0 for the likeliest tokens", do_sample=(True,)),
    *refused("beam search is not supported; leave it out", use_beam_search=(False,), length_penalty=(1,)),
    *refused("beam search is not supported; leave it out", num_beams=(1,), early_stopping=(False,)),
    # Where the text ends.
    *refused("use max_tokens", max_new_tokens=(), max_output_tokens=(), n_predict=(), num_predict=()),
    *refused("use min_tokens", min_new_tokens=(0,)),
    *refused("use stop", stop_sequences=([],), stop_regex=([],)),
    *refused("use include_stop_str_in_output", no_stop_trim=(False,)),
    *refused("repetition does not end a text; leave it out", repetition_detection=()),
    *refused("the server bounds the time of a request; leave it out", t_max_predict_ms=(-1,)),
    # What the prompt is.
    *refused("prompts are never cut; shorten the prompt", truncate_prompt_tokens=(), truncate=()),
    *refused("a prompt is text; use prompt or messages", prompt_embeds=(), image_data=([],), images=([],)),
    *refused("use prompt or messages", inputs=(), input=()),
    *refused("use prompt", of=Of.TEXT, input_prefix=(), input_extra=([],)),
    *refused("use suffix", of=Of.TEXT, input_suffix=()),
    *refused("put it into the prompt or the messages", system=(), system_prompt=()),
    *refused("the model's own template is used; leave it out", chat_template=(), generation_prompt=()),
    *refused("the model says which tokens begin a prompt; leave it out", of=Of.TEXT, add_special_tokens=(True,)),
    *refused("the template says which tokens begin a prompt; leave it out", of=Of.CHAT, add_special_tokens=(False,)),
    *refused("adapters are not supported; leave it out", lora=([],), lora_path=(), adapter_id=()),
    *refused("the caches of a model are shared by all requests; leave it out", cache_salt=()),
    # Reasoning.
    *refused(_THINKING, enable_thinking=(), thinking=(), think=()),
    *refused("thoughts have no bound of their own; use max_tokens", thinking_token_budget=(-1,), thinking_budget=()),
    *refused("thoughts have no bound of their own; use max_tokens", reasoning_budget=(-1,)),
    *refused("thoughts have no bound of their own; use max_tokens", reasoning_budget_tokens=(-1,)),
    *refused(_THOUGHTS, include_reasoning=(True,), separate_reasoning=(True,)),
    *refused(_THOUGHTS, reasoning_format=("auto", "deepseek")),
    # What the answer holds.
    *refused("use n", n_cmpl=(1,), num_return_sequences=(1,)),
    *refused("use seed", random_seed=()),
    *refused("use echo", of=Of.TEXT, return_full_text=(False,)),
    *refused(_NOT_GIVEN, of=Of.CHAT, return_full_text=(False,), prompt_logprobs=(), decoder_input_details=(False,)),
    *refused("use logprobs", n_probs=(0,), logprob_token_ids=(), top_n_tokens=(0,)),
    *refused("use echo with logprobs", of=Of.TEXT, prompt_logprobs=(), decoder_input_details=(False,)),
    *refused("special tokens are never in the text; leave it out", skip_special_tokens=(True,)),
    *refused("tokens are given as text; leave it out", detokenize=(True,), return_tokens_as_token_ids=(False,)),
    *refused("tokens are given as text; leave it out", return_token_ids=(False,), return_token_offsets=(False,)),
    *refused("tokens are given as text; leave it out", return_tokens=(False,)),
    *refused("lines are not indented; leave it out", n_indent=(0,)),
    *refused(_NOT_GIVEN, return_prompt_text=(False,), return_hidden_states=(False,), return_progress=(False,)),
    *refused(_NOT_GIVEN, timings_per_token=(False,), verbose=(False,), details=(False,), response_fields=([],)),
    # What belongs elsewhere.
    *refused("give its fields in the body itself", extra_body=({},), options=({},), sampling_params=({},)),
    *refused(_IS_FOR_TEXT, of=Of.CHAT, prompt=(), best_of=(1,), echo=(False,), suffix=("",)),
    *refused("it is for /v1/chat/completions; use prompt", of=Of.TEXT, messages=()),
    *refused("it is for /v1/chat/completions; use logprobs", of=Of.TEXT, top_logprobs=(0,)),
    *refused(_IS_FOR_CHATS, of=Of.TEXT, add_generation_prompt=(True,), continue_final_message=(False,)),
    *refused(_IS_FOR_CHATS, of=Of.TEXT, chat_template_kwargs=({},), reasoning=("keep",)),
)
