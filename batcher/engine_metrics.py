"""What Prometheus is told of an engine, by a server and by a worker alike: for each figure of it, name and words."""

#: Attribute of `EngineStats` -> name and help.
ENGINE_GAUGES = {
    "num_slots": ("batcher_slots", "Sequences that are decoded at a time"),
    "num_running": ("batcher_sequences_running", "Sequences that hold a slot"),
    "num_waiting": ("batcher_sequences_waiting", "Sequences that wait for a slot"),
    "num_live_running": ("batcher_live_sequences_running", "Sequences of live requests that hold a slot"),
    "num_live_waiting": ("batcher_live_sequences_waiting", "Sequences of live requests that wait for a slot"),
    "num_cells": ("batcher_kv_cells", "Cells of the KV cache"),
    "num_cells_used": ("batcher_kv_cells_used", "Cells of the KV cache that hold a token"),
    "longest_step_s": ("batcher_longest_step_seconds", "Longest step of the engine so far"),
}
ENGINE_COUNTERS = {
    "num_steps": ("batcher_steps", "Steps of the engine"),
    "num_prompt_tokens": ("batcher_prompt_tokens", "Tokens of prompts"),
    "num_cached_tokens": ("batcher_cached_tokens", "Tokens of prompts that were not computed anew"),
    "num_completion_tokens": ("batcher_completion_tokens", "Tokens generated"),
    "num_preempted": ("batcher_preemptions", "Sequences that gave up their slot to a live one"),
}
