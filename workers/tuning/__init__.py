"""What `batcher tune` measures and how it searches.

search.py  which settings are tried
trial.py   one measurement, in a process of its own
"""
