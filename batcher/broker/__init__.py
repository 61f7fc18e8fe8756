"""The doorbell: a Redis-protocol broker, the leases kept in it, and the sweep that sends again.

url.py       what a broker's URL may say, and how it may be shown
client.py    the client, and the keys that Batcher has there
ping.py      whether it answers, for little memory
embedded.py  a server of our own, where the user has none
leases.py    who works on a shard now
presence.py  who works there, in whatever jobs folder
sweep.py     shards that nobody works on, found and sent again
"""
