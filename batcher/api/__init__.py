"""The public Python API that `import batcher` offers, made of the functions of the rooms below.

progress.py  how a job proceeds, shown to a person; also for the command line
"""
