"""Who may ask for how much, and how failures are answered.

connections.py  connections that can't be held open for nothing
pool.py         how many connections, and which gives way
heads.py        what RFC 9112 asks of a head
auth.py         whose key is good
origins.py      web pages that may ask (CORS)
parsing.py      large bodies, parsed one at a time
limits.py       how much a request, a client, and all of them, may take
clients.py      who asks, and what each holds
admission.py    requests and their bodies, within these limits
answers.py      every failure as an answer
log_budget.py   how many lines of the log a client can cause
errors.py       the error object
"""
