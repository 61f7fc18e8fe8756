"""Paths and records of a job directory, and what is said when they are damaged."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batcher.errors import JobError, StorageError
from batcher.jobdir import local_store
from batcher.jobdir.folder import JobDir, write_summary
from batcher.jobdir.manifest import ShardInfo, encode_schema
from batcher.jobdir.root import list_jobs
from tests.support.job_files import CARRIED, make_job, ok, write_chunk, write_part


def test_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 3), models=["a", None])

    manifest = JobDir.open(job.path).manifest

    assert manifest == job.manifest
    assert manifest.carried == CARRIED
    assert manifest.models == ("a",)
    assert (manifest.num_rows, manifest.num_refused, manifest.num_choices) == (5, 3, 5)
    assert manifest.created_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_carried_schema_keeps_types_and_field_metadata() -> None:
    schema = pa.schema(
        [pa.field("t", pa.timestamp("us", "Europe/Berlin"), metadata={"k": "v"}), ("d", pa.decimal128(9, 2))]
    )

    assert pa.ipc.read_schema(pa.py_buffer(__import__("base64").b64decode(encode_schema(schema)))) == schema


def test_models_are_in_order_of_first_appearance(tmp_path: Path) -> None:
    assert make_job(tmp_path / "job", (1, 1, 1), models=["b", "a", "b"]).manifest.models == ("b", "a")


def test_second_submit_does_not_replace_the_manifest(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")

    assert not job.create_manifest(job.manifest)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:100], r"manifest\.json: damaged .*restore it, or submit the input again"),
        (lambda text: "", r"damaged"),
        (lambda text: text.replace('"num_rows"', '"num_rowz"', 1), r"damaged \((num_rows|shards\.0\.num_rows)"),
        (lambda text: text.replace('"version": 3', '"version": 1'), "format version 1, this Batcher reads 2 and 3"),
    ],
)
def test_damaged_manifest_is_named_with_its_remedy(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    job = make_job(tmp_path / "job")
    text = job.manifest_path.read_text()
    job.manifest_path.write_text(damage(text))
    assert job.manifest_path.read_text() != text

    with pytest.raises(JobError, match=message):
        JobDir.open(job.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": 6}, "num_rows is 6, its shards add up to 5"),
        ({"num_refused": 0}, "num_refused is 0, its shards add up to 3"),
        ({"shards": ((1, "tiny", 2, 2), (0, None, 3, 0))}, "its shards are not numbered 0 to 1"),
        ({"shards": ((0, "tiny", 2, 2), (0, None, 3, 0))}, "its shards are not numbered 0 to 1"),
        ({"shards": ((0, "tiny", 0, 0), (1, None, 5, 0))}, "shard 0 cannot have 0 rows"),
        ({"shards": ((0, "tiny", 8, 8), (1, None, -3, 0))}, "shard 1 cannot have -3 rows"),
        ({"shards": ((0, "tiny", 2, 1), (1, None, 3, 0))}, "shard 0 cannot have 2 rows and 1 choices"),
        ({"shards": ((0, "a name", 2, 2), (1, None, 3, 0))}, "shard 0 has the model 'a name'"),
        ({"job_id": "../other"}, "it is of the job '../other'"),
        ({"job_id": "a\n\x1b[2J"}, "it is of the job "),
        ({"carried_ipc": "?"}, "carried_ipc is no schema"),
        ({"carried_ipc": "AAAA"}, "carried_ipc is no schema"),
    ],
)
def test_changed_manifest_is_named_with_what_cannot_be_true(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    job = make_job(tmp_path / "job", (2, 3), models=["tiny", None])
    if "shards" in changes:
        changes = {"shards": tuple(ShardInfo(*values) for values in changes["shards"])}
    changed = replace(job.manifest, **changes)
    job.manifest_path.unlink()
    job.create_manifest(changed)

    with pytest.raises(JobError, match=rf"manifest\.json: damaged or changed \({message}.*restore it, or submit"):
        JobDir.open(job.path)


def test_job_that_was_deleted_or_submitted_anew_is_noticed(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    job.check_exists()
    content = job.manifest_path.read_bytes()

    job.manifest_path.unlink()

    with pytest.raises(StorageError, match="the job was deleted while it was worked on"):
        job.check_exists()
    local_store.create_if_absent(job.manifest_path, content)
    with pytest.raises(StorageError, match="the job was deleted"):
        job.check_exists()
    JobDir(job.path).check_exists()


def test_deleted_job_is_not_brought_back_by_who_writes_to_it(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    _ = job.manifest
    shutil.rmtree(job.path)

    writes: list[Callable[[], object]] = [
        job.cancel,
        job.pause,
        lambda: write_summary(job, b"{}"),
        lambda: job.claim_attempt(0, worker="w"),
    ]
    for write in writes:
        with pytest.raises(StorageError, match="the job was deleted"):
            write()

    assert not job.path.exists()


def test_chunks_of_later_attempts_outlive_a_commit(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3,))
    for attempt in (1, 2, 3):
        write_chunk(job, 0, [ok(0)], attempt=attempt)

    chunks = job.chunks(0)

    job.delete_chunks(0, chunks[:2])
    assert [chunk.attempt for chunk in job.chunks(0)] == [3]

    job.delete_chunks(0, chunks)
    assert not job.chunks_dir(0).exists()
    job.delete_chunks(0, chunks)


def test_folder_without_a_manifest_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()

    assert not JobDir(tmp_path).exists()
    with pytest.raises(JobError, match="no job here"):
        JobDir.open(tmp_path)
    with pytest.raises(JobError, match="no job here"):
        JobDir.open(tmp_path / "nowhere")


def test_manifest_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()

    with pytest.raises(StorageError, match="cannot read"):
        JobDir.open(tmp_path)


def test_attempts_are_numbered_from_one_and_never_twice(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    assert job.num_attempts(0) == 0
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.append(job.claim_attempt(0, worker="w"))) for _ in range(6)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert job.num_attempts(0) == 6
    assert job.num_attempts(1) == 0


def test_attempt_numbers_go_on_after_a_gap(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    for _ in range(3):
        job.claim_attempt(0, worker="w")
    (job.attempts_dir(0) / "0002.json").unlink()

    assert job.claim_attempt(0, worker="w") == 4


def test_job_began_with_its_earliest_first_claim(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    assert job.first_claim_at() is None
    before = datetime.now(UTC)
    job.claim_attempt(1, worker="w")
    first = job.first_claim_at()
    job.claim_attempt(0, worker="w")
    job.claim_attempt(1, worker="w")

    assert first is not None
    assert before <= first <= datetime.now(UTC)
    assert job.first_claim_at() == first


def test_damaged_attempt_record_counts_by_its_name_and_tells_no_time(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    job.claim_attempt(0, worker="w")
    job.claim_attempt(1, worker="w")
    whole = job.first_claim_at()
    (job.attempts_dir(0) / "0001.json").write_bytes(b'{"attempt": 1, "wor')

    assert job.num_attempts(0) == 1
    later = job.first_claim_at()
    assert later is not None
    assert whole is not None
    assert later > whole


def test_chunks_are_in_order_of_attempt_and_sequence(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    for attempt, sequence in ((10, 1), (2, 10), (2, 9), (1, 1)):
        write_chunk(job, 0, [ok(0)], attempt=attempt, sequence=sequence)
    (job.chunks_dir(0) / ".tmp-abc").touch()
    (job.chunks_dir(0) / "notes.parquet").touch()

    assert [(chunk.attempt, chunk.sequence) for chunk in job.chunks(0)] == [(1, 1), (2, 9), (2, 10), (10, 1)]
    job.delete_chunks(0)
    assert job.chunks(0) == []
    job.delete_chunks(0)


def test_only_parts_count_as_commits(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1, 1))
    write_part(job, 1, [ok(1)])
    for name in (".tmp-part-00000.parquet", "part-00002.parquet.bak", "part-2.parquet", "_SUCCESS"):
        (job.results_dir / name).touch()

    assert job.committed_shards() == {1}
    assert [info.shard for info in job.pending_shards()] == [0, 2]


def test_shard_numbers_may_outgrow_five_digits(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    local_store.create_if_absent(job.part_path(123456), b"")

    assert job.committed_shards() == {123456}


def test_cancel_and_unhalt(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")

    assert job.cancel()
    assert job.is_cancelled
    assert not job.cancel()
    job.unhalt()
    assert not job.is_cancelled
    job.unhalt()


def test_jobs_are_listed_by_name_without_other_folders(tmp_path: Path) -> None:
    make_job(tmp_path / "b")
    make_job(tmp_path / "a")
    (tmp_path / "unfinished" / "shards").mkdir(parents=True)
    (tmp_path / "file").touch()

    assert [job.job_id for job in list_jobs(tmp_path)] == ["a", "b"]
    assert list(list_jobs(tmp_path / "nowhere")) == []


def test_summary_is_written_before_the_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job")

    def refuse(target: Path, data: bytes, **_: object) -> bool:
        raise StorageError("disk full")

    monkeypatch.setattr(local_store, "create_if_absent", refuse)
    with pytest.raises(StorageError):
        write_summary(job, b'{"num_rows": 2}')

    assert job.summary_path.read_bytes() == b'{"num_rows": 2}'
    assert not job.is_complete
