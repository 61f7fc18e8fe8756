"""Sealed Parquet: any reader reads it, and no bit of it can change unnoticed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.arrow.plain import plain_table
from batcher.errors import CorruptFileError, StorageError
from batcher.jobdir.sealed import MissingFileError, read_columns, read_metadata, read_table, seal
from tests.support.any_arrays import arrays, names
from tests.support.job_files import failed, ok, result_table

TABLE = result_table([ok(row, num_choices=1 + row % 2) if row % 5 else failed(row) for row in range(20)])
SEALED = bytes(seal(TABLE, {b"batcher.counts": b'{"num_rows": 20}'}))


def test_table_and_metadata_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    path.write_bytes(SEALED)

    assert read_table(path) == TABLE
    assert read_table(path).schema == TABLE.schema
    assert read_metadata(path)[b"batcher.counts"] == b'{"num_rows": 20}'


def test_any_reader_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    path.write_bytes(SEALED)

    assert pq.read_table(path, page_checksum_verification=True)["text"].to_pylist() == TABLE["text"].to_pylist()
    assert pq.read_schema(path).metadata[b"batcher.counts"] == b'{"num_rows": 20}'


def test_types_that_parquet_does_not_know_come_back_too(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    nested = pa.struct([("at", pa.timestamp("s")), ("many", pa.list_(pa.timestamp("s", "UTC")))])
    table = pa.table({"seconds": pa.array([1, None], pa.timestamp("s")), "nested": pa.array([None, {"at": 5}], nested)})
    path.write_bytes(seal(table))

    assert read_table(path) == table
    assert read_table(path, ["nested.at"])["nested"].to_pylist()[1]["at"].second == 5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_some_columns_are_those_that_all_would_have_been(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever their types and names, points in these too."""
    own = data.draw(
        st.lists(names | st.sampled_from(["a", "a.b", "b", ".", "a."]), min_size=1, max_size=4, unique=True)
    )
    path = tmp_path / "file.parquet"
    path.write_bytes(seal(plain_table(pa.table({name: data.draw(arrays(num_rows=2, depth=2)) for name in own}))))
    asked = data.draw(st.lists(st.sampled_from(own), min_size=1, unique=True))

    found = read_columns(path, [*asked, "no column"])

    # By their texts, as NaN is not equal to itself.
    assert str(found) == str(read_table(path).select(asked))


@pytest.mark.parametrize("text", ["batcher.seal", "crc32:00000000:00000000", "batcher.seal crc32:12345678:12345678"])
def test_text_that_looks_like_a_seal_confuses_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.parquet"
    table = pa.table({text: [text, text]})
    path.write_bytes(seal(table))

    assert read_table(path) == table
    assert read_metadata(path)


def test_footer_larger_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    path.write_bytes(seal(TABLE, {b"long": b"x" * 200_000}))

    assert len(read_metadata(path)[b"long"]) == 200_000


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(0, 8 * len(SEALED) - 1))
def test_no_bit_can_flip_unnoticed(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "file.parquet"
    data = bytearray(SEALED)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)

    with pytest.raises(CorruptFileError, match=r"file\.parquet: cannot read"):
        read_table(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_other_bytes_pass_for_it(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, overwritten with zeros or with something else, or with a part of itself missing or twice."""
    path = tmp_path / "file.parquet"
    first, last = sorted(data.draw(st.lists(st.integers(0, len(SEALED)), min_size=2, max_size=2)))
    middle = data.draw(st.sampled_from([b"", bytes(last - first), SEALED[:first], SEALED[first:last] * 2]))
    damaged = SEALED[:first] + middle + SEALED[last:]
    path.write_bytes(damaged)

    if damaged == SEALED:
        assert read_table(path) == TABLE
    else:
        with pytest.raises(CorruptFileError):
            read_table(path)


def test_footer_is_checked_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    footer_start = len(SEALED) - 8 - int.from_bytes(SEALED[-8:-4], "little")
    path.write_bytes(bytes(footer_start) + SEALED[footer_start:])
    assert read_metadata(path)[b"batcher.counts"]

    for position in range(footer_start, len(SEALED), 97):
        data = bytearray(SEALED)
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptFileError):
            read_metadata(path)


def test_parquet_of_somebody_else_is_none_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pq.write_table(TABLE, path)

    for read in (read_table, read_metadata):
        with pytest.raises(CorruptFileError, match="it has no seal of Batcher"):
            read(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"PAR1", "does not end as a Parquet file does"),
        (b"PAR1 and so on", "does not end as a Parquet file does"),
        (b"PAR1\xff\xff\xff\x7fPAR1", "its footer is larger than the file"),
        (b"PAR1\x00\x00\x00\x00PAR1", "no seal"),
    ],
)
def test_no_parquet_at_all_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file.parquet"
    path.write_bytes(data)

    for read in (read_table, read_metadata):
        with pytest.raises(CorruptFileError, match=message):
            read(path)


def test_file_that_is_gone_is_told_from_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.parquet"
    for read in (read_table, read_metadata):
        with pytest.raises(MissingFileError, match="No such file"):
            read(path)
    path.write_bytes(SEALED)

    def fail(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)

    for read in (read_table, read_metadata):
        with pytest.raises(StorageError, match="cannot read: Input/output error") as raised:
            read(path)
        assert not isinstance(raised.value, CorruptFileError)
        assert raised.value.is_retriable
