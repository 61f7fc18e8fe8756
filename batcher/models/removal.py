"""Removes models that were fetched by us, and nothing that another program, or another model, has a use for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import InputError, StorageError
from batcher.model_files import split_files
from batcher.models.hub import KEY, repository_folder
from batcher.models.records import forget_record, read_record
from batcher.models.registry import source_of
from batcher.models.source import FoundModel
from batcher.paths import whose


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes with a model: its links in the hub's cache, and the blobs that no other link needs, of `num_bytes`."""

    model: FoundModel
    links: tuple[Path, ...]
    blobs: tuple[Path, ...]
    num_bytes: int


def plan_removal(model: FoundModel) -> Removal:
    """What removing the model would take. Raises InputError, with what removes it, where it is not ours to remove."""
    links = [part for part in split_files(model.path) if part.is_symlink()]
    blobs = {link: link.resolve() for link in links}
    is_ours = model.source == KEY and bool(links) and all(read_record(blob) is not None for blob in blobs.values())
    if not is_ours:
        source = source_of(model.source)
        assert source is not None
        raise InputError(f"{model.name} was not fetched by batcher; {source.how_to_remove(model)}")
    folder = repository_folder(model.path)
    needed = {link.resolve() for link in _links_of(folder) if link not in blobs}
    unneeded = tuple(dict.fromkeys(blob for blob in blobs.values() if blob not in needed))
    return Removal(model, tuple(links), unneeded, sum(blob.stat().st_size for blob in unneeded))


def remove(removal: Removal) -> None:
    """Delete what was planned, and the folders that are empty then. Raises StorageError."""
    folder = repository_folder(removal.model.path)
    try:
        for link in removal.links:
            link.unlink(missing_ok=True)
        for blob in removal.blobs:
            blob.unlink(missing_ok=True)
            forget_record(blob)
        _tidy(folder)
    except OSError as exc:
        raise StorageError(
            f"{removal.model.name}: cannot delete {exc.filename}: {exc.strerror}: {whose(folder)}"
        ) from exc


def _links_of(folder: Path) -> Iterator[Path]:
    return (path for path in (folder / "snapshots").rglob("*") if path.is_symlink())


def _tidy(folder: Path) -> None:
    """Delete what is empty below the folder of a repository, the names of revisions that are gone, and then itself."""
    for path in sorted(folder.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    snapshots = {path.name for path in (folder / "snapshots").glob("*")}
    for ref in [path for path in (folder / "refs").rglob("*") if path.is_file()]:
        if ref.read_text(encoding="utf-8").strip() not in snapshots:
            ref.unlink()
    for path in (folder / "refs", folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
