"""Batcher: a distributed batch completion job runner over llama.cpp.

    import batcher

    job = batcher.run([{"prompt": "The capital of France is"}], "out", model="smollm2-135m")
    job.results().to_pandas()

docs/python.md has more. What is offered here is imported when it is used first.

The rooms, lowest first: a module imports from its own room and from those named before it. submission, manage and
broker know nothing of each other. `workers` lies above broker; api, server and cli import it only where a function
runs.

errors.py        the tree of errors, with exit codes
endings.py       how a process ended, in words
types.py         the nouns that pass between modules
selection.py     which rows of an input a job has
constraints.py   what a completion can be held to, checked by its form
ids.py           what ids and names of models may look like
paths.py         what `~` means in front of a path
words.py         how counts and names stand in what a person reads
machine.py       cores and memory that this process may use
gguf.py          what a model file says of itself
model_kinds.py   model files that complete no text
chat_templates.py templates that are given by name or file
thoughts.py      the marks around the thoughts of models that reason
model_memory.py  the memory that a model takes, by its header
model_files.py   GGUF files: checksums, parts, what their names say
installation.py  what is installed, and the line that installs the rest
startup.py       what a process does before its large imports
heap.py          memory that was freed goes back to the system
rounds.py        things that wait, one of each client after the other
engine_metrics.py  what Prometheus is told of an engine
live.py          what the server and its engines say to each other
models/          which file a model's name means, and where to get it
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

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batcher import errors as errors
    from batcher.api.diff import diff
    from batcher.api.estimating import Estimate, estimate
    from batcher.api.fleet import Worker, drain, workers
    from batcher.api.job import Job
    from batcher.api.jobs import open_job as open  # noqa: A004 (like gzip.open: said with the name of the package)
    from batcher.api.jobs import run, submit
    from batcher.api.results import Results
    from batcher.errors import BatcherError
    from batcher.manage.differences import Diff
    from batcher.manage.finish import Summary
    from batcher.manage.status import JobState, Status

__version__ = "0.1.0"

__all__ = [
    "BatcherError",
    "Diff",
    "Estimate",
    "Job",
    "JobState",
    "Results",
    "Status",
    "Summary",
    "Worker",
    "__version__",
    "diff",
    "drain",
    "errors",
    "estimate",
    "open",
    "run",
    "submit",
    "workers",
]

#: Name -> the module that has it, and how it is called there.
_OFFERED = {
    "BatcherError": ("batcher.errors", "BatcherError"),
    "Diff": ("batcher.manage.differences", "Diff"),
    "Estimate": ("batcher.api.estimating", "Estimate"),
    "Job": ("batcher.api.job", "Job"),
    "JobState": ("batcher.manage.status", "JobState"),
    "Results": ("batcher.api.results", "Results"),
    "Status": ("batcher.manage.status", "Status"),
    "Summary": ("batcher.manage.finish", "Summary"),
    "Worker": ("batcher.api.fleet", "Worker"),
    "diff": ("batcher.api.diff", "diff"),
    "drain": ("batcher.api.fleet", "drain"),
    "estimate": ("batcher.api.estimating", "estimate"),
    "open": ("batcher.api.jobs", "open_job"),
    "run": ("batcher.api.jobs", "run"),
    "submit": ("batcher.api.jobs", "submit"),
    "workers": ("batcher.api.fleet", "workers"),
}


if not TYPE_CHECKING:  # or else any name would be one

    def __getattr__(name: str) -> Any:
        if name == "errors":
            return importlib.import_module("batcher.errors")
        if name not in _OFFERED:
            raise AttributeError(f"module 'batcher' has no attribute {name!r}")
        module, attribute = _OFFERED[name]
        found = globals()[name] = getattr(importlib.import_module(module), attribute)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
