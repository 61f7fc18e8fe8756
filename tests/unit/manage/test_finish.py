"""The proof that ends a job, and the totals written with it."""

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batcher.errors import CorruptFileError, JobError, StorageError
from batcher.jobdir import local_store
from batcher.jobdir.folder import JobDir, write_summary
from batcher.jobdir.lock import exclusive
from batcher.jobdir.results import read_file, write_file
from batcher.manage import retry
from batcher.manage.finish import Proof, finalize, read_part_counts, read_summary
from tests.support.job_files import failed, make_job, ok, result_table, write_chunk, write_part


def test_complete_job_gets_totals_and_success(job: JobDir) -> None:
    summary = finalize(job)

    assert summary is not None
    assert summary.proof == Proof(rows_in=6, rows_ok=4, rows_error=2)
    assert (summary.num_rows, summary.num_choices, summary.num_parts) == (6, 5, 3)
    assert (summary.prompt_tokens, summary.completion_tokens, summary.cached_tokens) == (25, 15, 4)
    assert summary.finish_reasons == {"length": 5}
    assert summary.error_codes == {"context_length_exceeded": 1, "timeout": 1}
    assert job.is_complete
    assert read_summary(job) == summary


def test_summary_json_has_stable_keys(job: JobDir) -> None:
    finalize(job)

    written = json.loads(job.summary_path.read_text())

    assert list(written) == [
        "job_id", "proof", "num_rows", "num_ok", "num_errors", "num_choices", "prompt_tokens", "completion_tokens",
        "cached_tokens", "finish_reasons", "error_codes", "started_at", "finished_at", "elapsed_s", "tokens_per_s",
        "num_parts", "models", "results", "seed", "copied_tokens",
    ]  # fmt: skip
    assert written["proof"] == {"rows_in": 6, "rows_ok": 4, "rows_error": 2}
    assert written["models"] == ["tiny"]


def test_job_with_a_missing_part_is_not_finalized(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    write_part(job, 0, [ok(0)])

    assert finalize(job) is None
    assert not job.is_complete
    assert not job.summary_path.exists()


def test_finalize_again_changes_nothing(job: JobDir) -> None:
    first = finalize(job)
    content = job.summary_path.read_bytes()

    assert finalize(JobDir.open(job.path)) == first
    assert job.summary_path.read_bytes() == content


@pytest.mark.parametrize("lost", ["summary.json", "results/_SUCCESS"])
def test_finalize_completes_what_a_crash_left(job: JobDir, lost: str) -> None:
    first = finalize(job)
    (job.path / lost).unlink()

    assert finalize(job) == first
    assert job.is_complete
    assert read_summary(job) == first


def test_part_with_a_missing_row_is_no_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job(tmp_path / "job", (2, 2))
    write_part(job, 0, [ok(0), ok(1)])
    write_part(job, 1, [ok(2)])

    assert finalize(job) is None

    assert [info.shard for info in job.pending_shards()] == [1]
    assert not job.is_complete
    assert not job.summary_path.exists()
    (message,) = caplog.messages
    assert re.search(r"part-00001\.parquet: holds 1 row .* the shard has 2; moved to .*, its 2 rows are", message)


def test_rows_that_a_neighbour_part_has_too_many_do_not_make_up_for_missing_ones(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 2))
    write_part(job, 0, [ok(0)])
    write_part(job, 1, [ok(1), ok(2), ok(3)])

    assert finalize(job) is None
    assert len(job.pending_shards()) == 2


def test_part_of_no_shard_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])
    write_file(job.part_path(7), result_table([ok(0)]))

    with pytest.raises(JobError, match=r"part-00007\.parquet: the manifest has no such shard.*move the file away"):
        finalize(job)


def test_manifest_that_disagrees_with_its_own_shards_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])
    manifest = replace(job.manifest, num_rows=2)
    job.manifest_path.unlink()
    job.create_manifest(manifest)

    with pytest.raises(JobError, match="num_rows is 2, its shards add up to 1"):
        finalize(JobDir.open(job.path))


def test_part_that_is_torn_is_no_commit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])
    job.part_path(0).write_bytes(b"PAR1 torn")

    with pytest.raises(CorruptFileError, match=r"part-00000\.parquet.*`batcher resume .* moves it aside"):
        read_part_counts(job, 0)
    assert finalize(job) is None

    assert [info.shard for info in job.pending_shards()] == [0]
    assert "its 1 row is computed again" in caplog.text


