"""Counts with their nouns, as everything that a person reads says them: `1 row`, `1,234 rows`."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`number` with `noun`, which gets an s unless it is one; `plural` is that of a noun with another."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
