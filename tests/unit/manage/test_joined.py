"""Answers joined to the input that they are of: a table comes out as it went in, with a column more."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batcher
from batcher import constraints
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.manage.differences import diff
from batcher.manage.export import FileKind, export
from batcher.manage.finish import finalize
from batcher.manage.joined import input_columns
from batcher.submission.planner import submit
from batcher.types import Constraint, SamplingParams
from tests.support.completing import complete
from tests.support.job_files import finished_job, make_job, ok, write_chunk
from tests.support.manual_engine import ManualEngine
from tests.support.submitted import make_options, write_lines
from tests.unit.conftest import Run

#: With what a name can be: one of ours, one that comes before it, one with a comma.
TICKETS = (
    "text,ticket_id,input_model,model_year,row,prompt,lang\n"
    '"It crashes\nat start",T-007,a,2001,9,"Say ""hi""",en\n'
    "Too slow,T-01,b,1999,8,Second,\n"
    "Absturz,T-3,,2020,7,Third,de\n"
)


def engine_of(answer: str) -> ManualEngine:
    """It answers everything with this."""
    return ManualEngine(lambda request: answer)


def job_of(source: str, folder: Path, *, engine: ManualEngine | None = None, **changes: Any) -> JobDir:
    """The job of an input, complete."""
    job = JobDir(folder)
    submit(job, [source], make_options(**changes))
    complete(job, engine or ManualEngine())
    return JobDir.open(folder)


@pytest.fixture
def tickets(tmp_path: Path) -> str:
    path = tmp_path / "tickets.csv"
    path.write_text(TICKETS, encoding="utf-8")
    return str(path)


def cells(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize(
    "changes",
    [
        {"id_column": "ticket_id"},
        {},
        {"id_column": "ticket_id", "prompt_column": "text"},
        {"prompt_column": "text", "chat": True, "system": "Be brief."},
        {"template": "Summarize: {text}", "id_column": "ticket_id", "shard_rows": 1},
    ],
)
def test_table_comes_out_as_it_went_in_with_the_answer_behind(
    tmp_path: Path, tickets: str, changes: dict[str, Any]
) -> None:
    """Whichever columns were the id and the prompt, and whatever the results call them."""
    job = job_of(tickets, tmp_path / "job", **changes)

    export(job, tmp_path / "out.csv", output_column="answer")

    went_in, came_out = list(csv.reader(io.StringIO(TICKETS))), cells(tmp_path / "out.csv")
    assert [line[:-1] for line in came_out] == went_in
    assert came_out[0][-1] == "answer"
    assert all(line[-1] for line in came_out[1:])


def test_refused_rows_keep_their_place_and_have_no_answer(tmp_path: Path) -> None:
    """Given a row that is refused, whose part comes last, when the job is exported, then it stands where it stood."""
    source = write_lines(tmp_path / "in.jsonl", *({"prompt": "x", "n": i, "id": f"i{i}"} for i in range(40)))
    lines = Path(source).read_text().splitlines()
    lines[5] = json.dumps({"prompt": "x", "n": 5, "id": "i5", "temperature": 9})
    Path(source).write_text("\n".join(lines))
    job = job_of(source, tmp_path / "job", id_column="id")

    assert export(job, tmp_path / "out.jsonl", columns="status", output_column="answer") == 40

    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["n"] for row in rows] == list(range(40))
    assert list(rows[0]) == ["id", "prompt", "n", "status", "answer"]
    assert (rows[5]["id"], rows[5]["status"], rows[5]["answer"]) == ("i5", "error", None)


def test_results_that_are_asked_for_stand_behind_the_input(tmp_path: Path, tickets: str) -> None:
    """A column of the input that has the name of one of them is told from it as in the results."""
    job = job_of(tickets, tmp_path / "job", id_column="ticket_id")

    export(job, tmp_path / "out.csv", columns="text,finish_reason,lang")
    export(job, tmp_path / "out.parquet", columns="row,completion_tokens", output_column="answer")

    assert cells(tmp_path / "out.csv")[0] == [
        *("input_text", "ticket_id", "input_model", "model_year", "row", "prompt", "lang", "text", "finish_reason")
    ]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == [
        *("text", "ticket_id", "input_model", "model_year", "input_row", "prompt", "lang"),
        *("row", "completion_tokens", "answer"),
    ]
    assert (table["input_row"].to_pylist(), table["row"].to_pylist()) == ([9, 8, 7], [0, 1, 2])
    assert table.schema.field("model_year").type == pa.int64()


def test_answer_is_what_the_job_has_of_output_and_label(tmp_path: Path) -> None:
    params = SamplingParams(constraint=constraints.choice(["good", "bad"]))
    job = make_job(tmp_path / "job", (1,), params=params)
    write_chunk(job, 0, [ok(0, text="good")])

    export(job, tmp_path / "out.csv", output_column="verdict", partial=True)

    # Cut off as it is, the text is none of the labels.
    assert cells(tmp_path / "out.csv") == [
        ["custom_id", "topic", "tags", "verdict"],
        ["id-0", "topic-0", '["a", "0"]', ""],
    ]


