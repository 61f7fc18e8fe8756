"""How counts, durations and names stand in what a person reads: `1 row`, `3 min 05 s`, a text on one line."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """The number and its noun: `1 row`, `0 rows`, `1,200 rows`. `plural` where that is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def one_line(text: str) -> str:
    """Text on one line, without the control characters by which a completion could drive the terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def percent_text(done: float, total: float) -> str:
    """How much of `total` is done, rounded down: `100%` is said of what is done whole. Of nothing, all is done."""
    return f"{min(100, int(100 * done / total)) if total else 100}%"


def duration_text(seconds: float | None) -> str:
    """Seconds as a person says them: `8.2 s`, `3 min 05 s`, `2 h 10 min`, `3 d 04 h`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def short_duration_text(seconds: float | None) -> str:
    """The same where room is scarce: `8s`, `3m05s`, `2h10m`, `3d04h`; `-` for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
