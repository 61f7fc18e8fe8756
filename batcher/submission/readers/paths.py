"""The files that a command names: folders and globs become files, and the names of folders become columns.

A folder stands for the files below it, at any depth, in order of name. As Spark, Hive and pyarrow do it, names that
begin with `_` or `.` are left out (`_SUCCESS`, `_temporary`, `.part-0.crc`), and each folder called `key=value` in a
path, as it was given, is a column of the files below it.
"""

import glob
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from batcher.errors import InputError

#: How the command line and manifests name input that is no file.
STREAM = "-"

_Stream = TypeVar("_Stream")

#: What Hive and Spark write for null in the name of a folder.
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_MAX_INT = 2**63 - 1

COMPRESSED = (".gz", ".zst")
#: What a file in a folder may be called, also with a suffix of `COMPRESSED`, unless it has no suffix at all.
_READABLE = (".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_KINDS = ".parquet, .jsonl, .ndjson, .json, .csv or .tsv, also with .gz or .zst"

_SPREADSHEET = (
    "a spreadsheet is not read; save the sheet as CSV (in Excel: File, Save As, CSV UTF-8), or convert it: "
    """python -c "import pandas; pandas.read_excel({name}).to_parquet('rows.parquet')" (needs pandas and openpyxl)"""
)
_ARROW = (
    'Arrow files are not read; convert it: python -c "import pyarrow.feather as f, pyarrow.parquet as p; '
    """p.write_table(f.read_table({name}), 'rows.parquet')\""""
)
_UNREADABLE = {
    ".zip": "zip is not read; unpack it, or use .gz or .zst",
    ".bz2": "bzip2 is not read; unpack it with bunzip2, or use .gz or .zst",
    ".xz": "xz is not read; unpack it with unxz, or use .gz or .zst",
    ".7z": "7z is not read; unpack it, or use .gz or .zst",
    ".tar": "tar is not read; unpack it and name the files",
    ".tgz": "tar is not read; unpack it and name the files",
    ".xlsx": _SPREADSHEET,
    ".xls": "a spreadsheet is not read; save the sheet as CSV (in Excel: File, Save As, CSV UTF-8)",
    ".ods": "a spreadsheet is not read; save the sheet as CSV",
    ".feather": _ARROW,
    ".arrow": _ARROW,
    ".avro": "Avro is not read; convert it to Parquet or JSONL",
    ".orc": "ORC is not read; convert it to Parquet or JSONL",
}


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read: its path, and the columns that it gives to all of its rows."""

    name: str
    columns: Mapping[str, str | int | None] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The name as text. A path may hold bytes that are no text; they are shown as `\\xff`."""
        return shown_path(self.name)

    @property
    def suffix(self) -> str:
        """What the name ends with, in small letters and without that of a compression: `.csv` of `a.CSV.gz`."""
        return _suffix(self.name)


def shown_path(name: str) -> str:
    """A path as text that can be written as UTF-8, with `\\xff` in place of a byte that is no text."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def expand(inputs: Sequence[str | _Stream], *, own: Path | None = None) -> list[InputFile | _Stream]:
    """The files that `inputs` name: those of a glob, or of a folder, in order of name. What is no name stays as it is.

    Folders that hold jobs are left out below another folder, and so is `own`, the job that is being made.
    Raises InputError for a pattern without a match, a missing file, and a folder with nothing to read or with
    something that can't be read, so before anything is read.
    """
    if not inputs:
        raise InputError("no input: name a Parquet, JSONL or CSV file, a folder of them, or - for standard input")
    names: list[str | _Stream] = []
    for name in inputs:
        if not isinstance(name, str):
            names.append(name)
            continue
        if name == STREAM:
            raise InputError("-: there is no standard input to read; name a file")
        if glob.has_magic(name) and not os.path.lexists(name):
            found = _matches(name)
        elif Path(name).is_dir():
            found = _files_below(Path(name), own)
        else:
            found = [name]
        for path in found:
            _check_file(Path(path))
        # A file of that name is not standard input.
        names.extend(f"./{path}" if path == STREAM else path for path in found)
    return _with_types([InputFile(name, _folder_columns(name)) if isinstance(name, str) else name for name in names])


def is_pipe(name: str) -> bool:
    """Whether a file of `expand` can be read only once."""
    return not Path(name).is_file()


def _suffix(name: str) -> str:
    path = Path(name.lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _matches(pattern: str) -> list[str]:
    """The files that match. As in a folder, `*` stands for no name with `_` in front."""
    # Not Path.glob: it takes no absolute pattern, and matches hidden files.
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207
    parts = Path(pattern).parts
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), 0)
    is_asked_for = any(part.startswith("_") for part in parts[first:])
    matches = sorted(
        match
        for match in found
        if not Path(match).is_dir()
        and (is_asked_for or not any(part.startswith("_") for part in Path(match).parts[first:]))
    )
    if not matches:
        raise InputError(
            f"{shown_path(pattern)}: no file matches the pattern; check it, and quote it if the shell changes it"
        )
    return matches


# -- folders ----------------------------------------------------------------------------------------------------------


def _files_below(folder: Path, own: Path | None) -> list[str]:
    name = shown_path(str(folder))
    if own is not None and own.resolve() == folder.resolve():
        raise InputError(f"{name}: is the input and also where the job would be written; choose another folder for one")
    if _is_job(folder):
        raise InputError(
            f"{name}: is the directory of a job; to take its results as input, name {shlex.quote(f'{name}/results')} "
            "and say which column is the prompt, as in --prompt-column text"
        )
    skipped = frozenset({folder.resolve()}) | (frozenset() if own is None else {own.resolve()})
    paths = sorted(_walk(folder, skipped), key=lambda path: path.parts)
    if not paths:
        raise InputError(
            f"{name}: is a folder without a file to read; name one that has {_KINDS} "
            "(names that begin with _ or . are left out, and so are jobs)"
        )
    readable = [path for path in paths if _is_readable(path)]
    other = next((path for path in paths if path not in set(readable)), None)
    if other is not None:
        pattern = f"{name}/**/*{readable[0].suffix if readable else '.jsonl'}"
        problem = _UNREADABLE.get(other.suffix.lower(), "its name does not say what it holds").partition(";")[0]
        raise InputError(
            f"{shown_path(str(other))}: {problem}; in a folder that is read whole, files are {_KINDS}: move it out, "
            f"put a _ in front of its name, or name the files that you mean, as in {shlex.quote(pattern)}"
        )
    return [str(path) for path in paths]


def _walk(folder: Path, skipped: frozenset[Path]) -> Iterator[Path]:
    """The files below a folder, also behind links; `skipped` are the real paths of folders to leave out."""
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(("_", "."))]
    except OSError as exc:
        raise InputError(f"{shown_path(str(folder))}: cannot be read: {exc.strerror}") from exc
    for path in paths:
        if path.is_dir():
            real = path.resolve()
            if real not in skipped and not _is_job(path):
                # A link to a folder above would lead around for ever.
                yield from _walk(path, skipped | {real})
        elif path.is_file() or not path.exists():
            # One that is not there is a link to nothing, which is an error and not nothing.
            yield path


def _is_job(folder: Path) -> bool:
    """Whether a folder is a job directory, complete or on the way."""
    return (folder / "shards").is_dir() and ((folder / "manifest.json").exists() or (folder / "attempts").is_dir())


def _is_readable(path: Path) -> bool:
    if path.suffix:
        return _suffix(path.name) in _READABLE
    # Hadoop names its parts without a suffix; README and LICENSE have none either.
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return True  # Reading it says what is wrong.
    return head.startswith((b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd")) or head.lstrip().startswith(b"{")


# -- the names of folders as columns ----------------------------------------------------------------------------------


def _folder_columns(name: str) -> dict[str, str | None]:
    columns: dict[str, str | None] = {}
    for part in Path(name).parts[:-1]:
        key, equals, value = part.partition("=")
        if equals and key:
            columns[shown_path(unquote(key))] = None if value == _HIVE_NULL else shown_path(unquote(value))
    return columns


def _with_types(files: Sequence[InputFile | _Stream]) -> list[InputFile | _Stream]:
    """Make a column integers where each of its values in the whole input is one, as pyarrow and Spark do."""
    values: dict[str, list[str]] = {}
    for file in files:
        if not isinstance(file, InputFile):
            continue
        for key, value in file.columns.items():
            values.setdefault(key, []).extend([value] if isinstance(value, str) else [])
    integers = {key for key, texts in values.items() if _are_integers(texts)}
    return [
        replace(file, columns={k: int(v) if k in integers and v is not None else v for k, v in file.columns.items()})
        if isinstance(file, InputFile) and file.columns
        else file
        for file in files
    ]


def _are_integers(texts: Iterable[str]) -> bool:
    return all(re.fullmatch(r"-?[0-9]{1,19}", text) and abs(int(text)) <= _MAX_INT for text in texts)


# -- files ------------------------------------------------------------------------------------------------------------


def _check_file(path: Path) -> None:
    name = shown_path(str(path))
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise InputError(f"{name}: no such file; check the path") from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"{name}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    assert not stat.S_ISDIR(mode), "folders are replaced by their files"
    problem = _UNREADABLE.get(path.suffix.lower())
    if problem is not None:
        raise InputError(f"{name}: {problem.format(name=repr(name))}")
