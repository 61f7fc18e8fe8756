"""The models that Ollama has on this machine, read from its store: no daemon is asked, nothing is changed.

A model is a manifest, manifests/HOST/NAMESPACE/MODEL/TAG, whose layers name blobs by their digests
(https://github.com/ollama/ollama, `types/model/name.go` and `server/manifest.go`). The layer of the weights is a GGUF
file, whose own chat template is used; the layers of Ollama's template and parameters are for Ollama.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batcher.models.source import FoundModel
from batcher.paths import expand_home, whose

STORE_VARIABLE = "OLLAMA_MODELS"

#: Where a store is without the variable: of a user's own daemon, and of the service that Ollama's installer sets up.
_STORES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-][0-9a-f]{64}")
#: A manifest has some kilobytes.
_MAX_MANIFEST_BYTES = 1 << 20


class _UnusableError(Exception):
    """Why the model of a manifest can't be used here, with the remedy."""


@dataclass(frozen=True, slots=True)
class Ollama:
    """Models by the names that `ollama list` shows; without a tag `:latest` is meant."""

    key: str = "ollama"

    def models(self) -> Iterator[FoundModel]:
        seen = set()
        for store in _stores():
            for manifest in _manifests(store):
                model = self._read(store, manifest)
                if model.name not in seen:
                    seen.add(model.name)
                    yield model

    def find(self, name: str) -> FoundModel | None:
        full = name if ":" in name.rpartition("/")[2] else f"{name}:{_TAG}"
        return next((model for model in self.models() if model.name.lower() == full.lower()), None)

    def how_to_remove(self, model: FoundModel) -> str:
        return f"it is Ollama's, whose models share files: ollama rm {model.name}"

    def _read(self, store: Path, manifest: Path) -> FoundModel:
        name = _name(manifest.relative_to(store / "manifests"))
        try:
            return FoundModel(name, _blob(store, manifest, name), self.key)
        except _UnusableError as exc:
            return FoundModel(name, manifest, self.key, problem=str(exc))


def _stores() -> list[Path]:
    given = os.environ.get(STORE_VARIABLE)
    return [Path(expand_home(given))] if given else [Path(path).expanduser() for path in _STORES]


def _manifests(store: Path) -> list[Path]:
    # A store that may not be read has none.
    try:
        return sorted(path for path in (store / "manifests").glob("*/*/*/*") if path.is_file() and path.name[0] != ".")
    except OSError:
        return []


def _name(place: Path) -> str:
    """The name as Ollama shows it, which leaves out its own host and namespace."""
    host, namespace, model, tag = place.parts
    parts = [host] if host != _HOST else []
    parts += [namespace] if parts or namespace != _NAMESPACE else []
    return f"{'/'.join([*parts, model])}:{tag}"


def _blob(store: Path, manifest: Path, name: str) -> Path:
    """The file of the weights. Raises _UnusableError."""
    layers = _layers(manifest, name)
    kinds = [kind for kind, _, _ in layers]
    if "adapter" in kinds:
        raise _UnusableError(
            "it has an adapter, which is not applied here; merge it into the weights and convert those"
        )
    weights = [(digest, size) for kind, digest, size in layers if kind == "model"]
    if not weights:
        raise _UnusableError(
            "its manifest names no GGUF file: it runs elsewhere, or in another engine of Ollama; pull another tag of it"
        )
    if len(weights) > 1:
        raise _UnusableError(f"its manifest {manifest} names {len(weights)} files of weights, and one can be opened")
    digest, size = weights[0]
    path = store / "blobs" / digest.replace(":", "-")
    try:
        actual = path.stat().st_size
    except FileNotFoundError as exc:
        raise _UnusableError(f"its file {path} is gone; `ollama pull {name}` gets it again") from exc
    except OSError as exc:
        raise _UnusableError(f"cannot read {path}: {exc.strerror}: {whose(path)}; let this user read it") from exc
    if actual != size:
        raise _UnusableError(
            f"its file {path} has {actual:,} bytes and should have {size:,}; delete it, and `ollama pull {name}` gets "
            "it again"
        )
    if not os.access(path, os.R_OK):
        raise _UnusableError(f"may not read {path}: {whose(path)}; let this user read it")
    return path


def _layers(manifest: Path, name: str) -> list[tuple[str, str, int]]:
    """Kind, digest and bytes of each layer. Raises _UnusableError."""
    try:
        with manifest.open("rb") as file:
            content: Any = json.loads(file.read(_MAX_MANIFEST_BYTES))
        found = [
            (str(layer["mediaType"]).removeprefix(_LAYER).partition(";")[0], str(layer["digest"]), int(layer["size"]))
            for layer in content["layers"] or ()
        ]
    except PermissionError as exc:
        raise _UnusableError(f"may not read {manifest}: {whose(manifest)}; let this user read it") from exc
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise _UnusableError(f"its manifest {manifest} is damaged; `ollama pull {name}` writes it again") from exc
    # A digest becomes a path.
    if not all(_DIGEST.fullmatch(digest) for _, digest, _ in found):
        raise _UnusableError(f"its manifest {manifest} is damaged; `ollama pull {name}` writes it again")
    return found
