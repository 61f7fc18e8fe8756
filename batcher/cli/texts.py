"""What a person reads of a job: its status, the summary at the end, a sample of the results."""

import json
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api.widths import padded, width_of
from batcher.cli.unserved import here_line, is_at_rest, resume_line, unserved_text
from batcher.types import NORMAL, PRIORITY_NAMES
from batcher.words import counted, duration_text, one_line

if TYPE_CHECKING:
    import pyarrow as pa

    from batcher.jobdir.folder import JobDir
    from batcher.jobdir.standing import Standing
    from batcher.manage.finish import Summary
    from batcher.manage.status import Status
    from batcher.submission.validation import ValidationReport
    from batcher.types import SamplingParams

#: Columns of plain text. Legible on any terminal, and in a log.
TEXT_WIDTH = 100

#: Characters of a prompt's tail and of a text that a sample shows.
PROMPT_TAIL, TEXT_HEAD = 160, 600

#: Workers and failed shards that a status names; and the characters of a message in it.
MAX_WORKERS, MAX_FAILURES, MESSAGE_HEAD = 20, 3, 300

#: Parts of a schema without a type of their own that are named.
MAX_PARTS = 10


def status_text(job: "JobDir", status: "Status") -> str:
    """A status in a few lines."""
    from batcher.api.status_texts import done_percent

    in_flight = " with rows in flight" if status.tokens_in_flight else ""
    shards = f"{status.num_committed:,} of {status.num_shards:,} committed"
    if status.num_claimed or status.num_waiting:
        shards += f", {status.num_claimed:,} claimed, {status.num_waiting:,} waiting"
    attempts = f"{status.num_attempts:,}" if status.num_attempts else ""
    if status.num_crashes:
        attempts += f", of which {status.num_crashes:,} crashed"
    lines = {
        "Job": f"{status.job_id}: {status.state.value}"
        + (", but no worker shows a sign of life" if is_at_rest(status) else ""),
        "Rows": f"{status.num_done:,} of {status.num_rows:,} done ({done_percent(status)}{in_flight}): "
        f"{status.num_ok:,} ok, {counted(status.num_errors, 'error')}",
        "Errors": _errors_text(status),
        "Set aside": _set_aside_text(job, status.num_quarantined),
        "Tokens": _tokens_text(status.prompt_tokens, status.cached_tokens, status.completion_tokens),
        "Speed": f"{status.tokens_per_s:,.1f} tokens/s" if status.tokens_per_s else "",
        "ETA": duration_text(status.eta_s) if status.eta_s is not None else "",
        "Priority": priority_text(status.priority) if status.priority != NORMAL else "",
        "Finish by": _finish_by_text(status),
        "Shards": shards,
        "Attempts": attempts,
        "Failures": _failures_text(status),
        "Workers": _workers_text(job, status),
        "Unserved": unserved_text(status, jobs_dir=shown_path(job.path.absolute().parent)),
        "Created": utc_text(status.created_at),
        "Elapsed": duration_text(status.elapsed_s) if status.started_at else "",
        "Where": shown_path(job.path),
    }
    return aligned(lines)


def priority_text(priority: int) -> str:
    """A priority, with the name that it has."""
    names = [name for name, level in PRIORITY_NAMES.items() if level == priority]
    return f"{priority} ({names[0]})" if names else str(priority)


def standing_text(standing: "Standing") -> str:
    """A job's place among others."""
    text = f"Priority {priority_text(standing.level)}"
    return f"{text}." if standing.finish_by is None else f"{text}, to be finished by {utc_text(standing.finish_by)}."


def _finish_by_text(status: "Status") -> str:
    """When the job has to be finished, and whether it will be."""
    if status.finish_by is None:
        return ""
    text = utc_text(status.finish_by)
    if status.late_s is None:
        return text
    if status.is_complete:
        return f"{text}: {'late by' if status.late_s > 0 else 'early by'} {duration_text(abs(status.late_s))}"
    rate = " at this rate" if status.eta_s is not None else ""
    if status.late_s > 0:
        return f"{text}: late by {duration_text(status.late_s)}{rate}"
    return f"{text}: on time, with {duration_text(-status.late_s)} to spare{rate}"


