"""The files that a command names: globs, and what is no file that can be read."""

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from batcher.errors import InputError

#: How the command line names standard input.
STDIN = "-"

_UNREADABLE = {
    ".csv": "CSV is not read; convert it to Parquet or JSONL",
    ".tsv": "TSV is not read; convert it to Parquet or JSONL",
    ".zip": "zip is not read; use .gz or .zst",
    ".bz2": "bzip2 is not read; use .gz or .zst",
    ".xz": "xz is not read; use .gz or .zst",
}


def expand(inputs: Sequence[str]) -> list[str]:
    """The files that `inputs` name: globs replaced by their matches in order of name, `-` kept for standard input.

    Raises InputError for a pattern without a match, a missing file or a folder, so before anything is read.
    """
    if not inputs:
        raise InputError("no input: name a Parquet or JSONL file, or - for standard input")
    if inputs.count(STDIN) > 1:
        raise InputError("standard input (-) is named twice; it can be read once")
    files: list[str] = []
    for name in inputs:
        if name != STDIN and glob.has_magic(name) and not os.path.lexists(name):
            # Not Path.glob: it takes no absolute pattern, and matches hidden files.
            found = glob.glob(name, recursive=True)  # noqa: PTH207
            matches = sorted(match for match in found if not Path(match).is_dir())
            if not matches:
                raise InputError(f"{name}: no file matches the pattern; check it, and quote it if the shell changes it")
            files.extend(matches)
        else:
            files.append(name)
    for name in files:
        if name != STDIN:
            _check_file(Path(name), name)
    return files


def is_stream(name: str) -> bool:
    """Whether a file of `expand` can be read only once: standard input, a pipe."""
    return name == STDIN or not Path(name).is_file()


def _check_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise InputError(f"{name}: no such file; check the path") from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"{name}: cannot be read: {exc}") from exc
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a folder; name its files, as in '{name.rstrip('/')}/*.jsonl'")
    suffix = path.suffix.lower()
    if suffix in _UNREADABLE:
        raise InputError(f"{name}: {_UNREADABLE[suffix]}")
