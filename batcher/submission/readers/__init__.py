"""Input files -> batches of raw rows."""
