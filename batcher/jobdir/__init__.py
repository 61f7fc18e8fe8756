"""The truth on disk: what a job is, kept in immutable files.

store.py       durable files; create if absent
sealed.py      Parquet files that show whether they are whole
folder.py      the paths and records of one job
root.py        which folder a job id means
shards.py      shard files: validated requests
results.py     chunks and parts: finished rows
attempts.py    what an attempt leaves for those after it, and who is blamed
lock.py        one command at a time changes what a job is
heartbeats.py  signs of life of workers
"""