@pytest.mark.parametrize("named", [("label",), ("output",), ("label", "output"), ("input_output", "label", "output")])
@pytest.mark.parametrize(
    ("constraint", "text", "column", "answer"),
    [
        (None, "good", "text", "good"),
        (constraints.choice(["good", "bad"]), "good", "label", "good"),
        (constraints.json_schema({"const": "good"}), '"good"', "output", "good"),
    ],
)
def test_column_of_the_input_is_never_taken_for_the_answer(
    tmp_path: Path, named: tuple[str, ...], constraint: Constraint | None, text: str, column: str, answer: str
) -> None:
    """Whatever it is called, and whatever kind of answer the job has: export and diff both have the job's own."""
    source = tmp_path / "in.csv"
    source.write_text(",".join(["prompt", *named]) + "\n" + ",".join(["Well?", *(f"my {name}" for name in named)]))
    params = SamplingParams(constraint=constraint)
    job, other = (
        job_of(str(source), tmp_path / name, engine=engine_of(said), params=params)
        for name, said in (("a", text), ("b", "else"))
    )

    export(job, tmp_path / "out.csv", output_column="answer")

    assert cells(tmp_path / "out.csv") == [
        ["prompt", *named, "answer"],
        ["Well?", *(f"my {name}" for name in named), answer],
    ]
    found = diff(job, other)
    assert (found.column, found.num_changed) == (column, 1)


def test_answer_cannot_have_the_name_of_another_column(tmp_path: Path, tickets: str) -> None:
    job = job_of(tickets, tmp_path / "job")

    with pytest.raises(InputError, match="the input has a column 'text' itself; give the answer another name"):
        export(job, tmp_path / "out.csv", output_column="text")
    with pytest.raises(InputError, match="the columns have 'status' already; give the answer another name"):
        export(job, tmp_path / "out.csv", columns="row,status", output_column="status")
    with pytest.raises(InputError, match="columns: there is no column 'txt'; did you mean text"):
        export(job, tmp_path / "out.csv", columns="txt")
    for nothing in ("", " "):
        with pytest.raises(InputError, match="the column of the answers has no name"):
            export(job, tmp_path / "out.csv", output_column=nothing)
    assert not (tmp_path / "out.csv").exists()


def test_job_that_did_not_note_its_columns_gives_those_that_it_has(tmp_path: Path, tickets: str) -> None:
    job = job_of(tickets, tmp_path / "job", template="{text}")
    older = replace(job.manifest, columns=())

    assert [(column.name, column.column) for column in input_columns(older)] == [
        *(("custom_id", "custom_id"), ("ticket_id", "ticket_id"), ("model", "input_model")),
        *(("model_year", "model_year"), ("lang", "lang"), ("text", "input_text"), ("row", "input_row")),
        ("prompt", "input_prompt"),
    ]


def test_column_that_the_results_call_otherwise_is_named_wherever_one_asks_for_it(
    run: Run, tmp_path: Path, tickets: str
) -> None:
    job_of(tickets, tmp_path / "job", id_column="ticket_id", prompt_column="text")

    for line in (
        "results job --columns ticket_id",
        "results job --columns row,Ticket_ID",
        "results job --where \"ticket_id = 'T-01'\"",
        "retry job --where \"ticket_id = 'T-01'\"",
        "export job -o out.csv --columns ticket_id",
        "diff job job --column ticket_id",
    ):
        code, _, err = run(line)
        assert code == 2
        assert "; it is called custom_id here" in err
    results = batcher.open(tmp_path / "job").results()
    with pytest.raises(InputError, match="no column 'ticket_id'; it is called custom_id here"):
        results.to_table(["ticket_id"])
    with pytest.raises(InputError, match="no column 'ticket_id'; it is called custom_id here"):
        batcher.open(tmp_path / "job").results(where="ticket_id = 'T-01'")


def test_stream_gets_any_kind_of_file(tmp_path: Path) -> None:
    job = finished_job(tmp_path / "job")
    lines, table, parquet = io.BytesIO(), io.BytesIO(), io.BytesIO()

    assert export(job, lines) == 6
    assert export(job, table, kind=FileKind.CSV, output_column="answer") == 7
    assert export(job, parquet, kind=FileKind.PARQUET) == 7

    assert len(lines.getvalue().splitlines()) == 6
    assert table.getvalue().splitlines()[0] == b'"custom_id","topic","tags","answer"'
    assert pq.read_table(pa.BufferReader(parquet.getvalue())).num_rows == 7
    assert finalize(job) is not None
