"""Input files and rows in memory -> batches of raw rows.

files.py          all kinds of files, one after the other
paths.py          folders and globs -> files
bounds.py         what ends the reading of an input, and how large it may become
streams.py        bytes, compressed or not
raw_rows.py       what readers give
json_lines.py     JSONL
csv_files.py      CSV, TSV
parquet_files.py  Parquet
wide_rows.py      batches cut by what their rows take
digests.py        what tells rows from others
memory.py         dicts and tables in memory
"""
