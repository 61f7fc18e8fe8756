"""Batches and uploaded files of a jobs root, without HTTP."""
