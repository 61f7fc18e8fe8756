"""Tables of any columns, through everything: validated, run, shown, exported. No value is lost, and nothing fails.

What a value is as JSON and as text is `test_values`; here it is the same at both ends.
"""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from batcher.arrow.plain import plain_table, plain_type
from batcher.arrow.values import json_text, json_values, text_values, unique_names
from batcher.cli.row_table import print_table
from batcher.cli.texts import print_rows, print_sample
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import RESULT_FIELDS
from batcher.manage.export import ExportFormat, export
from batcher.manage.finished import finished_tables, json_rows
from batcher.server.batches.outputs import make_outputs
from batcher.submission.carried import CarriedColumns
from batcher.submission.planner import submit
from batcher.submission.validation import validate
from tests.support.any_arrays import FOREIGN, LATER, LEAVES, NESTED, arrays, names
from tests.support.completing import complete
from tests.support.manual_engine import ManualEngine
from tests.support.submitted import make_options, rows_of, write_lines

NUM_ROWS = 3
PROMPTS = [f"p{row}" for row in range(NUM_ROWS)]

#: Each example is a whole job, so a failure is not made smaller by running hundreds more.
SLOW: Any = {
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}

engine = ManualEngine()


@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="any-") as path:
        yield Path(path)


def write_table(path: Path, columns: list[tuple[str, pa.Array]]) -> str:
    """A Parquet file with prompts and these columns, whose names need not differ."""
    everything = [("prompt", pa.array(PROMPTS)), *columns]
    arrays = [array for _, array in everything]
    pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _ in everything]), path)
    return str(path)


def is_a_field(name: str) -> bool:
    return name in ("custom_id", "prompt", "model", "stream", "max_tokens", "temperature", "top_p", "stop", "seed")


