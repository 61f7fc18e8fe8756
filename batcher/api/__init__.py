"""The public Python API that `import batcher` offers, made of the functions of the rooms below.

engines.py   workers of this machine: which models they serve, and how; also for the command line
progress.py  how a job proceeds, shown to a person; also for the command line
"""
