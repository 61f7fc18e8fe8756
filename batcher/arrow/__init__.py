"""Arrow tables and their values, whatever their types.

tables.py       take, slice and concatenate, also where there is no column
plain.py        columns of any type as ones that a result file can hold
values.py       values as text and as JSON: the rule of docs/values.md
times.py        dates, times and durations of any size as ISO 8601
cells.py        the cells of CSV files as values
conditions.py   what rows are asked for, as in SQL's WHERE
comparing.py    columns of any type compared with literals and with each other
json_schema.py  JSON schemas as Arrow types
json_texts.py   JSON texts as a column of such a type
"""
