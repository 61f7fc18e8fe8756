"""Live completions: a request, its engine and its client."""
