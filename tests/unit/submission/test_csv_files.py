"""CSV and TSV: cells as they were written, rows in order, types by what the whole column holds."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.arrow.cells import cells_table
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.shards import conform
from batcher.submission.carried import CarriedColumns, TableRow
from batcher.submission.planner import submit
from batcher.submission.readers import csv_files
from batcher.submission.readers.files import NamedStream, ReadOptions, TableBatch, expand, read_batches
from tests.support.submitted import carried_rows, make_options, rows_of, write_lines
from tests.unit.conftest import Run

MESSY = b'prompt,n\n"two\nlines",1\nplain,2\n"say ""hi""",3\n'


def read(path: Path, **options: Any) -> list[TableBatch]:
    batches = list(read_batches(expand([str(path)]), ReadOptions(**options)))
    assert all(isinstance(batch, TableBatch) for batch in batches)
    return [batch for batch in batches if isinstance(batch, TableBatch)]


def rows_in(path: Path, **options: Any) -> list[list[str | None]]:
    return [list(row.values()) for batch in read(path, **options) for row in batch.table.to_pylist()]


def carried_in(tmp_path: Path, *inputs: str, **options: Any) -> dict[str, list[Any]]:
    job = JobDir(tmp_path / "job")
    submit(job, inputs, make_options(**options))
    values: dict[str, list[Any]] = carried_rows(job).to_pydict()
    return values


@pytest.mark.parametrize("mark", [";", ",", "\t"])
def test_line_for_excel_is_to_be_deleted(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "excel.csv"
    rows = f"prompt{mark}n\r\nx{mark}1\r\n"
    path.write_text(f"sep={mark}\r\n{rows}")

    with pytest.raises(InputError, match=r"its first line, sep=., speaks to Excel alone; delete that line") as told:
        read(path)

    # When the remedy is followed
    path.write_text(rows)
    assert ("--csv-delimiter" in str(told.value)) == (mark != ",")
    assert rows_in(path, csv_delimiter=mark) == [["x", "1"]]


# -- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", MESSY),
        ("a.CSV", MESSY),
        ("bom.csv", b"\xef\xbb\xbf" + MESSY),
        ("blank-in-front.csv", b"\r\n\n" + MESSY),
        ("crlf.csv", b'prompt,n\r\n"two\nlines",1\r\nplain,2\r\n\r\n"say ""hi""",3'),
        ("a.csv.gz", gzip.compress(MESSY, mtime=0)),
        ("a.csv.zst", pa.compress(MESSY, codec="zstd", asbytes=True)),
        ("a.tsv", MESSY.replace(b",", b"\t")),
        ("a.tsv.gz", gzip.compress(MESSY.replace(b",", b"\t"), mtime=0)),
    ],
)
def test_same_table_reads_alike_in_every_dress(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert rows_in(path) == [["two\nlines", "1"], ["plain", "2"], ['say "hi"', "3"]]


def test_delimiter_and_format_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "semicolons.csv"
    path.write_bytes(b"prompt;n\na,b;1\n")
    assert rows_in(path, csv_delimiter=";") == [["a,b", "1"]]
    path = tmp_path / "export"
    path.write_bytes(MESSY)
    assert len(rows_in(path, format="csv")) == 3
    [batch] = read_batches([NamedStream(io.BytesIO(b"prompt\tn\nx\t1\n"))], ReadOptions(format="tsv"))
    assert isinstance(batch, TableBatch)
    assert (batch.origin.source(0), batch.table.to_pylist()) == ("<stdin>: row 1", [{"prompt": "x", "n": "1"}])


# What no CSV can hold: csv.writer writes None and "" alike, and a row of one empty cell as "".
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list("\",\n\r\t;' \0\ufeff")), max_size=8)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(texts, min_size=width, max_size=width), min_size=1, max_size=8)
)


# csv.writer does not quote a newline of another kind than its own, unless it quotes all cells.
styles = st.sampled_from([("\r\n", csv.QUOTE_MINIMAL), *[(end, csv.QUOTE_ALL) for end in ("\n", "\r\n", "\r")]])


