"""The API's words: fields, bodies and answers.

fields.py              the table of fields: what each means, and what becomes of it
unsupported_fields.py  fields that change nothing here, and those that are refused
constraint_fields.py   fields that say what a completion must be
tool_fields.py         functions that a model may call
body_field.py          what can be said of a field
parameters.py          the models of rows, bodies and batch lines, made of the fields
request_params.py      what the fields of a request say together
overrides.py           fields that are given anew to rows that run again
row_params.py          the parameters of plain rows
chat_messages.py       the messages of a chat
bodies.py              a row, body or batch line is validated
schema.py              the JSON schemas of bodies, for OpenAPI
answers.py             response objects, from choices or result rows
"""