def check_everywhere(path: Path, columns: list[tuple[str, pa.Array]]) -> None:
    """Run a table with these columns and find its values again wherever they are shown."""
    source = write_table(path / "in.parquet", columns)
    report = validate([source], make_options())
    job = JobDir(path / "job")
    submit(job, [source], make_options())
    summary = complete(job, engine)
    assert (report.num_ok, summary.num_ok) == (NUM_ROWS, NUM_ROWS)

    given_names = unique_names(["prompt", *(name for name, _ in columns)])[1:]
    carried = CarriedColumns()
    renamed = carried.rename(plain_table(pa.Table.from_arrays([array for _, array in columns], names=given_names)))
    given_columns = dict(zip(renamed.column_names, [array for _, array in columns], strict=True))
    in_json = {name: json_values(array) for name, array in given_columns.items()}
    as_text = {name: [text or "" for text in text_values(array)] for name, array in given_columns.items()}

    # Parquet has no seconds and no dates of 64 bits; of the file they are what the results keep.
    in_file = [field.type for field in pq.ParquetFile(source).schema_arrow][1:]
    plain_types = [settled(plain_type(type_)) for type_ in in_file]
    export(job, path / "out.parquet")
    for table in (*finished_tables(job), pq.ParquetFile(path / "out.parquet").read()):
        assert table["text"].to_pylist() == [f"<{prompt}>" for prompt in PROMPTS]
        assert {name: json_values(table[name]) for name in in_json} == in_json
        assert [table[name].type for name in in_json] == plain_types
        shown = list(json_rows(table))
        assert {name: [row[name] for row in shown] for name in in_json} == in_json

    export(job, path / "out.jsonl")
    lines = [json.loads(line) for line in (path / "out.jsonl").read_text("utf-8").splitlines()]
    for name in in_json:
        key = name
        while key in ("choices", "usage", "error"):
            key = f"input_{key}"
        assert [line[key] for line in lines] == in_json[name]

    export(job, path / "out.csv")
    with (path / "out.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    for name, texts in as_text.items():
        cells = [row[header.index(name)] for row in rows]
        assert [as_number(cell) for cell in cells] == [as_number(text) for text in texts]

    assert export(job, path / "openai.jsonl", layout=ExportFormat.OPENAI) == NUM_ROWS
    assert make_outputs(job).output_bytes == (path / "openai.jsonl").stat().st_size
    print_sample(finished_tables(job), 5, if_none="")
    print_rows(finished_tables(job), None)
    for width in (40, None):
        print_table(finished_tables(job), None, width=width)


def settled(type_: pa.DataType) -> pa.DataType:
    """Of a column without any value strings are made, and lists of strings."""
    if pa.types.is_null(type_):
        return pa.string()
    return pa.list_(pa.string()) if type_ == pa.list_(pa.null()) else type_


def as_number(text: str) -> Any:
    """The CSV writer of Arrow has a way of its own with exponents."""
    try:
        number = float(text)
    except ValueError:
        return text
    return number if number == number else "nan"


@given(st.data(), st.lists(names.filter(lambda name: not is_a_field(name)), min_size=1, max_size=4))
@settings(max_examples=25, **SLOW)
def test_any_columns_come_out_as_they_went_in(data: st.DataObject, keys: list[str]) -> None:
    columns = [(key, data.draw(arrays(num_rows=NUM_ROWS))) for key in keys]
    with folder() as path:
        check_everywhere(path, columns)


@given(st.data())
@settings(max_examples=3, **SLOW)
def test_columns_of_all_types_at_once_come_out_as_they_went_in(data: st.DataObject) -> None:
    columns = [(f"c{i}", make(data.draw, NUM_ROWS, 2)) for i, make in enumerate(LEAVES + NESTED)]
    with folder() as path:
        check_everywhere(path, columns)


@given(st.data())
@settings(max_examples=60)
def test_what_parquet_cannot_hold_has_values_too(data: st.DataObject) -> None:
    array = data.draw(arrays(num_rows=NUM_ROWS, kinds=FOREIGN))
    plain = plain_table(pa.table({"x": array, "s": pa.StructArray.from_arrays([array], names=["y"])}))
    assert text_values(plain["x"]) == text_values(array)
    for start in range(NUM_ROWS):
        assert json_values(array.slice(start)) == json_values(array)[start:]
    sink = pa.BufferOutputStream()
    pq.write_table(plain, sink)
    # Not as Python's own, which has no times before the year 1 or after 9999.
    assert json_values(pq.read_table(sink.getvalue())["x"]) == json_values(plain["x"])


@given(st.data())
@settings(max_examples=30, **SLOW)
def test_any_column_can_be_in_a_template_and_be_an_id_or_is_refused_by_name(data: st.DataObject) -> None:
    array = data.draw(arrays(num_rows=NUM_ROWS, depth=1))
    texts = text_values(array)
    with folder() as path:
        source = write_table(path / "in.parquet", [("x", array)])
        job = JobDir(path / "job")
        submit(job, [source], make_options(template="<{x}>"))
        for row, text in zip(rows_of(job), texts, strict=True):
            if is_bytes(array.type):
                continue
            if text is None:
                assert row.error is not None
                assert row.error.message.endswith(": x is null; the template needs a value")
            else:
                assert row.request.prompts == (f"<{text}>",)
        try:
            report = validate([source], make_options(id_column="x"))
        except InputError as exc:
            problem = str(exc)
        else:
            problem = ""
            refusal = (
                "x is .*; use a non-empty string or a finite number|x is not UTF-8 text; write the column as UTF-8"
            )
            assert all(re.search(f": ({refusal})$", message) for message in report.bad)
        # What is said of the whole input is true.
        is_null = [text is None or text == "nan" for text in texts]
        assert not problem or "used twice" in problem or (all(is_null) and "no row has a value there" in problem)


def is_bytes(found: pa.DataType) -> bool:
    t = pa.types
    return bool(
        t.is_binary(found) or t.is_large_binary(found) or t.is_fixed_size_binary(found) or found == pa.binary_view()
    )


json_objects = st.dictionaries(
    names.filter(lambda name: not is_a_field(name) and name not in ("body", "messages")),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


@given(st.lists(json_objects, min_size=1, max_size=4))
@settings(max_examples=20, **SLOW)
def test_lines_with_any_keys_come_out_as_they_went_in(objects: list[dict[str, Any]]) -> None:
    with folder() as path:
        source = write_lines(path / "in.jsonl", *({**row, "prompt": "p"} for row in objects))
        job = JobDir(path / "job")
        submit(job, [source], make_options())
        complete(job, engine)
        export(job, path / "out.jsonl")
        export(job, path / "out.csv")
        export(job, path / "out.parquet")

        lines = [json.loads(line) for line in (path / "out.jsonl").read_text("utf-8").splitlines()]
        own = [name for name in job.manifest.carried.names if name not in RESULT_FIELDS.names]
        for row, line in zip(objects, lines, strict=True):
            left = [line[f"input_{name}" if name in ("choices", "usage", "error") else name] for name in own]
            assert all(any(is_same(value, found) for found in left) for value in row.values())


def is_same(value: Any, found: Any) -> bool:
    """As it was, as the double that it is, or as its text where rows disagree about the type."""
    if found == value:
        return True
    numbers = {json_text(float(value))} if type(value) is int else set()
    return isinstance(found, str) and (found in {json_text(value), *numbers} or _parsed(found) == value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


cell_names = names.filter(lambda name: not is_a_field(name) and name != "" and name == name.strip("\r\n\ufeff"))


@given(st.data(), st.lists(cell_names, min_size=1, max_size=3, unique=True))
@settings(max_examples=20, **SLOW)
def test_csv_with_any_text_comes_out_as_it_went_in(data: st.DataObject, keys: list[str]) -> None:
    texts = (
        st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["", "007", "1.0"])
    )
    columns = {key: data.draw(st.lists(texts, min_size=NUM_ROWS, max_size=NUM_ROWS)) for key in keys}
    with folder() as path:
        table = pa.table({"prompt": PROMPTS} | {key: pa.array(cells, pa.string()) for key, cells in columns.items()})
        pacsv.write_csv(table, path / "in.csv")
        job = JobDir(path / "job")
        submit(job, [str(path / "in.csv")], make_options())
        complete(job, engine)
        export(job, path / "out.jsonl")

        lines = [json.loads(line) for line in (path / "out.jsonl").read_text("utf-8").splitlines()]
        carried = CarriedColumns()
        for key, name in zip(keys, carried.rename(table.drop_columns("prompt")).column_names, strict=True):
            shown = f"input_{name}" if name in ("choices", "usage", "error") else name
            found = [json_text(line[shown]) for line in lines]
            # In a column of numbers there is no empty string.
            assert [cell or "" for cell in found] == [cell or "" for cell in columns[key]]


def test_strategies_have_every_type_of_arrow() -> None:
    """So that a type that pyarrow gains is noticed."""
    found: set[int] = set()

    def walk(type_: pa.DataType) -> None:
        found.add(type_.id)
        for i in range(type_.num_fields):
            walk(type_.field(i).type)

    @given(st.data())
    @settings(max_examples=1, **SLOW)
    def draw_each(data: st.DataObject) -> None:
        for make in LEAVES + NESTED + FOREIGN + LATER:
            walk(make(data.draw, 1, 1).type)

    draw_each()
    # These two are of no Python class, and pyarrow makes no array of them; pyarrow 21 doesn't name them either.
    without_array = {"Type_INTERVAL_MONTHS", "Type_INTERVAL_DAY_TIME"}
    known = {name: getattr(pa.lib, name) for name in dir(pa.lib) if name.startswith("Type_")}
    assert {name for name, id_ in known.items() if id_ not in found} <= without_array


def test_extension_types_of_arrow_are_all_known() -> None:
    """Each has a rule in docs/values.md, if only that it is its storage."""
    kinds = {
        name
        for name, value in vars(pa.lib).items()
        if isinstance(value, type) and issubclass(value, pa.BaseExtensionType)
    }
    assert kinds == {
        *("BaseExtensionType", "ExtensionType", "UnknownExtensionType"),
        *("UuidType", "JsonType", "Bool8Type", "FixedShapeTensorType", "OpaqueType"),
    }
