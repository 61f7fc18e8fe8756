"""The doorbell: a Redis-protocol broker, the leases kept in it, and the sweep that sends again.

url.py       what a broker's URL may say, and how it may be shown
client.py    the client, and the keys that Batcher has there
ping.py      whether it answers, for little memory
embedded.py  a server of our own, where the user has none
messages.py  what a message is made of
turns.py     the messages of a queue, and in what order they lie there
sender.py    sends the shards of a job, a window at a time
leases.py    who works on a shard now
presence.py  who works there, in whatever jobs folder
sweep.py     shards that nobody works on, found and sent again
"""
