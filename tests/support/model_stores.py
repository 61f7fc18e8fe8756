"""What other programs leave on a disk: the store of Ollama, and the cache of the hub, as they lay them out."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class OllamaStore:
    """A store of Ollama's, filled by hand. `path` is what OLLAMA_MODELS names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs").mkdir(parents=True)
        (path / "manifests").mkdir()

    def blob(self, content: bytes) -> str:
        """Stores a blob, and gives its digest."""
        digest = hashlib.sha256(content).hexdigest()
        (self.path / "blobs" / f"sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}"

    def blob_of(self, file: Path) -> str:
        """The same with the content of a large file, which is linked."""
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        (self.path / "blobs" / f"sha256-{digest}").symlink_to(file)
        return f"sha256:{digest}"

    def path_of(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "-")

    def manifest_of(self, name: str) -> Path:
        """Where the manifest of a model is, by its name in full: HOST/NAMESPACE/MODEL:TAG."""
        return self.path / "manifests" / name.replace(":", "/")

    def add(self, name: str, weights: str, **others: str) -> Path:
        """A model of weights that are stored, and other layers: kind=digest. Gives its manifest."""
        template = self.blob(b"{{ .System }} {{ .Prompt }}")
        layers = [("model", weights), ("template", template), *others.items()]
        config = self.blob(b'{"model_format":"gguf"}')
        return self.write(
            name,
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {"mediaType": "application/vnd.docker.container.image.v1+json"} | self._sized(config),
                "layers": [
                    {"mediaType": f"application/vnd.ollama.image.{kind}"} | self._sized(digest)
                    for kind, digest in layers
                ],
            },
        )

    def write(self, name: str, manifest: Any) -> Path:
        path = self.manifest_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest), encoding="utf-8")
        return path

    def _sized(self, digest: str) -> dict[str, object]:
        return {"digest": digest, "size": self.path_of(digest).stat().st_size}


def hub_cache(cache: Path, repository: str, files: dict[str, bytes], *, commit: str, revision: str | None) -> Path:
    """What huggingface_hub has of a revision in its cache; gives the snapshot. See test_hub for the real one."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if revision is not None:
        ref = folder / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="utf-8")
    return snapshot