def print_summary(job: "JobDir", summary: "Summary") -> None:
    """Print how a complete job went, where its results are, and how to read them."""
    from batcher.types import ErrorCode

    where = shown_path(job.path)
    pattern = f"{where}/{summary.results}"
    quoted = json.dumps(pattern, ensure_ascii=False)
    reader = f'import duckdb; print(duckdb.read_parquet({quoted}).select("custom_id", "text").limit(5))'
    lines = {
        "Job": f"{summary.job_id}: complete",
        "Rows": f"{summary.proof.rows_in:,} in = {summary.num_ok:,} ok + {summary.num_errors:,} error",
        "Errors": _counts_text(summary.error_codes),
        "Set aside": _set_aside_text(job, summary.error_codes.get(ErrorCode.WORKER_CRASHED.value, 0)),
        "Choices": f"{summary.num_choices:,}" if summary.num_choices != summary.num_ok else "",
        "Tokens": _tokens_text(
            summary.prompt_tokens, summary.cached_tokens, summary.completion_tokens, copied=summary.copied_tokens
        ),
        "Speed": "" if summary.completion_tokens == summary.copied_tokens else f"{summary.tokens_per_s:,.1f} tokens/s",
        "Finish": _counts_text(summary.finish_reasons),
        "Elapsed": duration_text(summary.elapsed_s),
        "Results": f"{pattern} ({counted(summary.num_parts, 'part')})",
        "Read them": f"batcher results {shlex.quote(where)} --limit 5",
        "": f"python -c {shlex.quote(reader)}",
    }
    click.echo(aligned(lines))


def validation_text(report: "ValidationReport", *, tokenizer: str) -> str:
    """What a dry run found; `tokenizer` names the models whose tokens were counted."""
    tokens = ""
    if report.tokens is not None:
        tokens = (
            f"{report.tokens.num_prompt_tokens:,} prompt, at most {report.tokens.num_at_most:,} with completions; "
            f"longest prompt {report.tokens.longest_prompt:,} (by {tokenizer})"
        )
    lines = {
        "Rows": f"{report.num_rows:,} = {report.num_ok:,} ok + {report.num_bad:,} bad",
        "Errors": _counts_text(report.error_codes),
        "Choices": f"{report.num_choices:,}" if report.num_choices != report.num_ok else "",
        "Models": _counts_text(report.models),
        "Prompts": counted(report.num_prompt_chars, "character"),
        "Tokens": tokens,
        "Carried": ", ".join(f"{field.name} ({field.type})" for field in report.carried),
    }
    if not report.bad:
        return aligned(lines)
    title = f"Bad rows, the first {len(report.bad):,}:" if len(report.bad) < report.num_bad else "Bad rows:"
    return "\n".join([aligned(lines), title, *(f"  {one_line(message)}" for message in report.bad)])


def validation_json(report: "ValidationReport") -> str:
    """What a dry run found, as one JSON line; of carried columns the names and types."""
    found = {field.name: getattr(report, field.name) for field in fields(report)}
    found["carried"] = {field.name: str(field.type) for field in report.carried}
    found["tokens"] = asdict(report.tokens) if report.tokens else None
    return json.dumps(found, ensure_ascii=False)


def print_sample(tables: Iterable["pa.Table"], limit: int, *, if_none: str) -> None:
    """Print the first `limit` result rows of tables legibly: the tail of the prompt, then the text or the error."""
    from batcher.manage.finished import json_rows

    rows = (row for table in tables for row in json_rows(table))
    shown = 0
    for row in islice(rows, limit):
        shown += 1
        click.echo(_sample_text(row))
    more = next(rows, None) is not None
    if not shown and not more:
        click.echo(if_none)
    elif more:
        click.echo(more_text(limit))


def more_text(limit: int) -> str:
    """What is said where there are more rows than `limit`."""
    return f"... and more: --limit {max(limit, 1) * 5} shows more of them, --json prints all."


def print_rows(tables: Iterable["pa.Table"], limit: int | None) -> None:
    """Print the rows of tables as JSON lines, whole."""
    from batcher.arrow.values import json_line
    from batcher.manage.finished import json_rows

    for row in islice((row for table in tables for row in json_rows(table)), limit):
        click.echo(json_line(row))


def say_json_parts(params: "SamplingParams") -> None:
    """Say what of `output` will be text, so that nobody looks for fields in it."""
    from batcher.jobdir.optional_columns import json_parts

    parts = json_parts(params)
    for part in parts[:MAX_PARTS]:
        click.echo(f"Note: JSON text in the results: {part}.", err=True)
    if len(parts) > MAX_PARTS:
        click.echo(f"Note: so are {len(parts) - MAX_PARTS:,} more parts of the schema.", err=True)


