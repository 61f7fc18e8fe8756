"""Batches over a jobs root: every state from the files alone, whoever reads them."""

import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import HeldShard, WorkerHeartbeat, remove_heartbeat, utc_now, write_heartbeat
from batcher.jobdir.lock import exclusive
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.pulse import WorkerState
from batcher.jobdir.standing import USUAL, Standing, read_standing
from batcher.manage.retry import reopen, select
from batcher.server.batches.records import BatchStatus
from batcher.server.batches.requests import BatchEndedError, BatchRequestError, NoSuchThingError
from tests.support.batch_bench import TIMEOUT, BatchBench, line, lines, output_lines, work, work_partly

GOOD = lines(line("a"), line("b"), line("c"))


def test_batch_goes_from_validating_to_completed(bench: BatchBench) -> None:
    batch = bench.create(GOOD, metadata={"who": "me"})
    assert batch.status is BatchStatus.VALIDATING
    assert bench.num_wakes == 1
    assert batch.expires_at == batch.created_at + 86_400
    assert (batch.metadata, batch.in_progress_at, batch.counts.total) == ({"who": "me"}, None, 0)

    bench.keeper.make_round()
    running = bench.get(batch.id)
    assert running.status is BatchStatus.IN_PROGRESS
    assert (running.counts.total, running.counts.completed) == (3, 0)
    assert bench.sent == [batch.id]

    work(bench.job(batch.id), answer=lambda request: TIMEOUT if request.custom_id == "b" else "text")
    finalizing = bench.get(batch.id)
    assert finalizing.status is BatchStatus.FINALIZING
    assert finalizing.finalizing_at is not None
    assert finalizing.output_file_id is None

    bench.keeper.make_round()
    done = bench.get(batch.id)
    assert done.status is BatchStatus.COMPLETED
    assert (done.counts.total, done.counts.completed, done.counts.failed) == (3, 2, 1)
    assert (done.counts.input_tokens, done.counts.cached_tokens, done.counts.output_tokens) == (10, 2, 6)
    assert done.model == "tiny"
    assert done.created_at <= (done.in_progress_at or 0) <= (done.finalizing_at or 0) <= (done.completed_at or 0)
    assert [one["custom_id"] for one in output_lines(bench, done.output_file_id)] == ["a", "c"]
    assert [one["error"]["code"] for one in output_lines(bench, done.error_file_id)] == ["timeout"]


def test_output_id_is_null_where_no_row_is_of_its_kind(bench: BatchBench) -> None:
    good, bad = bench.started(GOOD), bench.started(GOOD)
    work(bench.job(good.id))
    work(bench.job(bad.id), answer=lambda request: TIMEOUT)
    bench.keeper.make_round()

    assert bench.get(good.id).error_file_id is None
    assert bench.get(bad.id).output_file_id is None
    assert bench.batches.output_file(f"file-errors-{good.id}") is None
    assert bench.batches.output_file(f"file-output-{bad.id}") is None


def test_bad_lines_come_out_in_the_error_file_and_name_the_file_as_the_client_does(bench: BatchBench) -> None:
    batch = bench.started(lines(line("a"), b"not json", line("c", max_tokens=0), line("d", model="other")))
    work(bench.job(batch.id))
    bench.keeper.make_round()

    done = bench.get(batch.id)
    errors = output_lines(bench, done.error_file_id)

    assert (done.counts.completed, done.counts.failed) == (1, 3)
    messages = [one["response"]["body"]["error"]["message"] for one in errors]
    assert [message.split(": ")[0] for message in messages] == ["in.jsonl:2", "in.jsonl:3", "in.jsonl:4"]
    assert [one["response"]["status_code"] for one in errors] == [400, 400, 404]
    assert str(bench.root) not in json.dumps(errors)


def test_batch_of_bad_lines_alone_is_completed_without_a_worker(bench: BatchBench) -> None:
    batch = bench.started(lines(line("a", temperature=9)))

    assert bench.get(batch.id).status is BatchStatus.COMPLETED
    assert bench.sent == []


def test_line_for_another_endpoint_is_an_error_of_that_line(bench: BatchBench) -> None:
    batch = bench.started(lines(line("a"), line("b")), endpoint="/v1/chat/completions")

    done = bench.get(batch.id)
    assert done.counts.failed == 2
    message = output_lines(bench, done.error_file_id)[0]["response"]["body"]["error"]["message"]
    assert 'url is "/v1/completions"' in message


