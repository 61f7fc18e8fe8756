"""The completion engine: continuous batching of many sequences in one llama.cpp context.

engine.py     the thread that owns the context; `step()` is schedule, decode, sample, postprocess
scheduler.py  which sequences run, and which of their tokens the next decode computes
ordering.py   in which order those that wait run
kv_cache.py   slots, and the tokens whose KV cells each of them holds
sequence.py   one prompt being decoded
twins.py      requests that must get the same answer
sampler.py    greedy, temperature, min_p, top_k, top_p, seeded
adjustment.py bias, penalties and bad words (bad_words.py): what a request changes in the logits before that
transcript.py what a request has to know of its tokens one by one
text.py       bytes to text, stop strings
model.py      llama.cpp by llama-cpp-python; the only file that imports it
settings.py   slots, threads, batch sizes, context: chosen for model, machine and job, with reasons
loader.py     from a file and settings to an Engine
"""
