"""Files that were whole and are not any more: found, named, never taken for rows, and made anew where that can be."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from batcher.jobdir.sealed import seal
from batcher.submission import planner
from tests.faults.command_lines import SHORT, prompts_of, resume_line, run_line
from tests.support.damage import flip
from tests.support.family import Family, assert_every_row_once, start_worker, submit
from tests.support.submitted import make_options
from tests.support.waiting import wait_for


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def make_foreign(path: Path) -> None:
    """A whole chunk, of a job with other columns."""
    path.write_bytes(seal(read_file(path).append_column("other", pa.nulls(read_file(path).num_rows, pa.int64()))))


def test_damaged_chunks_are_left_out_and_their_rows_computed_again(family: Family, model: Path) -> None:
    """Given chunks as a killed run leaves them, all but one damaged, when resumed, then every row is there once."""
    job = JobDir(family.folder / "out")
    line = run_line(family, model, job, prompts_of(family, 24), *SHORT, "--shard-rows", 4)
    family.run(*line, code=0)
    chunks = []
    for info in job.manifest.shards:
        chunk = job.chunk_path(info.shard, attempt=1, uid="abcd", sequence=1)
        chunk.parent.mkdir(parents=True)
        job.part_path(info.shard).rename(chunk)
        chunks.append(chunk)
    job.success_path.unlink()
    job.summary_path.unlink()
    flip(chunks[0], 0.3)
    flip(chunks[1], 0.9)
    cut(chunks[2])
    chunks[3].write_bytes(b"")
    make_foreign(chunks[4])
    whole = read_file(chunks[5]).to_pylist()

    resumed = family.run(*resume_line(job, model), code=0)

    rows = assert_every_row_once(job, 24)
    assert rows[20:] == whole
    assert {row["attempts"] for row in rows[:20]} == {2}
    for chunk in chunks[:5]:
        assert re.search(rf"{chunk}: .*; its rows are computed again", resumed.stderr)
    assert str(chunks[5]) not in resumed.stderr


def test_damaged_parts_are_named_and_made_anew_by_the_same_command(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT, "--shard-rows", 4)
    family.run(*line, code=0)
    parts = [job.part_path(shard) for shard in range(5)]
    flip(parts[0], 0.3)
    flip(parts[1], 0.9)
    cut(parts[2])
    parts[3].write_bytes(b"")
    damaged = {path.read_bytes() for path in parts[:4]}
    whole = (parts[4].stat().st_ino, parts[4].read_bytes())

    for reading in (("results", job.path, "--json"), ("export", job.path, "-o", family.folder / "x.csv")):
        refused = family.run(*reading, code=3)
        assert f"{parts[0]}: cannot read: the checksum" in refused.stderr
        assert f"`batcher resume {job.path}` moves it aside and computes its rows again" in refused.stderr

    mended = family.run(*line, code=0)

    assert_every_row_once(job, 20)
    assert {path.read_bytes() for path in job.damaged_dir.iterdir()} == damaged, "nothing is thrown away"
    assert (parts[4].stat().st_ino, parts[4].read_bytes()) == whole
    for part in parts[:4]:
        assert re.search(rf"Warning: {part}: .*; moved to .*, its 4 rows are computed again", mended.stderr)
    assert "20 in = 20 ok + 0 error" in mended.stdout


def test_fleet_heals_a_torn_part_by_itself(family: Family, model: Path, redis_url: str) -> None:
    first = start_worker(family, redis_url, model, "first")
    job = submit(family, redis_url, rows=20, shard_rows=5, options=SHORT[:2])
    wait_for(lambda: job.is_complete, what="the job is complete")
    family.kill_all()
    first.wait()
    job.success_path.unlink()
    cut(job.part_path(2))

    second = start_worker(family, redis_url, model, "second", "--lease-ttl", 3)
    wait_for(lambda: job.is_complete, what="the job is complete again")

    rows = assert_every_row_once(job, 20)
    assert {row["worker"] for row in rows[10:15]} == {"second"}
    assert {row["worker"] for row in rows[:10]} == {"first"}
    assert re.search(rf"{job.part_path(2)}: cannot read: .*; moved to {job.damaged_dir}", second.stderr)


def test_changed_manifest_is_refused_by_name(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT)
    planner.submit(job, [str(line[1])], make_options(shard_rows=10))
    changed = json.loads(job.manifest_path.read_text())
    changed["shards"][1]["num_rows"] = 9
    job.manifest_path.write_text(json.dumps(changed))

    for command in (line, ("status", job.path), resume_line(job, model)):
        refused = family.run(*command, code=2)
        assert f"{job.manifest_path}: damaged or changed (" in refused.stderr
        assert "restore it, or submit the input again" in refused.stderr
    assert job.committed_shards() == set()


@pytest.mark.parametrize("what", ["a flipped bit", "another shard's rows"])
def test_damaged_shard_is_refused_by_name(family: Family, model: Path, what: str) -> None:
    job = JobDir(family.folder / "out")
    line = run_line(family, model, job, prompts_of(family, 20), *SHORT)
    planner.submit(job, [str(line[1])], make_options(shard_rows=15))
    if what == "a flipped bit":
        flip(job.shard_path(0), 0.2)
        message = "cannot read: the checksum of its content is wrong; submit the input again"
    else:
        job.shard_path(0).write_bytes(job.shard_path(1).read_bytes())
        message = "holds 5 rows, the manifest says 15; restore the one that was changed, or submit the input again"

    run = family.run(*resume_line(job, model), code=3)

    assert f"{job.shard_path(0)}: {message}" in run.stderr
    assert 0 not in job.committed_shards()