@given(tables, st.sampled_from([",", ";", "\t", "|"]), styles)
def test_whatever_text_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], delimiter: str, style: tuple[str, Any]
) -> None:
    header = [f"c{i}" for i in range(len(table[0]))]
    text = io.StringIO(newline="")
    end, quoting = style
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(header)
    writer.writerows(table)
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    path.write_bytes(text.getvalue().encode())

    batches = read(path, csv_delimiter=delimiter)

    assert not any(batch.broken for batch in batches)
    found = [list(row.values()) for batch in batches for row in batch.table.to_pylist()]
    is_null = None if quoting == csv.QUOTE_MINIMAL else ""
    if len(header) > 1:
        assert found == [[cell or is_null for cell in row] for row in table]
    else:
        assert found == table


def test_rows_over_block_borders_are_whole_and_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", 64)
    path = tmp_path / "in.csv"
    # Characters of several bytes, so that blocks end within one; every seventh row is odd.
    lines = [f'"ü\n{"é" * (i % 9)}€",{i}' if i % 7 else f"odd{i}" for i in range(200)]
    path.write_text("a,b\n" + "\n".join(lines), encoding="utf-8")

    batches = read(path)

    sources = [batch.origin.source(i) for batch in batches for i in range(len(batch.origin.numbers))]
    assert sources == [f"{path}: row {number}" for number in range(1, 201)]
    assert all(batch.table.num_rows == len(batch.origin.numbers) for batch in batches)
    broken = [batch.origin.numbers[position] - 1 for batch in batches for position in batch.broken]
    assert sorted(broken) == [i for i in range(200) if i % 7 == 0]
    cells = [row["b"] for batch in batches for row in batch.table.to_pylist()]
    assert cells == [str(i) if i % 7 else None for i in range(200)]


def test_odd_and_unreadable_rows_become_error_rows_in_their_place(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"custom_id,prompt,x\na,p,1\nb,q\nc,r,2,3\nd,\xff\xfe,4\ne,s,\xe9\nf,\xff\ng,t,5\n")
    job = JobDir(tmp_path / "job")

    manifest = submit(job, [str(path)], make_options()).manifest

    rows = rows_of(job)
    assert [row.request.custom_id for row in rows] == ["a", "row-1", "row-2", "d", "e", "row-5", "g"]
    errors = {row.request.row: row.error.message for row in rows if row.error is not None}
    assert errors == {
        1: f"{path}: row 2: the row has 2 cells, the header 3: 'b,q'; {csv_files.QUOTE_CELLS}",
        2: f"{path}: row 3: the row has 4 cells, the header 3: 'c,r,2,3'; {csv_files.QUOTE_CELLS}",
        3: f"{path}: row 4: prompt is not UTF-8 text; save the file as UTF-8",
        4: f"{path}: row 5: x is not UTF-8 text; save the file as UTF-8",
        5: f"{path}: row 6: the row has 2 cells, the header 3: 'f,\ufffd'; {csv_files.QUOTE_CELLS}",
    }
    assert manifest.num_rows == 7
    assert carried_rows(job)["x"].to_pylist() == [1, None, None, 4, None, None, 5]


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("open.csv", b'prompt,n\nx,1\n"y,2\nz,3\n', "row 2: a quote in it is not closed before the end"),
        ("open.csv", b'prompt,n\nx,1\ny,"2\nz,3\n', "row 2: a quote in it is not closed before the end"),
        ("open.csv", b'prompt\n"y\n', "row 1: a quote in it is not closed before the end"),
        ("head.csv", b'"prompt,n\nx,1\n', "a quote in the header is not closed"),
        ("twice.csv", b"prompt,x,x\np,1,2\n", "two columns are called 'x'; rename one"),
        ("latin.csv", "prompt,größe\np,1\n".encode("latin-1"), r"the name of a column is not UTF-8: gr\xf6\xdfe"),
        ("only-header.csv", b"prompt,n\n", "holds no rows"),
        ("empty.csv", b"", "holds no rows"),
        (
            "semicolon.csv",
            b"prompt;n\nx;1\n",
            "its one column is called 'prompt;n'; if the columns are separated by ';'",
        ),
        ("cut.csv.gz", gzip.compress(MESSY * 100, mtime=0)[:-9], "cannot be read: the gzip data ends in the middle"),
        ("wide.csv", MESSY.decode().encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    ],
)
def test_unusable_file_is_named_with_what_is_wrong(tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


def test_remedies_for_delimiters_hold(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"prompt;n\nx;1\n")
    assert rows_in(path, csv_delimiter=";") == [["x", "1"]]
    path.write_bytes(b"how|why\nx\n")
    assert rows_in(path, csv_delimiter=",") == [["x"]]


def test_quote_that_swallows_a_long_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", 256)
    path = tmp_path / "in.csv"
    path.write_bytes(b"prompt,n\n" + b"p,1\n" * 100 + b'"p,2\n' + b"p,3\n" * 1000)
    with pytest.raises(InputError, match=r"row \d+ or one after it is longer than .* a quote is not closed"):
        read(path)


def test_file_of_odd_rows_is_refused_before_it_fills_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "_MAX_ODD_ROWS", 50)
    path = tmp_path / "in.csv"
    path.write_bytes(b"prompt,n\n" + b"p\n" * 50)
    assert sum(len(batch.broken) for batch in read(path)) == 50
    path.write_bytes(b"prompt,n\n" + b"p\n" * 51)
    with pytest.raises(InputError, match="from row 1 on, 50 rows and more have another number of cells"):
        read(path)


