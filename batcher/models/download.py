"""Fetches models from the hub into its cache. The only module that knows huggingface_hub.

huggingface_hub says what a repository has, speaks to the hub and lays out the cache; but since its version 2 a download
that was interrupted begins anew, and what came is never compared with its checksum. So the bytes are fetched here into
the blob's own `.incomplete` file, as earlier versions named it: a download that was interrupted, by us or by them,
goes on where it was. The blob gets its name only once its checksum is right.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from batcher.errors import ModelError
from batcher.installation import check_installed
from batcher.machine import read_memory
from batcher.models.choice import Candidate, choose, size_text
from batcher.models.hub import KEY, MAIN, HubName, endpoint
from batcher.models.records import read_record, write_record
from batcher.models.source import FoundModel, Tell
from batcher.models.weights import Weights, weights_among

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}")
_CHUNK_BYTES = 1 << 22
#: Left free on the disk beside a download.
_SPARE_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a repository as the hub tells of it. `checksum` as in `Record`."""

    name: str
    num_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class _Repository:
    """What the hub has of a revision."""

    commit: str
    files: dict[str, _File]


def fetch(wanted: HubName, *, cache: Path, tell: Tell | None) -> FoundModel:
    """Fetch the model, all of its files, or what is missing of them. Raises ModelError, MissingPackageError."""
    check_installed(f"{KEY}:{wanted}", "hub")
    from batcher.models.hub_errors import explained

    with explained(wanted):
        repository = _look_up(wanted)
    weights = _pick(wanted, repository, tell)
    full = wanted if wanted.is_exact else _full_name(wanted, weights)
    missing = [name for name in weights.files if name not in repository.files]
    if missing:
        raise ModelError(f"{KEY}:{full}: the repository lacks {missing[0]}, a part of {weights.first}; take another")
    files = [repository.files[name] for name in weights.files]
    with explained(wanted):
        paths = [_get(wanted, file, repository.commit, cache=cache, tell=tell) for file in files]
    return FoundModel(str(full), paths[0], KEY)


def _full_name(wanted: HubName, weights: Weights) -> HubName:
    return replace(wanted, label=weights.label) if weights.label else replace(wanted, file=weights.first)


def _look_up(wanted: HubName) -> _Repository:
    from huggingface_hub import HfApi

    info = HfApi(endpoint()).model_info(wanted.repository, revision=wanted.revision, files_metadata=True)
    siblings = [each for each in info.siblings or () if each.rfilename.endswith(".gguf")]
    return _Repository(str(info.sha), {each.rfilename: _file(each, wanted) for each in siblings})


def _file(sibling: "RepoSibling", wanted: HubName) -> _File:
    checksum = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git-sha1:{sibling.blob_id}"
    # Both become paths.
    if _CHECKSUM.fullmatch(checksum) is None or not set(sibling.rfilename.split("/")).isdisjoint(("", ".", "..")):
        raise ModelError(
            f"{KEY}:{wanted}: {endpoint()} tells of the file {sibling.rfilename!r} with the checksum {checksum!r}, "
            "which it can't have; check HF_ENDPOINT, or take the model from another repository"
        )
    return _File(sibling.rfilename, sibling.size or 0, checksum)


def _pick(wanted: HubName, repository: _Repository, tell: Tell | None) -> Weights:
    found = weights_among(repository.files)
    if not found:
        raise ModelError(
            f"{KEY}:{wanted}: the repository has no GGUF files; look for one with GGUF in its name, or convert the "
            "model with llama.cpp's convert_hf_to_gguf.py"
        )
    meant = wanted.among(found)
    if not wanted.is_exact:
        sized = [Candidate(each, sum(_size(repository, name) for name in each.files)) for each in found]
        best, why = choose(sized, available=read_memory().available, repository=wanted.repository)
        if tell is not None:
            tell(why)
        return best.weights
    if len(meant) == 1:
        return meant[0]
    listed = ", ".join(each.label or each.first for each in found)
    if not meant:
        raise ModelError(f"{KEY}:{wanted}: the repository has no such model; it has {listed}")
    files = ", ".join(each.first for each in meant)
    raise ModelError(
        f"{KEY}:{wanted}: several files are {wanted.label}; give {KEY}:{wanted.repository}/FILE, one of {files}"
    )


def _size(repository: _Repository, name: str) -> int:
    return repository.files[name].num_bytes if name in repository.files else 0


