"""The check that no custom_id is used twice, in 8 bytes of memory a row.

Each id is kept as a 64-bit hash in an array; sorted once at the end, equal neighbours are suspects. The ids themselves
wait in a temporary file, which is read only where there are suspects, so the answer is exact.
"""

import json
import tempfile
from array import array
from collections.abc import Sequence
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc

from batcher.errors import RepeatedIdError, StorageError
from batcher.jobdir.store import reason
from batcher.paths import temp_folder
from batcher.submission.readers.files import Origin


class CustomIds:
    """Collects the custom_ids of an input, in order of rows. A context manager: it owns a temporary file."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._sources = _Sources()
        # Closed by __exit__.
        self._spool = tempfile.TemporaryFile(dir=temp_folder())  # noqa: SIM115

    def __enter__(self) -> "CustomIds":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._spool.close()

    def add(self, ids: Sequence[str], origin: Origin) -> None:
        """The ids of the next rows, one for each number of `origin`."""
        self._hashes.extend(map(hash, ids))
        self._sources.add(origin)
        try:
            self._spool.write(json.dumps(ids).encode() + b"\n")
        except OSError as exc:
            raise StorageError(f"{temp_folder()}: cannot write a temporary file: {reason(exc)}") from exc

    def check(self) -> None:
        """Raise RepeatedIdError naming an id that two rows have, and both rows; None if there is none."""
        suspects = _repeated(self._hashes)
        if not suspects:
            return
        self._spool.seek(0)
        first_rows: dict[str, int] = {}
        row = 0
        for line in self._spool:
            for custom_id in json.loads(line):
                if hash(custom_id) in suspects and first_rows.setdefault(custom_id, row) != row:
                    first, second = self._sources.find(first_rows[custom_id]), self._sources.find(row)
                    raise RepeatedIdError(
                        f"custom_id {_shown(custom_id)} is used twice, by {first} and {second}; "
                        "give every row its own (rows without one are called row-0, row-1, ...)",
                        number=self._sources.number(row),
                    )
                row += 1


class _Sources:
    """Input row -> where it was read, for all rows: a few words a file, more only where blank lines were skipped."""

    def __init__(self) -> None:
        self._runs: list[Origin] = []
        self._first_rows: list[int] = []
        self._num_rows = 0

    def add(self, origin: Origin) -> None:
        last = self._runs[-1] if self._runs else None
        if last is not None and _continues(last, origin):
            joined = range(last.numbers[0], origin.numbers[-1] + 1)
            self._runs[-1] = Origin(last.file, last.separator, joined)
        else:
            numbers = origin.numbers if isinstance(origin.numbers, range) else array("q", origin.numbers)
            self._runs.append(Origin(origin.file, origin.separator, numbers))
            self._first_rows.append(self._num_rows)
        self._num_rows += len(origin.numbers)

    def find(self, row: int) -> str:
        run = self._run_of(row)
        return self._runs[run].source(row - self._first_rows[run])

    def number(self, row: int) -> int:
        run = self._run_of(row)
        return self._runs[run].numbers[row - self._first_rows[run]]

    def _run_of(self, row: int) -> int:
        return max(i for i, first in enumerate(self._first_rows) if first <= row)


def _continues(last: Origin, origin: Origin) -> bool:
    numbers = last.numbers, origin.numbers
    return (
        last.file == origin.file
        and all(isinstance(part, range) for part in numbers)
        and last.numbers[-1] + 1 == origin.numbers[0]
    )


def _repeated(hashes: "array[int]") -> set[int]:
    values = pa.Array.from_buffers(pa.int64(), len(hashes), [None, pa.py_buffer(hashes)])
    ordered = values.take(pc.array_sort_indices(values))
    return set(ordered[1:].filter(pc.equal(ordered[1:], ordered[:-1])).to_pylist())


def _shown(custom_id: str) -> str:
    return repr(custom_id if len(custom_id) <= 80 else custom_id[:77] + "...")
