"""What one listing of a job's folder says: which shards have parts, what attempts and chunks there are, who works.

Everybody who follows a job asks for the state of all of it again and again. On a network file system each folder that
is listed is a round trip, and in a bucket it costs money, so there is one listing for all that is asked at a time.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from batcher.jobdir.store import Entry

MANIFEST_NAME = "manifest.json"
CANCELLED_NAME = "CANCELLED"
PAUSED_NAME = "PAUSED"
RESULTS_NAME = "results"
ATTEMPTS_NAME = "attempts"
CHUNKS_NAME = "chunks"
SHARDS_NAME = "shards"
DAMAGED_NAME = "damaged"
EARLIER_NAME = "earlier"
RETRIES_NAME = "retries"
BATCH_NAME = "batch"
WORKERS_NAME = ".workers"
SUCCESS_NAME = "_SUCCESS"

#: Folders of a job that its state can be told without.
_UNASKED = frozenset({SHARDS_NAME, DAMAGED_NAME, BATCH_NAME})

_PART = re.compile(r"^part-(\d{5,})\.parquet$")
_EARLIER = re.compile(r"^part-(\d{5,})-(\d{4,})\.parquet$")
_CLAIM = re.compile(r"^(\d{4,})\.json$")
_END_SUFFIX = ".end.json"
_JOURNAL = re.compile(r"^(\d+)\.journal$")
_RETRY = re.compile(r"^(\d{4,})\.retry\.json$")
_CHUNK = re.compile(r"^(\d{4,})-[0-9a-f]+-(\d{4,})\.parquet$")


@dataclass(frozen=True, slots=True)
class AttemptFiles:
    """The files of a shard's attempts. `last` is the highest number that was claimed, 0 before the first claim.

    `ends` say how attempts ended badly, oldest first; `journals` are by number, and so are `retries`, those that the
    shard's part has answered.
    """

    last: int = 0
    ends: tuple[Path, ...] = ()
    journals: Mapping[int, Path] = field(default_factory=dict)
    retries: Mapping[int, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "AttemptFiles":
        """What the files in the folder of a shard's attempts are."""
        last, ends, journals, retries = 0, [], {}, {}
        for path in paths:
            if match := _CLAIM.match(path.name):
                last = max(last, int(match[1]))
            elif path.name.endswith(_END_SUFFIX):
                ends.append(path)
            elif match := _JOURNAL.match(path.name):
                journals[int(match[1])] = path
            elif match := _RETRY.match(path.name):
                retries[int(match[1])] = path
        return cls(last, tuple(sorted(ends)), journals, retries)


_NO_ATTEMPTS = AttemptFiles()


@dataclass(frozen=True, slots=True, order=True)
class ChunkFile:
    """A chunk; ordered by attempt, then by sequence within it."""

    attempt: int
    sequence: int
    path: Path = field(compare=False)


def chunk_files(paths: Iterable[Path]) -> list[ChunkFile]:
    """The chunks among the files of a shard's folder, in order."""
    matches = ((_CHUNK.match(path.name), path) for path in paths)
    return sorted(ChunkFile(int(match[1]), int(match[2]), path) for match, path in matches if match)


def part_number(name: str) -> int | None:
    """The shard whose part has this name; None for another file."""
    match = _PART.match(name)
    return int(match[1]) if match else None


def retry_number(name: str) -> int | None:
    """The number of the retry whose rows are still to run again by a file of this name; None for another file."""
    match = _CLAIM.match(name)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Listing:
    """A job at a moment, by the names of its files. `workers` are the signs of life of its own workers.

    `parts` are the shards that are committed: they have a part, and it is not to be replaced. `retries` are what rows
    of a shard are to run again, by its number and by theirs; `replaced` has the last retry that a shard has answered.
    """

    exists: bool
    is_cancelled: bool
    is_paused: bool
    is_complete: bool
    parts: frozenset[int]
    attempts_by_shard: Mapping[int, AttemptFiles]
    chunks_by_shard: Mapping[int, tuple[ChunkFile, ...]]
    workers: tuple[Entry, ...]
    retries: Mapping[int, Mapping[int, Path]] = field(default_factory=dict)
    replaced: Mapping[int, int] = field(default_factory=dict)

    @property
    def is_halted(self) -> bool:
        """Cancelled or paused: nobody is to work on the job."""
        return self.is_cancelled or self.is_paused

    def attempts(self, shard: int) -> AttemptFiles:
        return self.attempts_by_shard.get(shard, _NO_ATTEMPTS)

    def chunks(self, shard: int) -> tuple[ChunkFile, ...]:
        """Those of a shard, in order of attempt and sequence; where a retry has opened it, those that came after."""
        found = self.chunks_by_shard.get(shard, ())
        if shard not in self.retries:
            return found
        last = max(self.retries[shard])
        return tuple(chunk for chunk in found if chunk.attempt > last)

    def with_attempts_of(self, earlier: "Listing", shards: Iterable[int]) -> "Listing":
        """The same with the attempts of `shards` as `earlier` has them, which this one may not have listed."""
        kept = {shard: earlier.attempts_by_shard[shard] for shard in shards if shard in earlier.attempts_by_shard}
        return replace(self, attempts_by_shard={**kept, **self.attempts_by_shard}) if kept else self

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Listing":
        """What the files of a job say."""
        names: set[str] = set()
        results: list[str] = []
        workers: list[Entry] = []
        files: dict[str, dict[int, list[Path]]] = {ATTEMPTS_NAME: {}, CHUNKS_NAME: {}, RETRIES_NAME: {}}
        replaced: dict[int, int] = {}
        for entry in entries:
            match entry.parts:
                case (name,):
                    names.add(name)
                case (first, name) if first == RESULTS_NAME:
                    results.append(name)
                case (first, _) if first == WORKERS_NAME:
                    workers.append(entry)
                case (first, name) if first == EARLIER_NAME and (match := _EARLIER.match(name)):
                    replaced[int(match[1])] = max(replaced.get(int(match[1]), 0), int(match[2]))
                case (first, shard, _) if first in files and shard.isdigit():
                    files[first].setdefault(int(shard), []).append(entry.path)
        retries = {
            shard: {number: path for path in paths if (number := retry_number(path.name)) is not None}
            for shard, paths in files[RETRIES_NAME].items()
        }
        parts = {number for name in results if (number := part_number(name)) is not None}
        return cls(
            exists=MANIFEST_NAME in names,
            is_cancelled=CANCELLED_NAME in names,
            is_paused=PAUSED_NAME in names,
            is_complete=SUCCESS_NAME in results,
            parts=frozenset(number for number in parts if not retries.get(number)),
            attempts_by_shard={shard: AttemptFiles.of(paths) for shard, paths in files[ATTEMPTS_NAME].items()},
            chunks_by_shard={shard: tuple(chunk_files(paths)) for shard, paths in files[CHUNKS_NAME].items()},
            workers=tuple(workers),
            retries={shard: found for shard, found in retries.items() if found},
            replaced=replaced,
        )


def is_wanted(parts: tuple[str, ...], *, settled: frozenset[int]) -> bool:
    """Whether a folder of a job tells of its state; not that of the attempts of `settled` shards."""
    match parts:
        case (name,):
            return name not in _UNASKED
        case (first, shard) if first == ATTEMPTS_NAME and shard.isdigit():
            return int(shard) not in settled
    return True
