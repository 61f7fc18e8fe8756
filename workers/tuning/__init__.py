"""What `batcher tune` measures and how it searches."""
