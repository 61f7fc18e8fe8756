"""What a path means that somebody gives: `~` is the home folder, in every place the same."""

import os

from batcher.errors import InputError


def expand_home(path: str | os.PathLike[str]) -> str:
    """`path` with the home folder in place of a `~` or `~NAME` in front. Raises InputError for an unknown NAME.

    A name that begins with `~` and is there is that. A `/` at the end stays. What can be no path is an InputError, too.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"a path is of type {type(path).__name__}; give a text or a pathlib.Path")
    given = os.fspath(path)
    if not given or "\0" in given:
        raise InputError(f"{given!r} is no path; name a file or folder ('.' is this one)")
    found = os.path.expanduser(given)  # noqa: PTH111 (Path would lose the / at the end of a pattern)
    first = found.partition("/")[0]
    if first.startswith("~") and not os.path.lexists(first):
        raise InputError(f"{given}: the home folder of {first} is not known; write the path in full, or ./{given}")
    return found