@pytest.mark.parametrize(
    ("content", "code", "line_number"),
    [
        (b"", "empty_file", None),
        (b"\n\n", "invalid_input_file", None),
        (b"just text\nand more\n", "invalid_json_line", 1),
        (b"PAR1xxxx", "invalid_input_file", None),
        (lines(line("a"), b"", line("a")), "duplicate_custom_id", 3),
    ],
)
def test_file_that_is_wrong_as_a_whole_fails_the_batch(
    bench: BatchBench, content: bytes, code: str, line_number: int | None
) -> None:
    batch = bench.started(content)

    assert batch.status is BatchStatus.FAILED
    assert batch.failed_at is not None
    assert (batch.errors[0].code, batch.errors[0].line) == (code, line_number)
    assert str(bench.root) not in batch.errors[0].message
    assert not bench.job(batch.id).exists()
    assert bench.server().batches.get(batch.id) == batch
    bench.keeper.make_round()
    assert bench.sent == []


def test_input_that_is_deleted_before_it_is_read_fails_the_batch(bench: BatchBench) -> None:
    batch = bench.create(GOOD)
    assert bench.batches.is_input_needed(batch.input_file_id)
    bench.files.delete(batch.input_file_id)

    bench.keeper.make_round()

    failed = bench.get(batch.id)
    assert (failed.status, failed.errors[0].param) == (BatchStatus.FAILED, "input_file_id")
    assert not bench.batches.is_input_needed(batch.input_file_id)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "1y"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "366d"}, "completion_window"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"priority": 10}, "priority"),
        ({"finish_by": "2020-01-01"}, "finish_by"),
    ],
)
def test_batch_that_can_not_be_is_refused(bench: BatchBench, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BatchRequestError) as caught:
        bench.create(GOOD, **changes)

    assert caught.value.param == param
    assert bench.batches.list_page().batches == ()


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ({}, USUAL),
        ({"priority": "urgent"}, Standing(9)),
        ({"metadata": {"priority": "8"}}, Standing(8)),
        ({"metadata": {"priority": "P1, see ticket"}}, USUAL),
        ({"metadata": {"priority": "low"}, "priority": 6}, Standing(6)),
        ({"finish_by": "2999-01-01T00:00Z"}, Standing(None, datetime(2999, 1, 1, tzinfo=UTC))),
    ],
)
def test_job_of_a_batch_has_the_place_that_was_asked_for(
    bench: BatchBench, changes: dict[str, Any], standing: Standing
) -> None:
    batch = bench.started(GOOD, **changes)

    assert read_standing(bench.job(batch.id)) == standing


def test_batch_needs_a_file_of_purpose_batch(bench: BatchBench) -> None:
    stored = bench.upload(GOOD, purpose="user_data")
    usual: dict[str, Any] = {"endpoint": "/v1/completions", "completion_window": "24h"}

    with pytest.raises(BatchRequestError, match="purpose"):
        bench.batches.create(input_file_id=stored.id, **usual)
    with pytest.raises(NoSuchThingError):
        bench.batches.create(input_file_id="file-" + "0" * 24, **usual)


def test_batch_that_a_killed_server_left_is_taken_up_by_another(bench: BatchBench) -> None:
    batch = bench.create(GOOD)
    # A submit that was killed: a shard, no manifest.
    shards = bench.job(batch.id).shards_dir
    shards.mkdir()
    (shards / "00000.parquet").write_bytes(b"torn")

    bench.server().keeper.make_round()

    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS
    assert bench.sent == [batch.id]


def test_job_that_a_killed_server_did_not_send_is_sent_by_the_next(bench: BatchBench) -> None:
    batch, worked_on = bench.create(GOOD), bench.create(GOOD)
    bench.server(send=lambda job, shards: 0).keeper.make_round()
    work_partly(bench.job(worked_on.id), 1)
    restarted = bench.server()

    restarted.keeper.make_round()
    restarted.keeper.make_round()

    assert bench.sent == [batch.id]


def test_of_two_servers_one_reads_the_input(bench: BatchBench) -> None:
    batch = bench.create(GOOD)
    job = bench.job(batch.id)
    job.batch_dir.mkdir()

    with exclusive(JobDir(job.batch_dir)):
        bench.keeper.make_round()
        assert bench.get(batch.id).status is BatchStatus.VALIDATING
    bench.keeper.make_round()

    assert bench.sent == [batch.id]


