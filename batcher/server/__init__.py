"""The HTTP server: the OpenAI-compatible API over live engines (`batcher.live`) and the jobs of a jobs root.

serve.py    the process: sockets, engines, broker, app, and their order
app.py      the routes, and the layers around them
metrics.py  what Prometheus can ask
census.py   the jobs and workers of a jobs root in numbers
guard/      who may ask for how much, and how failures are answered
live/       completions and chats
routes/     the other routes
batches/    batches and uploaded files, without HTTP
"""
