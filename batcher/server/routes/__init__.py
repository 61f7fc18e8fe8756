"""The routes beside completions.

files.py      `/v1/files`
batches.py    `/v1/batches`
models.py     `/v1/models`, `/health`
multipart.py  an upload on its way to the disk
queries.py    what the routes of files and batches share
openapi.py    the OpenAPI document
"""
