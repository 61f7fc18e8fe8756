"""Batcher: a distributed batch completion job runner over llama.cpp."""

__version__ = "0.1.0"
