"""Celery: the application, its task and messages, and the sweep for whoever waits.

app.py       the application, each setting with its reason; sending
messages.py  what a message may be
transport.py what is taken from the broker, checked
consumer.py  how a worker hears from a broker that comes and goes
tasks.py     the task: a shard is run, its message acked or sent again
draining.py  when a worker that takes no more shards has none left
sweeper.py   sweeping in the background
"""
