"""The log of commands and of workers' processes: lines of text or JSON on stderr, and how a parent takes a child's.

Everything goes through one handler of the root logger: our own lines, Celery's, uvicorn's. With JSON, what else comes
to stderr (a traceback of the interpreter, a line of llama.cpp, of a child) is made a line of the same kind:
`json_stderr`.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, TextIO

from batcher.broker.url import RedactingFormatter, redact
from workers.process.launch import ChildPipe

logger = logging.getLogger("batcher.workers.child")

#: How a record begins: time, name of the worker, level.
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<worker>\S+) (?P<level>[A-Z]+) (?P<message>.*)")
#: Seconds for the last lines of processes that have ended.
_END_PATIENCE_S = 1.0

#: What a record may say beside its message, in a log of JSON.
FIELDS = ("job", "shard", "rows", "errors", "tokens", "tokens_per_s")

#: Of the records that a thread makes now.
_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039 (never changed)


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class LogStyle:
    """How a process logs: `level` is that of our own lines; of others' never less than warnings are shown."""

    format: LogFormat = LogFormat.TEXT
    level: int = logging.INFO


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Have the records of this thread say what they are about, within the block; `fields` are some of `FIELDS`."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def set_up_logging(name: str, style: LogStyle, *, broker_url: str, stream: TextIO | None = None) -> None:
    """Have this process write its log to stderr, or `stream`. `name` says whose lines they are: the worker's, mostly.

    The password of `broker_url` is in none of them.
    """
    handler = logging.StreamHandler(stream)
    handler.addFilter(_drop_traceback)
    handler.addFilter(_add_fields)
    if style.format is LogFormat.JSON:
        handler.setFormatter(JsonFormatter(name, broker_url))
        _log_what_nobody_catches()
    else:
        handler.setFormatter(RedactingFormatter(f"%(asctime)s {name} %(levelname)s %(message)s", broker_url))
    logging.basicConfig(level=max(logging.WARNING, style.level), handlers=[handler])
    logging.getLogger("batcher").setLevel(style.level)
    # At WARNING it logs each message that is put back at a stop.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    # And this one each that came while it stopped to take any: "Requeuing undeliverable message".
    logging.getLogger("kombu.transport.virtual.base").setLevel(logging.ERROR)


class JsonFormatter(logging.Formatter):
    """A record as a JSON object in one line. No value has the password of `url`."""

    def __init__(self, worker: str, url: str) -> None:
        super().__init__()
        self._worker = worker
        self._url = url

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage(), self._url),
            "worker": self._worker,
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = redact(self.formatException(record.exc_info), self._url)
        elif record.exc_text:
            line["traceback"] = redact(record.exc_text, self._url)
        return json.dumps(line, ensure_ascii=False, default=str)


@contextlib.contextmanager
def json_stderr() -> Iterator[TextIO]:
    """Make whatever comes to this process's stderr, and to that of its children, a line of JSON; yields the real one.

    A line that is a record already, as of a child that logs so, stays as it is; any other becomes one of the logger
    `batcher.stderr`, whose handler is to write to what is yielded.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    real = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    stream = open(real, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    thread = threading.Thread(target=_convert, args=(reading, stream), name="json-stderr", daemon=True)
    thread.start()
    try:
        yield stream
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        # Not longer: something that a child has left behind may hold the other end.
        thread.join(_END_PATIENCE_S)


def _convert(descriptor: int, stream: TextIO) -> None:
    stray = logging.getLogger("batcher.stderr")
    with open(descriptor, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            text = line.rstrip("\n")
            if _is_record(text):
                with contextlib.suppress(OSError, io.UnsupportedOperation):
                    stream.write(text + "\n")
            elif text.strip():
                stray.log(_level_of(text), "%s", text)


def _is_record(text: str) -> bool:
    """Whether a line is of `JsonFormatter`."""
    if not text.startswith("{"):
        return False
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and {"time", "level", "message"} <= found.keys()


def _level_of(text: str) -> int:
    """What the words of a command, or of a library, stand for."""
    for start, level in (("Error", logging.ERROR), ("Traceback", logging.ERROR), ("Warning", logging.WARNING)):
        if text.startswith(start):
            return level
    return logging.INFO


def _log_what_nobody_catches() -> None:
    """What would end a thread, or the process, with a traceback on stderr goes to the log, too."""

    def of_process(kind: type[BaseException], exc: BaseException, traceback: TracebackType | None) -> None:
        logging.getLogger("batcher").critical("%r ends the process", exc, exc_info=(kind, exc, traceback))

    def of_thread(found: threading.ExceptHookArgs) -> None:
        exc = found.exc_value
        if exc is not None:
            name = found.thread.name if found.thread is not None else "?"
            logging.getLogger("batcher").error(
                "%r ends the thread %s", exc, name, exc_info=(found.exc_type, exc, found.exc_traceback)
            )

    sys.excepthook = of_process
    threading.excepthook = of_thread
    logging.captureWarnings(capture=True)


def _add_fields(record: logging.LogRecord) -> bool:
    for name, value in _about.get().items():
        if not hasattr(record, name):
            setattr(record, name, value)
    return True


def _drop_traceback(record: logging.LogRecord) -> bool:
    """A broker that is away is news of one line; Celery adds where in redis-py it noticed."""
    if record.name.startswith(("celery", "kombu")):
        record.exc_info = record.exc_text = None
    return True


class ChildLog(ChildPipe):
    """Has the lines go to the logger `batcher.workers.child`.

    A line that begins no record, such as one of llama.cpp's or of a traceback, has the level of the last record, at
    least WARNING.
    """

    def __init__(self) -> None:
        super().__init__(_log_lines)


def _log_lines(descriptor: int) -> None:
    level = logging.WARNING
    with open(descriptor, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            found = _RECORD.match(line)
            if found is None:
                logger.log(max(level, logging.WARNING), "%s", line.rstrip("\n"))
                continue
            level = logging.getLevelNamesMapping().get(found["level"], logging.WARNING)
            logger.log(level, "%s: %s", found["worker"], found["message"])
