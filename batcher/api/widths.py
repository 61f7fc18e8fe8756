"""Texts in the columns of a terminal: how many they take, and how they fit."""

#: What stands for the characters that are left out.
ELLIPSIS = "…"


def width_of(text: str) -> int:
    """The columns that `text` takes on a terminal, where some characters take two, and some none."""
    if text.isascii():
        return len(text)
    # Not on top: hardly a name needs it, and `rich` takes its time.
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int) -> str:
    """`text` with blanks behind it, up to so many columns."""
    return text + " " * (width - width_of(text))


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` columns, without the characters in its middle: `2026113…qxkv`."""
    if width_of(text) <= width:
        return text
    most = max(0, width)
    num_chars = min(most, len(text))
    while width_of(short := _without_middle(text, num_chars)) > most:
        num_chars -= 1
    return short


def _without_middle(text: str, num_chars: int) -> str:
    """So many characters, no more than it has, one of them the ellipsis."""
    num_kept = max(0, num_chars - 1)
    num_last = num_kept // 2
    return (text[: num_kept - num_last] + ELLIPSIS + text[len(text) - num_last :])[:num_chars]