def table_text(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Left-aligned columns two spaces apart; the last one is never padded."""
    lines = [header, *rows]
    widths = [max(map(width_of, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(padded, line, widths)).rstrip() for line in lines)


def size_text(num_bytes: int) -> str:
    """Bytes as a person says them, in decimal units as disks are sold: `98.0 MB`."""
    size, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def shown_path(path: Path) -> str:
    """`path` relative to the working directory where it lies below it, as one would type it."""
    try:
        return str(path.relative_to(Path.cwd())) if path.is_absolute() else str(path)
    except ValueError:
        return str(path)


def typed_job(job: "JobDir") -> str:
    """The job as one would type it on a command line."""
    return shlex.quote(shown_path(job.path))


def _sample_text(row: dict[str, Any]) -> str:
    name = f"[{row['row']}]" if row["index"] == 0 else f"[{row['row']}.{row['index']}]"
    if row["status"] == "ok":
        detail = f"{one_line(row['custom_id'])} ({row['finish_reason']}, {row['completion_tokens']} tokens)"
        answer = one_line(row["text"])
    else:
        again = f", {row['attempts']} attempts" if (row["attempts"] or 0) > 1 else ""
        detail = f"{one_line(row['custom_id'])} (error {row['error_code']}{again})"
        answer = one_line(row["error_message"])
    prompt = one_line(row["prompt"] or "")
    tail = prompt if len(prompt) <= PROMPT_TAIL else f"...{prompt[-PROMPT_TAIL:]}"
    head = answer if len(answer) <= TEXT_HEAD else f"{answer[:TEXT_HEAD]}..."
    return "\n".join([f"{name} {detail}", *_wrapped(tail, "    "), *_wrapped(head, " -> ")])


def _wrapped(text: str, start: str) -> Iterator[str]:
    indent = " " * len(start)
    yield from textwrap.wrap(text, TEXT_WIDTH, initial_indent=start, subsequent_indent=indent) or [start.rstrip()]


def aligned(lines: dict[str, str]) -> str:
    """`label  value` lines, without those that have nothing to say. A value may have several lines."""
    width = max(len(label) for label, value in lines.items() if value)
    indent = "\n" + " " * (width + 2)
    return "\n".join(
        f"{label.ljust(width)}  {value.replace(chr(10), indent)}" for label, value in lines.items() if value
    )


def _counts_text(counts: dict[str, int]) -> str:
    by_number = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number:,}" for name, number in by_number)


def _errors_text(status: "Status") -> str:
    """How many of each code, and what the first row with it says, where that was read."""
    by_number = sorted(status.error_codes.items(), key=lambda item: (-item[1], item[0]))
    reasons = {code: f": {_head(reason)}" for code, reason in status.error_reasons.items() if reason}
    return ("\n" if reasons else ", ").join(f"{code} {number:,}{reasons.get(code, '')}" for code, number in by_number)


def _set_aside_text(job: "JobDir", number: int) -> str:
    """Of rows that ended the process that computed them: how many, and where to see which; "" for none."""
    if not number:
        return ""
    rows = "1 row that crashed its worker" if number == 1 else f"{number:,} rows that crashed their workers"
    return f"{rows} (worker_crashed); see: batcher results {typed_job(job)} --errors"


def _failures_text(status: "Status") -> str:
    lines = [
        f"shard {failure.shard}: {_head(failure.message)} (attempt {failure.attempt} by {_head(failure.worker)})"
        for failure in status.failures[:MAX_FAILURES]
    ]
    if len(status.failures) > MAX_FAILURES:
        lines.append(f"... and {len(status.failures) - MAX_FAILURES:,} more shards; --json shows them")
    return "\n".join(lines)


def _workers_text(job: "JobDir", status: "Status") -> str:
    """A line for each worker. Of many, those that are not well come first, and the last ones are only counted."""
    from batcher.api.status_texts import load_text, sorted_workers, worker_text
    from batcher.jobdir.heartbeats import Health
    from batcher.manage.status import JobState

    workers = list(status.workers)
    if len(workers) > MAX_WORKERS:
        workers = sorted_workers(workers)
    shown = workers[:MAX_WORKERS]
    names = [_head(worker.name) for worker in shown]
    names = [
        name if names.count(name) == 1 else f"{name} (on {_head(worker.host)}, pid {worker.pid})"
        for name, worker in zip(names, shown, strict=True)
    ]
    width = max(map(len, names), default=0)
    texts = [worker_text(worker) + (f"; {load}" if (load := load_text(worker)) else "") for worker in shown]
    lines = [f"{name.ljust(width)}  {text}" for name, text in zip(names, texts, strict=True)]
    if len(workers) > MAX_WORKERS:
        lines.append(f"... and {len(workers) - MAX_WORKERS:,} more; --json shows them")
    is_going_on = status.state in (JobState.WAITING, JobState.RUNNING) and status.num_committed < status.num_shards
    if is_going_on and all(each.health is Health.GONE for each in workers):
        resume = here_line(resume_line(job, path=shown_path(job.path)))
        lines.append(f"none alive for its models; start a `batcher worker`, or go on here with: {resume}")
    return "\n".join(lines)


def _head(message: str) -> str:
    """A message from a file, on one line and shortened."""
    text = one_line(message)
    return text if len(text) <= MESSAGE_HEAD else f"{text[:MESSAGE_HEAD]}..."


def _tokens_text(prompt: int, cached: int, completion: int, *, copied: int = 0) -> str:
    cached_note = f" ({cached:,} from cache)" if cached else ""
    copied_note = f" ({copied:,} copied from equal rows)" if copied else ""
    return f"{prompt:,} prompt{cached_note} + {completion:,} generated{copied_note}"


def utc_text(moment: datetime) -> str:
    """A moment to the second: `2026-01-31 12:00:05 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
