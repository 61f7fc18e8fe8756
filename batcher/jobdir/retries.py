"""What retries ask for: rows of a committed shard that are to run again, maybe with other parameters.

    JOB/retries/00007/0002.json                while it is there, shard 7 is open though it has a part
    JOB/attempts/00007/0002.retry.json         the same file once the part holds the new answers

Its number is that of the attempt by which the retry claimed the shard: what attempts up to it left is of before, chunks
of later ones are the new answers. The part stays where it is until `workload` replaces it in one step, so readers of
results/ always see each row once. Answered retries stay, as they say what a row was asked: were the part lost, its rows
would be computed anew with their parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from batcher.errors import CorruptFileError, InvalidBodyError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.results import Counts
from batcher.jobdir.shards import ShardRow, read_shard
from batcher.jobdir.store import Store
from batcher.openai.overrides import override
from batcher.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Retry:
    """Rows of a shard that are to run again, by their number in the input.

    `settings` are the fields of the request that they get, with values as in a body. `kept` is what the other rows of
    the part add up to; `extra_tokens` are those by which a request can become longer than it was.
    """

    number: int
    rows: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    kept: Counts = field(default_factory=Counts)
    extra_tokens: int = 0


_RETRY = TypeAdapter(Retry)


def open_shard(job: JobDir, shard: int, retry: Retry) -> bool:
    """Have the rows run again: with this file the shard is open. Returns False where it is by another of the number."""
    return job.store.create(job.retry_path(shard, retry.number), _RETRY.dump_json(retry), guard=job.check_exists)


def close_shard(job: JobDir, shard: int, numbers: Iterable[int]) -> None:
    """Note that the part holds the answers to these retries. It is no error that somebody else has done so."""
    for number in numbers:
        try:
            job.store.move(job.retry_path(shard, number), job.answered_retry_path(shard, number))
        except FileNotFoundError:
            continue
    job.store.drop_folder(job.retries_dir(shard))


def read_retry(path: Path, *, store: Store = LOCAL) -> Retry:
    """Raises FileNotFoundError where it is gone, CorruptFileError with what to do where it is damaged."""
    try:
        return _RETRY.validate_json(store.read(path))
    except ValidationError as exc:
        raise CorruptFileError(
            f"{path}: damaged; delete it, and the rows keep the answers that they have until `batcher retry` is given "
            "again"
        ) from exc


def apply(retries: Iterable[Retry], rows: Iterable[ShardRow]) -> tuple[ShardRow, ...]:
    """The rows of a shard as retries want them, in order of their numbers. Raises CorruptFileError for what is none."""
    changed = {row.request.row: row for row in rows}
    for one in sorted(retries, key=lambda one: one.number):
        if not one.settings:
            continue
        known: dict[int, SamplingParams] = {}
        for number in one.rows:
            row = changed.get(number)
            if row is None or row.error is not None:
                continue
            # Most rows of a shard share the object.
            params = known.get(id(row.request.params))
            if params is None:
                params = known[id(row.request.params)] = _override(one, row)
            changed[number] = replace(row, request=replace(row.request, params=params))
    return tuple(changed.values())


def asked_rows(job: JobDir, shard: int) -> tuple[ShardRow, ...]:
    """The rows of a shard as they were asked last: by the submit, or by a retry since. Raises StorageError."""
    found = read_shard(job.shard_path(shard), carried=job.manifest.carried, store=job.store)
    answered = job.list_attempts(shard).retries.values()
    return apply((read_retry(path, store=job.store) for path in answered), found.rows)


def _override(retry: Retry, row: ShardRow) -> SamplingParams:
    try:
        return override(row.request.params, retry.settings, is_chat=row.request.is_chat)
    except InvalidBodyError as exc:
        # It was checked when the retry was given.
        raise CorruptFileError(f"retry {retry.number} of row {row.request.row} asks for what can't be: {exc}") from exc


def most_extra_tokens(job: JobDir) -> int:
    """The tokens by which a request can be longer than at submit, by the open retries; 0 for none. One listing."""
    found = 0
    for entry in job.store.list(job.retries_root):
        try:
            found = max(found, read_retry(entry.path, store=job.store).extra_tokens)
        except FileNotFoundError:
            continue  # Answered meanwhile.
    return found
