"""What `batcher estimate` measures, and what it makes of that.

trial.py     some seconds of a job, in a process of its own, whose rows are kept
dealing.py   rows of all shards in random order, a few at a time
meter.py     what the steps of an engine take
lengths.py   how long completions become
forecast.py  how long sequences take, step by step
whole.py     the whole job, from all that
fleet.py     the whole job of a fleet, from what its workers have done before
"""
