"""The fingerprint: what tells one job from another."""

import io
from pathlib import Path

from batcher.submission.readers.files import NamedStream
from batcher.submission.source import fingerprint
from tests.support.submitted import make_options, write_lines


def test_fields_tell_jobs_apart_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "top_k": 5})

    found = [
        fingerprint([path], make_options(fields=fields))
        for fields in ((), ("top_k",), ("top_k", "min_p"), ("min_p", "top_k", "top_k"))
    ]

    assert len(set(found)) == 3
    assert found[2] == found[3]


def test_fingerprint_covers_files_and_streams_whole(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    options = make_options()
    prints = {
        fingerprint([path], options),
        fingerprint([path, path], options),
        fingerprint([path, NamedStream(io.BytesIO(b"x"))], options),
        fingerprint([path, NamedStream(io.BytesIO(b"y"))], options),
    }
    assert len(prints) == 4
