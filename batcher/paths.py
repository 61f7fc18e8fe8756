"""What a path means that somebody gives (`~` is the home folder, in every place the same), and whose a folder is."""

import os
import stat
import tempfile
from pathlib import Path

from batcher.errors import InputError, StorageError


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


def cache_home() -> Path:
    """Where programs keep what they can make or fetch again: XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def whose(path: Path) -> str:
    """Whose `path` is, or the folder it would be in, and who we are: for those who may not do there what they want."""
    we = f"this is user {os.geteuid()}, group {os.getegid()}"
    for each in (path, *path.parents):
        try:
            found = each.stat()
        except OSError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        return f"{each} is of user {found.st_uid}, group {found.st_gid}, mode {mode:o}, and {we}"
    return we


def temp_folder() -> Path:
    """Where temporary files go. Raises StorageError where there is no place for them."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as exc:
        raise StorageError(
            "no folder for temporary files can be written; set TMPDIR to one, or give a container whose root is "
            "read-only a tmpfs at /tmp (Docker: --tmpfs /tmp; Kubernetes: an emptyDir)"
        ) from exc
