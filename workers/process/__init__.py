"""The worker's processes: the parent that supervises, and what the two say to each other."""
