"""What a shell offers at the Tab key: jobs, models and workers by name, and files.

Asked anew for each word, so nothing here imports more than it needs, and whatever goes wrong offers nothing.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

#: Names that are offered; of more, nobody reads.
MAX_OFFERED = 200
#: Bytes of a sign of life.
_MAX_SIGN_BYTES = 1 << 18
#: How a path begins that is no name.
_PATHS = ("/", "./", "../", "~")


def complete_job(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids under the jobs folder and job directories right here, the newest first; else folders."""
    if incomplete.startswith(_PATHS) or "/" in incomplete:
        return _folders(incomplete)
    names = sorted({*_jobs_in(_jobs_dir(ctx), incomplete), *_jobs_in(Path(), incomplete)}, reverse=True)
    return _items(names) or _folders(incomplete)


def complete_worker(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of workers that have given a sign of life."""
    return _items(sorted({name for name, _ in _signs(_jobs_dir(ctx)) if name.startswith(incomplete)}))


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models that workers have, for what they do, and those of this machine; else files."""
    if incomplete.startswith(_PATHS) or "=" in incomplete:
        return complete_file(ctx, param, incomplete)
    found = {model for _, models in _signs(_jobs_dir(ctx)) for model in models}
    if ctx.info_name != "submit" or not found:
        with contextlib.suppress(Exception):
            from batcher.models.registry import all_models

            found |= {model.name for model in all_models()}
    return _items(sorted(name for name in found if name.startswith(incomplete))) or complete_file(
        ctx, param, incomplete
    )


def complete_priority(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The priorities that have names."""
    from batcher.types import PRIORITY_NAMES

    return _items(name for name in PRIORITY_NAMES if name.startswith(incomplete))


def complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, as the shell finds them."""
    return [CompletionItem(incomplete, type="file")]


def _folders(incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def _items(names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.isprintable()][:MAX_OFFERED]


def _jobs_dir(ctx: click.Context) -> Path:
    # Where the command line says no other, click has not looked further.
    return Path(ctx.params.get("jobs_dir") or os.environ.get("BATCHER_JOBS_DIR") or "batcher-jobs")


def _jobs_in(folder: Path, incomplete: str) -> Iterator[str]:
    """The job directories right in a folder whose names begin so."""
    from batcher.jobdir.listing import MANIFEST_NAME

    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = sorted((each.name for each in entries if each.name.startswith(incomplete)), reverse=True)
        for name in names[:MAX_OFFERED]:
            if not name.startswith(".") and (folder / name / MANIFEST_NAME).is_file():
                yield name


def _signs(root: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and models of each worker of a jobs folder, gone or not."""
    from batcher.jobdir.listing import WORKERS_NAME

    for path in sorted((root / WORKERS_NAME).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            if path.stat().st_size <= _MAX_SIGN_BYTES:
                sign = json.loads(path.read_bytes())
                yield str(sign["name"]), tuple(map(str, sign["models"]))