# -- values -----------------------------------------------------------------------------------------------------------


def test_fields_of_the_request_are_read_by_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(
        "custom_id,prompt,max_tokens,temperature,top_p,seed,stream,stop,model\n"
        '007,5,3,0.5,1,12,true,"[""a""]",tiny\n'
        ",null,,,,,,,\n"
        '"","",16.0,1e0,0.25,-7,False,"\n","tiny"\n'
        "x,p,three,,,,,,\n"
        "y,,,,,,,,\n"
    )
    job = JobDir(tmp_path / "job")
    submit(job, [str(path)], make_options())

    first, second, third, fourth, fifth = rows_of(job)
    params = first.request.params
    assert (first.request.custom_id, first.request.prompts) == ("007", ("5",))
    assert (params.max_tokens, params.temperature, params.top_p, params.seed, params.stop) == (
        3,
        0.5,
        1,
        12,
        ('["a"]',),
    )
    assert (second.request.custom_id, second.request.prompts) == ("row-1", ("null",))
    assert second.request.params == make_options().params
    assert (third.request.custom_id, third.request.prompts) == ("row-2", ("",))
    assert (third.request.params.max_tokens, third.request.params.seed, third.request.params.stop) == (16, -7, ("\n",))
    assert fourth.error is not None
    assert 'row 4: max_tokens is "three"; use a positive integer' in fourth.error.message
    assert fifth.error is not None
    assert "row 5: prompt is null" in fifth.error.message


def test_messages_in_a_cell_make_a_chat(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi, there"}]
    path = tmp_path / "in.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["custom_id", "messages"], ["a", json.dumps(messages)]])
    job = JobDir(tmp_path / "job")
    submit(job, [str(path)], make_options())
    [row] = rows_of(job)
    assert row.error is None
    assert row.request.is_chat
    assert json.loads(row.request.prompts[0]) == messages


def test_template_takes_cells_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('price,text\n1.50,"a\nb"\n')
    job = JobDir(tmp_path / "job")
    submit(job, [str(path)], make_options(template="{price}: {text}"))
    [row] = rows_of(job)
    assert row.request.prompts == ("1.50: a\nb",)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "", "3"], [1, None, 3]),
        (["1", '""', "3"], [1, None, 3]),
        (["1", "2.5", "-0.125"], [1.0, 2.5, -0.125]),
        (["1.0", "", "2.0"], [1.0, None, 2.0]),
        (["1e-05", "2.5e+20"], [1e-05, 2.5e20]),
        (["9223372036854775807"], [2**63 - 1]),
        # As numbers, these would not be what was written.
        (["007", "8"], ["007", "8"]),
        (["1.10", "1.9"], ["1.10", "1.9"]),
        (["1e5", "2e5"], ["1e5", "2e5"]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["0.12345678901234567", "1"], ["0.12345678901234567", "1"]),
        (["-0", "+1"], ["-0", "+1"]),
        (["1", " 2"], ["1", " 2"]),
        (["true", "false"], ["true", "false"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["a", "", '""'], ["a", None, ""]),
        (["", ""], [None, None]),
        (["", '""'], [None, ""]),
    ],
)
@pytest.mark.parametrize("shard_rows", [1, 100])
def test_carried_column_is_of_numbers_only_where_nothing_is_lost(
    tmp_path: Path, cells: Sequence[str], values: list[Any], shard_rows: int
) -> None:
    path = tmp_path / "in.csv"
    path.write_text("prompt,x\n" + "".join(f"p,{cell}\n" for cell in cells))
    found = carried_in(tmp_path, str(path), shard_rows=shard_rows)["x"]
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


