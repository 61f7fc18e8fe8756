"""Live requests between the server and the process of its engines.

server_end.py  the server's end, and the supervisor of that process
frames.py      what passes between, as lines of JSON
engine_end.py  the engines' end
"""
