"""One shard, claim to commit. No Celery.

runner.py    claim, read, complete, save, commit
choices.py   a request as sequences, and their results as its choices
examiner.py  a request's tokens, or its error, without the model's weights
"""