def test_part_that_cannot_be_read_now_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])
    opened = Path.open

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name.startswith("part-"):
            raise OSError(errno.EIO, "Input/output error")
        return opened(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(StorageError, match=r"part-00000\.parquet: cannot read: Input/output error") as raised:
            finalize(job)

    assert raised.value.is_retriable
    assert finalize(job) is not None


def test_damaged_summary_is_written_again(job: JobDir) -> None:
    first = finalize(job)
    job.summary_path.write_bytes(b"{")

    assert finalize(job) == first
    assert read_summary(job) == first


@pytest.mark.parametrize("halt", [JobDir.cancel, JobDir.pause])
def test_mark_of_a_cancellation_or_pause_that_came_too_late_is_taken_back(
    job: JobDir, halt: Callable[[JobDir], object]
) -> None:
    halt(job)

    assert finalize(job) is not None

    assert not job.is_halted
    assert job.is_complete


def test_success_does_not_outlive_a_part_that_retry_takes_meanwhile(
    job: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_and_write(job: JobDir, data: bytes) -> None:
        retry.retry(job)
        write_summary(job, data)

    monkeypatch.setattr("batcher.manage.finish.write_summary", open_and_write)

    assert finalize(job) is None
    assert not job.is_complete
    assert not job.summary_path.exists()


def leave_traces(job: JobDir) -> list[Path]:
    """What a writer leaves that was killed in the midst of its file."""
    targets = (
        *(job.summary_path, job.success_path, job.part_path(0), job.shard_path(0), job.attempts_dir(0) / "0002.json"),
        job.chunk_path(0, attempt=1, uid="ab", sequence=1),
    )
    temps = [local_store.temp_path(target) for target in targets]
    for temp in temps:
        temp.write_bytes(b"half")
        os.utime(temp, (1, 1))
    return temps


def test_leftovers_of_killed_writers_are_swept_when_the_job_is_complete(job: JobDir) -> None:
    traces = leave_traces(job)
    chunk = write_chunk(job, 1, [ok(2)])

    finalize(job)

    assert [path for path in (*traces, chunk) if path.exists()] == []
    assert len(job.committed_shards()) == 3


def test_nothing_is_swept_under_a_retry(job: JobDir) -> None:
    traces = leave_traces(job)

    with exclusive(job):
        assert finalize(job) is not None

    assert all(path.exists() for path in traces)


def test_claim_that_is_being_written_is_not_swept(job: JobDir) -> None:
    temp = local_store.temp_path(job.attempts_dir(0) / "0002.json")
    temp.write_bytes(b"half")

    finalize(job)

    assert temp.exists()


def test_outputs_of_a_batch_that_are_being_written_are_not_swept(job: JobDir) -> None:
    """Whoever sees that the batch has ended asks for them at once, while what ended it still sweeps."""
    file = job.store.begin(job.batch_dir / "output-1.jsonl")
    file.write(b"{}\n")

    assert finalize(job) is not None

    file.commit()
    assert (job.batch_dir / "output-1.jsonl").read_bytes() == b"{}\n"


def test_proof_reads_footers_only(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0, text="x" * 4000)])
    part = job.part_path(0)
    data = bytearray(part.read_bytes())
    footer_start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[4:footer_start] = bytes(footer_start - 4)
    part.write_bytes(data)
    with pytest.raises(CorruptFileError):
        read_file(part)

    assert finalize(job) is not None


def test_job_of_refused_rows_has_no_start(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,), models=[None])
    write_file(job.part_path(0), result_table([failed(0), failed(1)]))

    summary = finalize(job)

    assert summary is not None
    assert summary.started_at is None
    assert (summary.elapsed_s, summary.tokens_per_s) == (0.0, 0.0)


def test_job_without_rows_is_complete(tmp_path: Path) -> None:
    summary = finalize(make_job(tmp_path / "job", ()))

    assert summary is not None
    assert summary.proof == Proof(0, 0, 0)


def test_elapsed_runs_from_first_claim_to_last_commit(job: JobDir) -> None:
    started = job.first_claim_at()
    assert started is not None
    for shard, seconds in ((0, 5), (1, 30), (2, 10)):
        os.utime(job.part_path(shard), (started.timestamp() + seconds,) * 2)

    summary = finalize(job)

    assert summary is not None
    assert summary.started_at == started
    assert summary.elapsed_s == pytest.approx(30, abs=0.01)
    assert summary.tokens_per_s == pytest.approx(15 / 30, abs=0.01)
    assert summary.finished_at.tzinfo == UTC


def test_clock_of_a_worker_that_runs_ahead_gives_no_negative_time(job: JobDir) -> None:
    for shard in range(3):
        os.utime(job.part_path(shard), (1_000_000, 1_000_000))

    summary = finalize(job)

    assert summary is not None
    assert (summary.elapsed_s, summary.tokens_per_s) == (0.0, 0.0)
    assert summary.finished_at == datetime.fromtimestamp(1_000_000, UTC)


def test_reading_a_summary_that_is_missing_or_damaged_says_what_to_do(job: JobDir) -> None:
    with pytest.raises(JobError, match="no summary yet; `batcher status"):
        read_summary(job)
    local_store.replace(job.summary_path, b'{"job_id": 3}')
    with pytest.raises(JobError, match=r"summary\.json: damaged; delete it"):
        read_summary(job)


def test_results_are_one_clean_dataset_beside_the_mark(job: JobDir) -> None:
    finalize(job)

    table = pq.read_table(job.results_dir)

    assert table["row"].to_pylist() == [0, 1, 2, 3, 3, 4, 5]
