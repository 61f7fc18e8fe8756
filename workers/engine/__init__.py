"""The completion engine: continuous batching of many sequences in one llama.cpp context.

engine.py     the thread that owns the context; `step()` is schedule, decode, sample, postprocess
scheduler.py  which sequences run, and which of their tokens the next decode computes
kv_cache.py   slots and the KV budget
sequence.py   one prompt being decoded
sampler.py    greedy, temperature, top_p, seeded
text.py       bytes to text, stop strings
model.py      llama.cpp by llama-cpp-python; the only file that imports it
loader.py     settings chosen for the machine, and an Engine made of them
"""
