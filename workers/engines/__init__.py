"""What completes prompts, and what is measured and known of it.

base.py         what a runner asks of any engine: the one protocol
open.py         makes engines: which kinds there are
pool.py         the engines of a process, loaded when they are wanted
rotation.py     which models are in memory, where there are more than fit: the rule
fingerprint.py  what an engine is, in a few characters
profile.py      what `batcher tune` found
llama/          llama.cpp in this process
remote/         a server behind a URL
"""
