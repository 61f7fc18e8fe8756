"""One shard, claim to commit. No Celery.

runner.py    claim, read, complete, save, commit
context.py   what all shards of a worker share
choices.py   a request as sequences, and their results as its choices
tries.py     answers that a job does not take, and their rows' next try
progress.py  how many tokens the attempts under way have made
tally.py     what one run has saved, for the log
validators.py  functions of the user's that are asked of answers
examiner.py  a request's tokens, or its error, without the model's weights
"""
