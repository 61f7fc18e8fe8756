"""Batcher: a distributed batch completion job runner over llama.cpp.

The rooms, lowest first: a module imports from its own room and from those named before it. submission, manage and
broker know nothing of each other. `workers` lies above broker; api, server and cli import it only where a function
runs.

errors.py        the tree of errors, with exit codes
types.py         the nouns that pass between modules
ids.py           what ids and names of models may look like
machine.py       cores and memory that this process may use
gguf.py          what a model file says of itself
model_files.py   which file a model's name means
installation.py  what is installed, and the line that installs the rest
startup.py       what a process does before its large imports
live.py          what the server and its engines say to each other
arrow/           tables and values of any type
openai/          the API's words: fields, bodies, answers
jobdir/          the truth on disk
submission/      an input becomes a job
manage/          what is done to a job that exists
broker/          the doorbell: Redis, leases, the sweep
api/             the public Python API
server/          HTTP
cli/             the command line
"""

__version__ = "0.1.0"
