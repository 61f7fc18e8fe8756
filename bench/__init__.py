"""Benchmarks against peers: each script prints one table, both sides measured in the same run."""
