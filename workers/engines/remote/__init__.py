"""An engine behind a URL: a server of the OpenAI API computes, whichever it is (vLLM, SGLang, llama-server, Ollama).

engine.py     the engine: what waits, what is under way, and what becomes of it
flight.py     one request on its way: sent, answered, or sent again
server.py     one server: its connections, whether it is there, how much it takes
window.py     how many prompts are in flight at a server
bodies.py     a sequence becomes the body of an HTTP request
constraints.py  what every text must be, in each server's words
answers.py    the body of an answer becomes choices
streams.py    an answer that comes in pieces becomes a choice
failures.py   why there is no answer, by who is to blame
dialects.py   what servers of the same API differ in
catalog.py    what a server says of itself and its models
"""
