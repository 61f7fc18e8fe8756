"""From logits to tokens to text.

adjustment.py  bias, penalties and bad words: what a request changes in the logits first
bad_words.py   words that may not come, as tokens
logits.py      what a row of logits must be, and where the highest are
masking.py     the tokens that a constraint leaves
narrowing.py   the few tokens that top_k and min_p leave
sampler.py     greedy, temperature, min_p, top_k, top_p, seeded
logprobs.py    log-probabilities of generated tokens
transcript.py  what a request has to know of its tokens one by one
thoughts.py    thoughts told from text
text.py        bytes to text, stop strings
"""
