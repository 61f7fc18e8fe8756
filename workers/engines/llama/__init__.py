"""Continuous batching of many sequences in one llama.cpp context.

engine.py     the thread that owns the context; `step()` is schedule, decode, sample, postprocess
scheduler.py  which sequences run, and which of their tokens the next decode computes
step.py       a step as it is planned and carried out
ordering.py   in which order those that wait run
turns.py      live ones by turns of their clients
kv_cache.py   slots, and the tokens whose KV cells each of them holds
trial.py      the first tokens, before any row
spoiled.py    rows for which the model computes no numbers
scores.py     log-probabilities of prompts, beside the KV cells
sequence.py   one prompt being decoded
twins.py      requests that must get the same answer
gate.py       engines side by side, or one request alone
grammars.py   constraints, compiled and followed; the only file that imports llguidance
schemas.py    JSON schemas as they are compiled
numbers.py    numbers of JSON that come to an end
compiling.py  sequences that wait for their constraint to be compiled
masks.py      which tokens constraints allow in a step, found while the model decodes
labels.py     how likely each of some labels is behind a prompt
tools/        functions that an answer may call
prompts.py    a request's prompt and words as tokens
chat.py       the model's chat template
chat_writer.py  writes chats by it, in a process of its own
chat_process.py that process
chat_frames.py  what passes between
echo.py       the prompt in front of its answer
thinking.py   where its thoughts begin and end
sampling/     from logits to tokens to text
binding.py    llama.cpp by llama-cpp-python; the only file that imports it
kernels.py    whether this build's matrix kernels compute what plain ones do
model.py      a model with one context, which decodes batches of tokens
vocabulary.py text to tokens and back
settings.py   slots, threads, batch sizes, context: chosen for model, machine and job, with reasons
loader.py     from a file and settings to an engine
"""
