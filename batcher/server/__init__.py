"""The HTTP server: the OpenAI-compatible API over live engines (`batcher.live`) and the jobs of a jobs root."""
