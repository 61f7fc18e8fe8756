"""A job's status as the lines of a screen: what it is, a bar, how fast it goes, its errors, its workers.

Widths are in columns of the terminal. A line that is wider than the screen loses what matters least.
"""

from collections.abc import Sequence

from rich.text import Text

from batcher.api.status_texts import STATE_COLOURS, done_percent, load_text, sorted_workers, worker_text
from batcher.api.widths import ELLIPSIS, padded, shortened, width_of
from batcher.jobdir.heartbeats import Health
from batcher.manage.status import Status, WorkerStatus
from batcher.words import counted, one_line, short_duration_text

#: Least columns of a job's id and a model's name, and most of a worker's name.
_LEAST_ID, _LEAST_MODEL, _MOST_NAME = 13, 10, 24
#: Error codes and failures of shards that are told.
_MAX_CODES, _MAX_FAILURES = 4, 2
_GAP = "  "


def screen(status: Status, *, progress: float, width: int, height: int, is_unicode: bool = True) -> list[Text]:
    """The lines, at most `height`, none wider than `width`. `progress`, 0 to 1, is what the bar shows."""
    lines = [_header(status, width), _bar(status, progress, width, is_unicode=is_unicode), _facts(status, width)]
    lines += _troubles(status)
    lines = lines[:height]
    workers = _worker_lines(status.workers, width, num_lines=height - len(lines))
    return [_cut(line, width, is_unicode=is_unicode) for line in (*lines, *workers)]


def _header(status: Status, width: int) -> Text:
    state = status.state.value
    rows = counted(status.num_rows, "row")
    model = ", ".join(status.models[:2]) + (f" +{len(status.models) - 2}" if len(status.models) > 2 else "")
    fixed = len(state) + len(rows) + 2 * len(_GAP)
    room = max(_LEAST_ID, width - fixed)
    job_id = shortened(status.job_id, max(_LEAST_ID, room - len(_GAP) - max(_LEAST_MODEL, width_of(model))))
    model = shortened(model, max(0, room - width_of(job_id) - len(_GAP)))
    parts = [(job_id, "bold"), (model if len(model) >= _LEAST_MODEL or ELLIPSIS not in model else "", "")]
    parts += [(rows, ""), (state, STATE_COLOURS.get(status.state, ""))]
    return Text(_GAP).join(Text(text, style=style) for text, style in parts if text)


def _bar(status: Status, progress: float, width: int, *, is_unicode: bool) -> Text:
    percent = done_percent(status, progress)
    length = max(1, width - len(_GAP) - len("100%"))
    share = 1.0 if status.num_done == status.num_rows else progress
    num_done = min(length, int(share * length))
    done, left = ("━", "─") if is_unicode else ("#", "-")
    colour = "green" if share >= 1.0 else "cyan"
    return Text.assemble((done * num_done, colour), (left * (length - num_done), "dim"), _GAP, percent.rjust(4))


def _facts(status: Status, width: int) -> Text:
    """What is done and how fast, the most important first; the last ones are left out where there is no room."""
    rows = f"{status.num_done:,} of {counted(status.num_rows, 'row')}"
    found = [(rows, "")]
    if status.tokens_per_s:
        found.append((f"{status.tokens_per_s:,.1f} tokens/s", ""))
    if status.eta_s is not None:
        found.append((f"ETA {short_duration_text(status.eta_s)}", ""))
    if status.num_errors:
        found.append((counted(status.num_errors, "error"), "red"))
    if status.num_crashes:
        found.append((counted(status.num_crashes, "crash", "crashes"), "red"))
    if status.started_at:
        found.append((f"after {short_duration_text(status.elapsed_s)}", "dim"))
    kept: list[tuple[str, str]] = []
    for text, style in found:
        if sum(len(each) + len(_GAP) for each, _ in kept) + len(text) <= width:
            kept.append((text, style))
    return Text(_GAP).join(Text(text, style=style) for text, style in kept)


def _troubles(status: Status) -> list[Text]:
    """Errors by code with the first reason, shards that could not be run, and models that nobody has."""
    lines = []
    by_number = sorted(status.error_codes.items(), key=lambda item: (-item[1], item[0]))
    for code, number in by_number[:_MAX_CODES]:
        reason = one_line(status.error_reasons.get(code, ""))
        lines.append(Text.assemble((f"{code} {number:,}", "red"), f": {reason}" if reason else ""))
    if len(by_number) > _MAX_CODES:
        lines.append(Text(f"and {counted(len(by_number) - _MAX_CODES, 'more code')}"))
    for failure in status.failures[:_MAX_FAILURES]:
        lines.append(Text.assemble((f"shard {failure.shard}", "red"), f": {one_line(failure.message)}"))
    for model, number in list(status.unserved_models.items())[:1]:
        verb = "waits" if number == 1 else "wait"
        lines.append(Text(f"{counted(number, 'row')} {verb} for {model}, which no worker has", style="yellow"))
    return lines


def _worker_lines(workers: Sequence[WorkerStatus], width: int, *, num_lines: int) -> list[Text]:
    if num_lines < 1:
        return []
    shown = list(workers)
    if len(shown) > num_lines:
        shown = sorted_workers(shown)[: num_lines - 1]
    names = [shortened(one_line(worker.name), _MOST_NAME) for worker in shown]
    name_width = max(map(width_of, names), default=0)
    lines = []
    for name, worker in zip(names, shown, strict=True):
        load = load_text(worker)
        room = width - name_width - len(_GAP) - (width_of(load) + len(_GAP) if load else 0)
        text = worker_text(worker).removeprefix("alive, ")
        style = "" if worker.health is Health.ALIVE and not worker.num_crashes else "red"
        line = Text(f"{padded(name, name_width)}{_GAP}")
        line.append(Text(shortened(text, max(room, min(8, width_of(text)))), style))
        lines.append(line.append(f"{_GAP}{load}") if load else line)
    if len(shown) < len(workers):
        lines.append(Text(f"and {len(workers) - len(shown):,} more workers"))
    return lines


def _cut(line: Text, width: int, *, is_unicode: bool) -> Text:
    line.truncate(width, overflow="ellipsis" if is_unicode else "crop")
    return line
