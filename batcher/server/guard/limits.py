"""How much the server takes on: of a request, of a client, and of all of them together."""

from dataclasses import dataclass

from starlette.types import Scope

from batcher.submission.readers.bounds import MAX_RATIO, MAX_UNPACKED_BYTES

#: Bytes that boundaries, headers and fields of a form may add to its file.
FORM_BYTES = 1 << 20
#: Bytes of a body that asks for a batch: its longest metadata takes a twentieth.
MAX_BATCH_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server bears.

    `max_body_bytes` is for one JSON body, also for a line of a batch, `max_held_bytes` for all bodies together;
    `max_file_bytes` for uploads, which go to the disk, and `max_unpacked_bytes` and `max_ratio` for what compressed
    ones become (see `submission.readers.bounds`). `max_sequences` is for one request (its prompts times `best_of`),
    `max_queued` for all live requests together. What ends in `per_key` is for those of one key; None is half of what
    all may have, where there are several keys. `max_connections` are open at a time, idle ones too, of them
    `max_connections_per_address` from one address. `request_timeout_s` runs from the body to the last token.
    `body_idle_s` may pass between two pieces of a body, `write_idle_s` without a client reading anything.
    """

    max_body_bytes: int = 10 << 20
    max_held_bytes: int = 256 << 20
    max_file_bytes: int = 1 << 30
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES
    max_ratio: int = MAX_RATIO
    max_sequences: int = 2048
    max_queued: int = 16384
    max_concurrent: int = 1024
    max_concurrent_per_key: int | None = None
    max_queued_per_key: int | None = None
    max_held_bytes_per_key: int | None = None
    max_connections: int = 8192
    max_connections_per_address: int | None = None
    request_timeout_s: float = 600.0
    body_idle_s: float = 30.0
    write_idle_s: float = 60.0
    head_timeout_s: float = 30.0

    def max_bytes(self, scope: Scope) -> int:
        """Of the body of a request. Of an upload's it is the form's; the file in it is measured where it is stored."""
        if is_upload(scope):
            return self.max_file_bytes + FORM_BYTES
        return min(self.max_body_bytes, MAX_BATCH_BODY_BYTES) if _is_of_batches(scope) else self.max_body_bytes


def is_upload(scope: Scope) -> bool:
    return bool(scope["path"] == "/v1/files" and scope["method"] == "POST")


def _is_of_batches(scope: Scope) -> bool:
    return bool(scope["path"].startswith("/v1/batches"))
