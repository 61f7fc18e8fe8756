"""What `bench.soak` lets loose on a server, and what it watches.

honest.py    clients that do what docs/serving.md says, and check each answer
hostile.py   strangers and a client with a key that attack, one attack after another, as a seed gives them
bombs.py     small files that become large where they are read
meter.py     memory, descriptors and threads of the server's processes
"""
