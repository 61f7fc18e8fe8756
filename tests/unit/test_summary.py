"""The proof that ends a job, and the totals written with it."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batcher import storage
from batcher.errors import CorruptFileError, JobError
from batcher.jobdir import JobDir
from batcher.results import read_file, write_file
from batcher.summary import Proof, finalize, read_summary
from tests.unit.job_files import complete_job, failed, make_job, ok, result_table, write_part


def test_complete_job_gets_totals_and_success(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")

    summary = finalize(job)

    assert summary is not None
    assert summary.proof == Proof(rows_in=6, rows_ok=4, rows_error=2)
    assert (summary.num_rows, summary.num_choices, summary.num_parts) == (6, 5, 3)
    assert (summary.prompt_tokens, summary.completion_tokens, summary.cached_tokens) == (25, 15, 4)
    assert summary.finish_reasons == {"length": 5}
    assert summary.error_codes == {"context_length_exceeded": 1, "timeout": 1}
    assert job.is_complete
    assert read_summary(job) == summary


def test_summary_json_has_stable_keys(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    finalize(job)

    written = json.loads(job.summary_path.read_text())

    assert list(written) == [
        "job_id", "proof", "num_rows", "num_ok", "num_errors", "num_choices", "prompt_tokens", "completion_tokens",
        "cached_tokens", "finish_reasons", "error_codes", "started_at", "finished_at", "elapsed_s", "tokens_per_s",
        "num_parts", "models", "results",
    ]  # fmt: skip
    assert written["proof"] == {"rows_in": 6, "rows_ok": 4, "rows_error": 2}
    assert written["models"] == ["tiny"]


def test_job_with_a_missing_part_is_not_finalized(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    write_part(job, 0, [ok(0)])

    assert finalize(job) is None
    assert not job.is_complete
    assert not job.summary_path.exists()


def test_finalize_again_changes_nothing(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    first = finalize(job)
    content = job.summary_path.read_bytes()

    assert finalize(JobDir.open(job.path)) == first
    assert job.summary_path.read_bytes() == content


@pytest.mark.parametrize("lost", ["summary.json", "results/_SUCCESS"])
def test_finalize_completes_what_a_crash_left(tmp_path: Path, lost: str) -> None:
    job = complete_job(tmp_path / "job")
    first = finalize(job)
    (job.path / lost).unlink()

    assert finalize(job) == first
    assert job.is_complete
    assert read_summary(job) == first


def test_part_with_a_missing_row_is_named_and_the_job_not_finished(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 2))
    write_part(job, 0, [ok(0), ok(1)])
    write_part(job, 1, [ok(2)])

    with pytest.raises(JobError, match=r"part-00001\.parquet: holds 1 rows .* the shard has 2; delete the file"):
        finalize(job)
    assert not job.is_complete
    assert not job.summary_path.exists()


def test_rows_that_a_neighbour_part_has_too_many_do_not_make_up_for_missing_ones(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 2))
    write_part(job, 0, [ok(0)])
    write_part(job, 1, [ok(1), ok(2), ok(3)])

    with pytest.raises(JobError, match="part-00000"):
        finalize(job)


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

    with pytest.raises(JobError, match="2 rows went in, 1 ok"):
        finalize(JobDir.open(job.path))


def test_unreadable_part_is_named_with_its_remedy(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])
    job.part_path(0).write_bytes(b"PAR1 torn")

    with pytest.raises(CorruptFileError, match=r"part-00000\.parquet.*delete the file, and `batcher resume"):
        finalize(job)


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


def test_elapsed_runs_from_first_claim_to_last_commit(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
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


def test_clock_of_a_worker_that_runs_ahead_gives_no_negative_time(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    for shard in range(3):
        os.utime(job.part_path(shard), (1_000_000, 1_000_000))

    summary = finalize(job)

    assert summary is not None
    assert (summary.elapsed_s, summary.tokens_per_s) == (0.0, 0.0)
    assert summary.finished_at == datetime.fromtimestamp(1_000_000, UTC)


def test_reading_a_summary_that_is_missing_or_damaged_says_what_to_do(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    with pytest.raises(JobError, match="no summary yet; `batcher status"):
        read_summary(job)
    storage.replace(job.summary_path, b'{"job_id": 3}')
    with pytest.raises(JobError, match=r"summary\.json: damaged; delete it"):
        read_summary(job)


def test_results_are_one_clean_dataset_beside_the_mark(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    finalize(job)

    table = pq.read_table(job.results_dir)

    assert table["row"].to_pylist() == [0, 1, 2, 3, 3, 4, 5]
