"""Whatever chunks any attempts left, whole or not: every row comes out once, from the lowest attempt that has it."""

from dataclasses import dataclass
from pathlib import Path

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.jobdir.results import build_table, join_tables, read_chunks, read_file, result_schema, write_file
from batcher.types import Choice, Completion, ErrorCode, FinishReason, RowError, Usage
from tests.support.job_files import CARRIED, carried_of, make_job, make_request
from tests.support.manual_engine import ManualEngine
from tests.support.shard_bench import Bench
from workers.shard.runner import RunOutcome

NUM_ROWS = 10
SCHEMA = result_schema(CARRIED)
REQUESTS = [make_request(row, *(["a", "b"] if row % 3 == 0 else [f"p{row}"])) for row in range(NUM_ROWS)]


@dataclass(frozen=True)
class Damage:
    """What became of a file: `at` is a place in it, from 0 to 1."""

    kind: str
    at: float

    def do(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        position = int(self.at * (len(data) - 1))
        match self.kind:
            case "flip":
                data[position] ^= 1 << position % 8
            case "cut":
                del data[position:]
            case "hole":
                data[position : position + 64] = b"\xa5" * len(data[position : position + 64])
            case "append":
                data += bytes(data[:position]) or b"\0"
            case "other job's":
                foreign = read_file(path).rename_columns([*SCHEMA.names[:-1], "other"])
                path.unlink()
                write_file(path, foreign)
                return
        path.write_bytes(data)


@dataclass(frozen=True)
class Chunk:
    """A chunk of an attempt: its rows, and what became of it."""

    rows: frozenset[int]
    damage: Damage | None


damages = st.builds(Damage, st.sampled_from(["flip", "cut", "hole", "append", "other job's"]), st.floats(0, 1))
chunks = st.builds(
    Chunk, st.frozensets(st.integers(0, NUM_ROWS - 1), min_size=1), st.one_of(st.none(), st.none(), damages)
)
#: Attempts in order, each with its chunks. They overlap, as those of attempts at one time do.
histories = st.lists(st.lists(chunks, max_size=3), max_size=4)


def completion_of(row: int, attempt: int) -> Completion:
    request = REQUESTS[row]
    if (row + attempt) % 4 == 0:
        return Completion(request, f"cmpl-{row}", 1, error=RowError(ErrorCode.ENGINE_ERROR, f"attempt {attempt}"))
    choices = tuple(
        Choice(index, f"attempt {attempt}", FinishReason.STOP, Usage(1, 1), 1.0)
        for index in range(len(request.prompts))
    )
    return Completion(request, f"cmpl-{row}", 1, choices)


def write_history(bench: Bench, history: list[list[Chunk]]) -> dict[int, int]:
    """Write the chunks of all attempts. Returns the attempt that counts, for each row that a whole chunk has."""
    counting: dict[int, int] = {}
    for written in history:
        attempt = bench.job.claim_attempt(0, worker="w0")
        for sequence, chunk in enumerate(written, start=1):
            rows = sorted(chunk.rows)
            completions = [completion_of(row, attempt) for row in rows]
            path = bench.job.chunk_path(0, attempt=attempt, uid="abcd", sequence=sequence)
            write_file(path, build_table(completions, carried=carried_of(rows), attempt=attempt, worker="w0"))
            if chunk.damage is None:
                counting |= {row: counting.get(row, attempt) for row in rows}
            else:
                chunk.damage.do(path)
    return counting


def fresh_bench(path: Path, client: redis.Redis) -> Bench:
    client.flushall()
    folder = path / str(len(list(path.iterdir())))
    bench = Bench(folder, client)
    bench.job = make_job(folder / "rows", [REQUESTS])
    return bench


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories)
def test_union_of_chunks_has_what_whole_ones_hold_once_from_the_lowest_attempt(
    tmp_path: Path, client: redis.Redis, history: list[list[Chunk]]
) -> None:
    bench = fresh_bench(tmp_path, client)
    counting = write_history(bench, history)

    union = join_tables(read_chunks([chunk.path for chunk in bench.job.chunks(0)], SCHEMA), SCHEMA)

    expected = [
        (row, index, attempt)
        for row, attempt in sorted(counting.items())
        for index in range(max(1, len(completion_of(row, attempt).choices)))
    ]
    assert list(zip(*(union[name].to_pylist() for name in ("row", "index", "attempts")), strict=True)) == expected


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories)
def test_part_has_every_row_once_whatever_earlier_attempts_left(
    tmp_path: Path, client: redis.Redis, history: list[list[Chunk]]
) -> None:
    bench = fresh_bench(tmp_path, client)
    counting = write_history(bench, history)
    engine = ManualEngine()

    outcome = bench.run(engine)

    engine.die()
    assert outcome is RunOutcome.COMMITTED
    assert sorted({request.key[0] for request in engine.seen}) == sorted(set(range(NUM_ROWS)) - counting.keys())
    part = read_file(bench.job.part_path(0))
    assert part.schema.equals(SCHEMA)
    now = len(history) + 1
    expected: list[tuple[int, int, int, str | None, str | None]] = []
    for row in range(NUM_ROWS):
        attempt = counting.get(row, now)
        if attempt == now:
            expected += [(row, index, now, f"<{prompt}>", None) for index, prompt in enumerate(REQUESTS[row].prompts)]
        elif (error := completion_of(row, attempt).error) is not None:
            expected.append((row, 0, attempt, None, error.message))
        else:
            texts = [choice.text for choice in completion_of(row, attempt).choices]
            expected += [(row, index, attempt, text, None) for index, text in enumerate(texts)]
    columns = ("row", "index", "attempts", "text", "error_message")
    assert list(zip(*(part[name].to_pylist() for name in columns), strict=True)) == expected
    assert bench.job.chunks(0) == []
