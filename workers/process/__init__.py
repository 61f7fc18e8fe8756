"""The worker's processes: the parent that supervises, and what the two say to each other.

supervisor.py   the parent: starts the child, hears from it, restarts it
launch.py       the child is started, with a pipe for what it says on stderr
events.py       what parent and child say to each other
logs.py         the log of a worker, and how a parent takes it into its own
trials.py       something is measured in a process of its own, which answers once
lines.py        dataclasses as lines of JSON
stall.py        when an engine that makes no step is given up
load.py         how loaded the engines are: slots, tokens, their rate
loading.py      what a death while a model was loaded means
memory.py       whether the kernel killed for lack of memory
figures.py      what a supervisor tells of its worker in numbers
metrics.py      these numbers, for Prometheus
beacon.py       the worker's sign of life
"""
