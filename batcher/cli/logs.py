"""The log of commands that stay: its options, and how it comes to stderr."""

import atexit
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

import click

from batcher.cli.options import chain, option

if TYPE_CHECKING:
    from workers.process.events import WorkerConfig
    from workers.process.logs import LogStyle

#: Of a command's `Context.meta`.
_FORMAT, _LEVEL, _STREAM = "batcher.log_format", "batcher.log_level", "batcher.log_stream"

_log_options = chain(
    option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        expose_value=False,
        callback=lambda ctx, param, value: _note(ctx, _FORMAT, value),
        help="Lines of the log on stderr: text, or a JSON object each, also of what else comes to stderr.",
    ),
    option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        expose_value=False,
        callback=lambda ctx, param, value: _note(ctx, _LEVEL, value),
        help="Least level of the log's lines. [default: info; of run and resume, warning]",
    ),
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--log-format` and `--log-level`, for `log_to_stderr` and `with_log`. No parameters."""
    return _log_options(command)


def _note(ctx: click.Context, key: str, value: str | None) -> None:
    ctx.meta[key] = value


def log_to_stderr(level: int, *, broker_url: str, role: str = "supervisor", worker: str = "") -> None:
    """Have our own lines from `level` and everybody's warnings on stderr, without the password of the broker.

    `role` says in text whose lines they are, `worker` does in JSON. What the command's options say goes before `level`.
    To be called in a command.
    """
    from workers.process.logs import set_up_logging

    is_json = _is_json()
    set_up_logging((worker or role) if is_json else role, _chosen(level), broker_url=broker_url, stream=take_stderr())


def take_stderr() -> TextIO | None:
    """With `--log-format json`, have all that comes to stderr from now on, of children too, be lines of JSON.

    Returns the stream that they go to; None with text. To the end of the process, as a command's last words come late.
    """
    meta = click.get_current_context().meta
    if _is_json() and _STREAM not in meta:
        from workers.process.logs import json_stderr

        until_end = contextlib.ExitStack()
        atexit.register(until_end.close)
        meta[_STREAM] = until_end.enter_context(json_stderr())
    return meta.get(_STREAM)


def with_log(config: "WorkerConfig") -> "WorkerConfig":
    """`config`, whose children log as the command's options say."""
    return replace(config, log=_chosen(config.log.level))


def _is_json() -> bool:
    return bool(click.get_current_context().meta.get(_FORMAT) == "json")


def _chosen(level: int) -> "LogStyle":
    from workers.process.logs import LogFormat, LogStyle

    meta = click.get_current_context().meta
    chosen = meta.get(_LEVEL)
    return LogStyle(
        LogFormat(meta.get(_FORMAT) or LogFormat.TEXT),
        level if chosen is None else logging.getLevelNamesMapping()[chosen.upper()],
    )
