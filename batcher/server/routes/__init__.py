"""The routes beside completions."""
