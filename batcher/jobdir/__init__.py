"""The truth on disk: what a job is, kept in immutable files.

store.py       what is asked of any place where files are kept: the one protocol
local_store.py files in folders; create if absent
sealed.py      Parquet files that show whether they are whole
listing.py     what one listing of a job says
manifest.py    a job as it was submitted
folder.py      the paths and records of one job
root.py        the jobs of a jobs root, and which folder a job id means
shards.py      shard files: validated requests
results.py     chunks and parts: finished rows
optional_columns.py  result columns that only some jobs have
refused.py     the parts of refused rows
retries.py     what retries ask for: rows that run again
workload.py    what an attempt has to do, and how it commits that
attempts.py    what an attempt leaves for those after it
verdict.py     what crashes mean for the next attempt: suspects, rows set aside
standing.py    where a job stands among others
sending.py     what is asked of a broker
scope.py       whose queues are whose at a broker
lock.py        one command at a time changes what a job is
heartbeats.py  signs of life of workers
drains.py      that a worker is to finish its shards and end
pulse.py       whether workers of this machine live, for little memory
probe.py       whether a folder takes jobs
"""