def _get(wanted: HubName, file: _File, commit: str, *, cache: Path, tell: Tell | None) -> Path:
    """The file in the cache, whole and with the right checksum."""
    from huggingface_hub import hf_hub_download

    blob = cache / f"models--{wanted.repository.replace('/', '--')}" / "blobs" / file.checksum.partition(":")[2]
    if blob.exists():
        if read_record(blob) is None:
            _check(blob, file, wanted)
    else:
        _download(wanted, file, commit, blob, tell=tell)
        write_record(blob, file=file.name, commit=commit, checksum=file.checksum, num_bytes=file.num_bytes)
    # Has nothing to fetch any more: it links the blob under the file's name, and notes the revision.
    revision = wanted.revision or MAIN
    path = Path(hf_hub_download(wanted.repository, file.name, revision=revision, cache_dir=cache, endpoint=endpoint()))
    if path.resolve().name != blob.name:
        raise ModelError(f"{KEY}:{wanted}: the repository was changed while it was fetched; the same command gets it")
    return path


def _download(wanted: HubName, file: _File, commit: str, blob: Path, *, tell: Tell | None) -> None:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils.tqdm import tqdm

    blob.parent.mkdir(parents=True, exist_ok=True)
    unfinished = blob.with_name(f"{blob.name}.incomplete")
    with _alone(unfinished, tell) as opened:
        if blob.exists():
            return  # The other process has done it.
        have = opened.seek(0, os.SEEK_END)
        if have > file.num_bytes:
            opened.truncate(0)
            have = opened.seek(0)
        _check_room(file, have, blob)
        if not have and file.num_bytes > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise ModelError(
                f"{KEY}:{wanted}: {file.name} has {size_text(file.num_bytes)}, and files as large come by another "
                f"protocol: `hf download {wanted.repository} {file.name}` puts it into the same cache"
            )
        if tell is not None:
            size = f"{size_text(file.num_bytes)}" + (f", of which {size_text(have)} are here" if have else "")
            tell(f"Fetching {wanted.repository}/{file.name} ({size}) to {blob.parent.parent}")
        bar = {"total": file.num_bytes, "initial": have, "unit": "B", "unit_scale": True, "desc": Path(file.name).name}
        # None: shown on a terminal only.
        with tqdm(**bar, disable=True if tell is None else None) as shown:  # type: ignore[no-untyped-call]
            http_get(
                hf_hub_url(wanted.repository, file.name, revision=commit, endpoint=endpoint()),
                opened,
                resume_size=have,
                headers=build_hf_headers(),
                expected_size=file.num_bytes,
                _tqdm_bar=shown,
            )
        opened.flush()
        _check(unfinished, file, wanted)
        os.fsync(opened.fileno())
        unfinished.rename(blob)


@contextlib.contextmanager
def _alone(path: Path, tell: Tell | None) -> Iterator[BinaryIO]:
    """The file, opened to be gone on with, for one process at a time; others wait. Empty, it is deleted at the end."""
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(path.open("ab+"))
        # The process that was waited for may have deleted the file, or given it its name.
        while not _lock(opened, path, tell):
            opened = stack.enter_context(path.open("ab+"))
        try:
            yield opened
        finally:
            # Of a download that was refused nothing stays.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == 0:
                    path.unlink()


def _lock(opened: BinaryIO, path: Path, tell: Tell | None) -> bool:
    """Wait for the lock of a file; whether `path` is that file still."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if tell is not None:
            tell(f"Another process fetches {path.name}; waiting for it")
        fcntl.flock(opened, fcntl.LOCK_EX)
    except OSError:
        return True  # A file system without locks: the checksum finds what two processes make of it.
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened.fileno()), path.stat())
    return False


def _check_room(file: _File, have: int, blob: Path) -> None:
    needed, free = file.num_bytes - have, shutil.disk_usage(blob.parent).free
    if needed + _SPARE_BYTES > free:
        raise OSError(
            errno.ENOSPC, f"{size_text(needed)} are to come, and {size_text(free)} are free", str(blob.parent)
        )


def _check(path: Path, file: _File, wanted: HubName) -> None:
    """Compare the file with its checksum, and delete it where that is another. Raises ModelError."""
    kind, _, expected = file.checksum.partition(":")
    # Git's checksums are no safeguard against forgers; they are what the hub gives for small files.
    hasher = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind != "sha256":
        hasher.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            hasher.update(chunk)
    if hasher.hexdigest() != expected:
        path.unlink()
        raise ModelError(
            f"{KEY}:{wanted}: {file.name} came with the checksum {hasher.hexdigest()}, and the hub has {expected}; it "
            "was deleted, and the same command fetches it anew. If it comes so again, a proxy or the disk changes it"
        )
