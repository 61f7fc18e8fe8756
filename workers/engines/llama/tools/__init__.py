"""Functions that an answer may call: told to the model, held to their schemas, read from its text.

calling.py  all of it for one model
format.py   how its template writes a call
grammar.py  what an answer may be, as a grammar
reader.py   an answer as it comes, as text and a call
plain.py    functions in plain words, for templates that know none
"""