def test_two_servers_at_once_make_one_job_of_a_batch(bench: BatchBench) -> None:
    batch = bench.create(lines(*(line(str(i)) for i in range(2000))))
    threads = [threading.Thread(target=bench.server().keeper.make_round) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # A server that came later may have taken it for one that was left unsent.
    assert set(bench.sent) == {batch.id}
    assert bench.get(batch.id).counts.total == 2000


def test_job_that_the_broker_did_not_take_is_sent_again(bench: BatchBench) -> None:
    calls: list[str] = []

    def send(job: JobDir, shards: Sequence[ShardInfo]) -> int:
        calls.append(job.job_id)
        if len(calls) == 1:
            raise BrokerError("away")
        return len(shards)

    batch = bench.create(GOOD)
    keeper = bench.server(send=send).keeper
    for _ in range(3):
        keeper.make_round()

    assert calls == [batch.id, batch.id]


def test_cancelled_batch_keeps_what_is_finished(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    work_partly(bench.job(batch.id), 2)

    cancelling = bench.batches.cancel(batch.id)
    assert cancelling is not None
    assert cancelling.status is BatchStatus.CANCELLING
    again = bench.batches.cancel(batch.id)
    assert again is not None
    assert again.status is BatchStatus.CANCELLING

    # Noted by a server whose clock is behind.
    bench.clock.now -= 5
    bench.keeper.make_round()
    cancelled = bench.get(batch.id)
    assert cancelled.status is BatchStatus.CANCELLED
    assert (cancelled.cancelling_at or 0) <= (cancelled.cancelled_at or 0)
    assert cancelled.counts.completed == 2
    assert [one["custom_id"] for one in output_lines(bench, cancelled.output_file_id)] == ["a", "b"]
    with pytest.raises(BatchEndedError, match="cancelled already"):
        bench.batches.cancel(batch.id)


@pytest.mark.parametrize("end", ["batch_expired", "batch_cancelled"])
@pytest.mark.parametrize("num_done", [0, 7])
def test_each_request_of_a_batch_that_ended_early_is_in_one_of_its_files(
    bench: BatchBench, end: str, num_done: int
) -> None:
    # Given a batch of three shards: one is done, one is begun, one waits; and a line that is refused
    ids = [f"id-{number}" for number in range(90)]
    content = lines(*(line(name) for name in ids), line("bad", max_tokens=0))
    batch = bench.started(content, completion_window="2m")
    job = JobDir.open(bench.job(batch.id).path)
    assert len([info for info in job.manifest.shards if info.model is not None]) == 3
    work(job, shards=[job.manifest.shards[1]], answer=lambda request: TIMEOUT if request.row == 40 else "text")
    if num_done:
        work_partly(job, num_done)

    # When its time is over, or somebody cancels it
    if end == "batch_expired":
        bench.clock.now += 121
    else:
        bench.batches.cancel(batch.id)
    bench.keeper.make_round()

    # Then every request is found once, and the counts are those of the files
    ended = bench.get(batch.id)
    assert ended.status is (BatchStatus.EXPIRED if end == "batch_expired" else BatchStatus.CANCELLED)
    output = output_lines(bench, ended.output_file_id)
    errors = output_lines(bench, ended.error_file_id)
    assert sorted(one["custom_id"] for one in output + errors) == sorted([*ids, "bad"])
    assert (ended.counts.completed, ended.counts.failed) == (len(output), len(errors))
    assert ended.counts.total == 91
    unrun = [one for one in errors if one["error"] is not None and one["error"]["code"] == end]
    assert {one["custom_id"] for one in unrun} == {*ids[num_done:32], *ids[64:]}
    assert all(one["response"] is None and one["error"]["message"] for one in unrun)
    assert len({one["id"] for one in output + errors}) == 91
    told = {one["custom_id"] for one in errors} - {one["custom_id"] for one in unrun}
    assert told == {"id-40", "bad"}


def test_expired_batch_has_no_files_while_a_worker_still_saves_its_rows(bench: BatchBench) -> None:
    batch = bench.started(GOOD, completion_window="2m")
    now = utc_now()
    held = (HeldShard(batch.id, 0, 1),)
    beat = WorkerHeartbeat("w1", "host", 17, "0.1", ("tiny",), now, now, WorkerState.WORKING, 5.0, 0.0, held)
    write_heartbeat(bench.root, beat)
    bench.make_round_after(121)

    saving = bench.get(batch.id)
    work_partly(bench.job(batch.id), 2)
    remove_heartbeat(bench.root, "w1")
    expired = bench.get(batch.id)

    assert (saving.status, saving.error_file_id, saving.counts.failed) == (BatchStatus.FINALIZING, None, 0)
    assert (expired.status, expired.counts.completed, expired.counts.failed) == (BatchStatus.EXPIRED, 2, 1)
    assert [one["custom_id"] for one in output_lines(bench, expired.error_file_id)] == ["c"]


def test_requests_that_never_ran_leave_the_error_file_when_the_batch_is_taken_up_again(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    bench.batches.cancel(batch.id)
    bench.keeper.make_round()
    cancelled = bench.get(batch.id)
    assert (cancelled.output_file_id, cancelled.counts.failed) == (None, 3)
    assert len(output_lines(bench, cancelled.error_file_id)) == 3

    bench.job(batch.id).unhalt()
    assert bench.get(batch.id).counts.failed == 0
    work(bench.job(batch.id))
    bench.keeper.make_round()

    done = bench.get(batch.id)
    assert (done.status, done.error_file_id, done.counts.completed) == (BatchStatus.COMPLETED, None, 3)


def test_batch_is_cancelling_while_a_worker_holds_its_shard(bench: BatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = bench.started(GOOD)
    held = {"is": True}
    monkeypatch.setattr(bench.reader, "is_held", lambda job: held["is"])
    bench.batches.cancel(batch.id)

    bench.keeper.make_round()
    assert bench.get(batch.id).status is BatchStatus.CANCELLING
    held["is"] = False
    bench.keeper.make_round()

    assert bench.get(batch.id).status is BatchStatus.CANCELLED


def test_batch_that_is_cancelled_before_it_is_read_never_becomes_a_job(bench: BatchBench) -> None:
    batch = bench.create(GOOD)
    bench.batches.cancel(batch.id)
    assert bench.get(batch.id).status is BatchStatus.CANCELLING

    bench.keeper.make_round()

    cancelled = bench.get(batch.id)
    assert (cancelled.status, cancelled.output_file_id, cancelled.counts.total) == (BatchStatus.CANCELLED, None, 0)
    assert not bench.job(batch.id).exists()


def test_batch_that_is_cancelled_while_it_is_read_never_becomes_a_job(bench: BatchBench) -> None:
    batch = bench.create(lines(*(line(str(i), "x" * 1000) for i in range(1000))))

    def cancel_and_name() -> frozenset[str]:
        bench.batches.cancel(batch.id)
        return frozenset({"tiny"})

    bench.server(known_models=cancel_and_name).keeper.make_round()

    assert bench.get(batch.id).status is BatchStatus.CANCELLED
    assert bench.sent == []


def test_server_that_stops_leaves_the_reading_to_the_next(bench: BatchBench) -> None:
    batch = bench.create(GOOD)

    def stop_and_name() -> frozenset[str]:
        stopping.stop()
        return frozenset({"tiny"})

    stopping = bench.server(known_models=stop_and_name).keeper
    stopping.make_round()
    assert bench.get(batch.id).status is BatchStatus.VALIDATING

    bench.keeper.make_round()
    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS


def test_completed_batch_can_not_be_cancelled(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    work(bench.job(batch.id))

    with pytest.raises(BatchEndedError, match="completed"):
        bench.batches.cancel(batch.id)
    assert bench.get(batch.id).status is BatchStatus.COMPLETED


@pytest.mark.parametrize("is_read", [True, False])
def test_batch_expires_when_its_window_is_over(bench: BatchBench, is_read: bool) -> None:
    batch = bench.create(GOOD, completion_window="2m")
    if is_read:
        bench.keeper.make_round()
        work_partly(bench.job(batch.id), 1)
    bench.make_round_after(121)

    expired = bench.get(batch.id)
    assert expired.status is BatchStatus.EXPIRED
    assert expired.expired_at is not None
    assert expired.cancelled_at is None
    assert (expired.output_file_id is not None) is is_read
    with pytest.raises(BatchEndedError):
        bench.batches.cancel(batch.id)


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_batch_that_is_resumed_after_its_window_goes_on(bench: BatchBench, end: str) -> None:
    batch = bench.started(GOOD, completion_window="2m")
    if end == "cancelled":
        bench.batches.cancel(batch.id)
        bench.keeper.make_round()
    bench.make_round_after(121)
    assert bench.get(batch.id).status == end

    bench.job(batch.id).unhalt()
    bench.make_round_after(60)
    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS
    work(bench.job(batch.id))
    bench.keeper.make_round()

    assert bench.get(batch.id).status is BatchStatus.COMPLETED


def test_batch_that_was_finished_in_time_does_not_expire(bench: BatchBench) -> None:
    batch = bench.started(GOOD, completion_window="2m")
    work(bench.job(batch.id))
    bench.make_round_after(121)

    assert bench.get(batch.id).status is BatchStatus.COMPLETED


def test_failed_rows_of_a_completed_batch_can_be_tried_again_after_its_window(bench: BatchBench) -> None:
    batch = bench.started(GOOD, completion_window="2m")
    work(bench.job(batch.id), answer=lambda request: TIMEOUT)
    bench.keeper.make_round()
    bench.make_round_after(121)

    job = JobDir.open(bench.job(batch.id).path)
    reopen(job, select(job), {})
    bench.make_round_after(60)

    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS


def test_cancelled_batch_that_is_resumed_and_cancelled_again_has_new_times(bench: BatchBench) -> None:
    batch = bench.started(GOOD)
    bench.batches.cancel(batch.id)
    bench.keeper.make_round()

    bench.job(batch.id).unhalt()
    resumed = bench.get(batch.id)
    assert (resumed.status, resumed.cancelled_at) == (BatchStatus.IN_PROGRESS, None)
    bench.batches.cancel(batch.id)

    assert bench.get(batch.id).status is BatchStatus.CANCELLING
