"""What computes: processes with engines, from a message of the broker to a committed part.

process/  the parent, and how it and its child talk
engines/  what completes prompts
shard/    one shard, claim to commit
tuning/   the search of `batcher tune`
queue/    Celery
estimating/  some seconds of a job, and what they say of the whole
local.py  workers of this machine, watched until the work is done
live/     live requests in the engines' process
child.py  the process with the engines
"""
