"""Live completions: a request, its engine and its client.

completions.py  `POST /v1/completions` and `/v1/chat/completions`
exchange.py     what is ready is kept until the client takes it
streaming.py    server-sent events
"""