any_cell = st.none() | st.sampled_from(["", "1", "-3", "2.5", "1.0", "1.50", "007", "x", str(2**53 + 1), str(2**63)])


@given(st.lists(any_cell, min_size=1, max_size=8))
def test_types_do_not_depend_on_shards_and_no_cell_is_changed(cells: list[str | None]) -> None:
    small, large = (carried_by_shards(cells, shard_rows) for shard_rows in (1, 8))
    assert small == large
    assert list(map(type, small)) == list(map(type, large))
    for cell, value in zip(cells, small, strict=True):
        if value is None:
            assert not cell
        elif isinstance(value, str):
            assert value == cell
        else:
            assert cell in (str(value), str(int(value)))


def carried_by_shards(cells: list[str | None], shard_rows: int) -> list[Any]:
    """What readers find of a carried column of these cells."""
    columns = CarriedColumns()
    table = columns.rename(cells_table(pa.table({"x": pa.array(cells, pa.string())})))
    rows = [TableRow(table, position) for position in range(len(cells))]
    shards = [rows[start : start + shard_rows] for start in range(0, len(rows), shard_rows)]
    written = [columns.join(shard) for shard in shards]
    read = [conform(one, columns.schema, num_rows=len(s)) for one, s in zip(written, shards, strict=True)]
    values: list[Any] = pa.concat_tables(read)["x"].to_pylist()
    return values


def test_csv_beside_parquet_and_jsonl_gives_columns_that_hold_all(tmp_path: Path) -> None:
    rows = tmp_path / "a.csv"
    rows.write_text("prompt,n,f,s,d\np,1,1,x,2026-01-02\np,2,1.5,007,\n")
    pq.write_table(
        pa.table({"prompt": ["p"], "n": pa.array([3], pa.int32()), "f": [0.5], "s": ["y"], "d": ["2026-01-03"]}),
        tmp_path / "b.parquet",
    )
    lines = write_lines(tmp_path / "c.jsonl", {"prompt": "p", "n": 4, "f": 2, "s": 8})
    found = carried_in(tmp_path, str(rows), str(tmp_path / "b.parquet"), lines, shard_rows=100)
    assert found == {
        "n": [1, 2, 3, 4],
        "f": [1.0, 1.5, 0.5, 2.0],
        "s": ["x", "007", "y", "8"],
        "d": ["2026-01-02", None, "2026-01-03", None],
    }


def test_validate_counts_rows_and_not_lines_and_names_the_bad_one(run: Run, workplace: Path) -> None:
    (workplace / "tickets.csv").write_text('prompt,n\n"a\n\nb",1\nc\n"d\n",3\n')
    code, out, _ = run("validate tickets.csv --model m")
    assert code == 1
    assert "Rows     3 = 2 ok + 1 bad" in out
    assert "tickets.csv: row 2: the row has 1 cell, the header 2" in out


def test_file_of_odd_rows_makes_no_job(run: Run, workplace: Path) -> None:
    (workplace / "odd.csv").write_text("prompt,n\n" + "one, two, three\n" * 5)
    code, out, err = run("submit odd.csv --model m --broker redis://127.0.0.1:1/0")
    assert code != 0
    code, out, err = run("validate odd.csv --model m")
    assert (code, "odd.csv: row 1: the row has 3 cells, the header 2" in out + err) == (2, True)


fragments = st.sampled_from(
    [b"prompt", b",", b'"', b"\n", b"\r", b'""', b"x", b"1", b"\xff", "é€".encode(), b"\0", b"\xef\xbb\xbf", b" "]
)


@given(st.lists(fragments, max_size=14))
def test_whatever_bytes_are_rows_or_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "in.csv"
    path.write_bytes(b"".join(pieces))
    batches: list[TableBatch] = []
    refusal = ""
    try:
        batches = read(path)
    except InputError as exc:
        refusal = str(exc)
    assert bool(batches) != refusal.startswith(f"{path}: ")
    numbers = [number for batch in batches for number in batch.origin.numbers]
    assert numbers == list(range(1, len(numbers) + 1))
    for batch in batches:
        assert batch.table.num_rows == len(batch.origin.numbers)
        batch.table.validate(full=True)
        assert all(0 <= position < batch.table.num_rows for position in batch.broken)
