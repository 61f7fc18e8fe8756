"""Engines behind URLs, as whoever starts workers chooses them: the servers, their key, and which of their models."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batcher.errors import InputError, ModelError
from batcher.ids import check_model_name
from batcher.paths import expand_home
from batcher.types import RemoteModel, RemoteServers, SamplingParams

if TYPE_CHECKING:
    from workers.engines.remote.catalog import Catalog

KEY_VARIABLE = "BATCHER_ENGINE_KEY"


def read_servers(urls: str | Sequence[str], key_file: str | os.PathLike[str] | None) -> RemoteServers | None:
    """The servers at `urls`, with the key of the file, else of BATCHER_ENGINE_KEY; None for no URL.

    Raises InputError.
    """
    listed = (urls,) if isinstance(urls, str) else tuple(urls)
    if not listed:
        if key_file is not None:
            raise InputError("--engine-key-file without --engine: a key for which server? Give its URL with --engine")
        return None
    from workers.engines.open import check_server_url

    checked = tuple(dict.fromkeys(map(check_server_url, listed)))
    key = os.environ.get(KEY_VARIABLE, "").strip() if key_file is None else _read_key(Path(expand_home(key_file)))
    if not (key.isascii() and key.isprintable()):
        where = KEY_VARIABLE if key_file is None else f"--engine-key-file {key_file}"
        raise InputError(f"{where}: not a key that HTTP can carry; it must be printable ASCII characters")
    return RemoteServers(checked, key)


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8-sig").partition("\n")[0].strip()
    except UnicodeDecodeError as exc:
        raise InputError(f"--engine-key-file {path}: not UTF-8; its first line must be the key") from exc
    except OSError as exc:
        raise InputError(f"--engine-key-file {path}: cannot read the file: {exc.strerror or exc}") from exc
    if not key:
        raise InputError(f"--engine-key-file {path}: the first line is empty; it must be the key")
    return key


def choose_served(specs: Sequence[str], servers: RemoteServers, *, needed: set[str] | None = None) -> list[RemoteModel]:
    """The models that `--model` gives (NAME, or NAME=NAME_THERE); with none given, those `needed` by name, else the
    only one that the servers have.

    A server that does not answer is taken at the user's word: its worker waits for it. Raises InputError where nothing
    says which model, ModelError where a server answers and has no such model, or wants another key.
    """
    chosen = [_parse(spec) for spec in specs]
    names = [name for name, _ in chosen]
    if len(set(names)) < len(names):
        raise InputError(f"--model: two models have the same name ({', '.join(names)}); write NAME=NAME_THERE")
    chosen += [(name, name) for name in sorted((needed or set()) - set(names))]
    found = _look_at(servers)
    if not chosen and needed is None:
        listed = sorted({model.name for each in found.values() if not isinstance(each, str) for model in each.models})
        if len(listed) != 1:
            there = f"the servers have {', '.join(listed)}" if listed else _why_none(found)
            raise InputError(f"which model? Give --model NAME; {there}")
        chosen = [(check_model_name(listed[0]), listed[0])]
    return [_look_up(name, served, found) for name, served in chosen]


def check_asked(params: SamplingParams, servers: RemoteServers, *, is_chat: bool) -> None:
    """Raise InputError for an option of the whole job that a server can't do: each of its rows would be an error."""
    from workers.engines.open import find_dropped

    if problem := find_dropped(params, servers, is_chat=is_chat):
        raise InputError(problem)


def _look_at(servers: RemoteServers) -> "dict[str, Catalog | str]":
    """What each server is, or why it does not answer. Raises ModelError for one that never will be of use."""
    from workers.engines.open import look_at_servers

    found: dict[str, Catalog | str] = {}
    for url, each in look_at_servers(servers).items():
        if isinstance(each, ModelError):
            raise each
        found[url] = each
    return found


def _why_none(found: "dict[str, Catalog | str]") -> str:
    return "; ".join(f"{url}: {each if isinstance(each, str) else 'it lists no models'}" for url, each in found.items())


def _look_up(name: str, served: str, found: "dict[str, Catalog | str]") -> RemoteModel:
    lengths = []
    for url, each in found.items():
        if isinstance(each, str):
            continue
        model = each.find(served)
        if model is None:
            raise ModelError(f"{url}: {each.missing(served)}")
        lengths += [model.context_length] if model.context_length is not None else []
    return RemoteModel(name, served, min(lengths, default=None))


def _parse(spec: str) -> tuple[str, str]:
    """Either name may hold a `=`: the first is meant."""
    name, separator, served = spec.partition("=")
    if separator and not (name and served):
        raise ModelError(f"--model {spec}: write NAME, or NAME=NAME_THERE")
    return check_model_name(name), served or name
