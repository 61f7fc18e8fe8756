"""Batches and uploaded files of a jobs root, without HTTP.

service.py   what the API asks of batches
requests.py  what a client may ask for a batch: window, metadata
keeper.py    what carries batches on, beside the event loop
intake.py    an uploaded file becomes a job
intakes.py   several at once, in turns
records.py   what a batch is on disk, beside its job's files
states.py    the state of batches, from files alone
outputs.py   output and error files, made when first asked for
uploads.py   the uploaded files
"""
