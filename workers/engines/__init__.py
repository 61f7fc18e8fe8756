"""What completes prompts, and what is measured and known of it.

fingerprint.py  what an engine is, in a few characters
profile.py      what `batcher tune` found
llama/          llama.cpp in this process
"""
