"""A prompts file becomes a job.

readers/       input files -> batches of raw rows
sampling.py    raw rows -> those that a job is to have
rows.py        raw rows -> validated rows
columns.py     columns as the values of fields, ids and templates
template.py    prompts from templates
chats.py       rows that are chats
carried.py     columns that go along to the results
input_columns.py where in the results each column of the input is
custom_ids.py  no custom_id twice
bad_rows.py    a mistake that ruins every row is told
splitter.py    validated rows -> shards
staging.py     the job directory while there is no job in it yet
source.py      inputs, options, and the fingerprint of both
planner.py     all of it, in order: what `batcher submit` does
validation.py  the dry run
"""
