"""SQL over the results of jobs: it answers, and can do nothing else."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batcher.manage.finish import finalize
from tests.support.job_files import failed, finished_job, make_job, ok, write_chunk, write_part
from tests.unit.conftest import Run


def test_query_answers_of_a_job_and_of_several(run: Run, workplace: Path) -> None:
    finished_job(workplace / "a")
    write_chunk(make_job(workplace / "b", (3,)), 0, [ok(0), failed(1)])

    assert run('query a "select status, count(*) as n from results group by all order by 1"')[1] == (
        "status\tn\nerror\t2\nok\t5\n"
    )
    assert run('query x=a y=b "select count(*) as n from x join y using (custom_id, index)" --json')[1] == '{"n": 2}\n'
    assert json.loads(run("query a \"select topic, tags from results where row = 2\" --json")[1]) == {
        "topic": "topic-2", "tags": ["a", "2"],
    }  # fmt: skip


def test_answer_becomes_a_file(run: Run, workplace: Path) -> None:
    finished_job(workplace / "a")

    assert run("query a 'select row, text from results order by row' -o out.csv")[1] == "out.csv: 7 rows\n"
    assert run("query a 'select row, created from results' -o out.parquet")[0] == 0

    with (workplace / "out.csv").open(newline="") as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["0", "1", "2", "3", "3", "4", "5"]
    assert pq.read_table(workplace / "out.parquet").column_names == ["row", "created"]
    assert "exists; --force replaces it" in run("query a 'select 1' -o out.csv")[2]


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("select * from '/etc/passwd'", "does not exist"),
        ("select * from read_csv('/etc/passwd')", "disabled by configuration"),
        ("copy results to 'stolen.csv'", "must be one SELECT, and is COPY"),
        ("attach 'other.db'", "must be one SELECT, and is ATTACH"),
        ("drop view results", "must be one SELECT, and is DROP"),
        ("set memory_limit = '9GB'", "must be one SELECT, and is SET"),
        ("select 1; select 2", "must be one SELECT, and is SELECT, SELECT"),
        ("", "must be one SELECT, and is none"),
        ("select nope from results", "nope"),
        ("selec 1", "syntax error"),
    ],
)
def test_query_can_do_nothing_but_read_these_jobs(run: Run, workplace: Path, sql: str, problem: str) -> None:
    finished_job(workplace / "a")

    code, out, err = run(f'query a "{sql}"')

    assert (code, out) == (2, "")
    assert problem in err
    assert not (workplace / "stolen.csv").exists()


def test_query_needs_a_job_and_a_name_for_each(run: Run, workplace: Path) -> None:
    finished_job(workplace / "a")

    assert "a job and a query are needed" in run("query a")[2]
    assert "two jobs have the same name" in run("query a a 'select 1'")[2]
    assert "two jobs have the same name" in run("query x=a X=a 'select 1'")[2]
    assert run("query nowhere 'select 1'")[0] == 2


@pytest.mark.parametrize("name", ["a b", "1a", "a-b", ""])
def test_name_that_no_table_can_have_is_refused_with_those_that_can(run: Run, workplace: Path, name: str) -> None:
    """But a path of a job may have the sign in it."""
    finished_job(workplace / "a")
    finished_job(workplace / f"{name}=b")

    code, _, err = run(f"query '{name}=a' 'select 1'")

    assert code == 2
    assert f"{name!r} is no name for a table: letters, digits and _ make one" in err
    assert run(f"query '{name}=b' 'select count(*) as n from results' --json")[1] == '{"n": 7}\n'


def test_columns_of_one_name_are_all_there_in_each_kind_of_answer(run: Run, workplace: Path) -> None:
    finished_job(workplace / "a")
    query = "query a \"select 'x' as a, 'y' as a, 'z' as a_2 from results where row = 0\""

    assert json.loads(run(f"{query} --json")[1]) == {"a": "x", "a_3": "y", "a_2": "z"}
    assert run(query)[1] == "a\ta_3\ta_2\nx\ty\tz\n"
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        assert run(f"{query} -o {name}")[0] == 0
    assert (workplace / "out.csv").read_text() == '"a","a_3","a_2"\n"x","y","z"\n'
    assert json.loads((workplace / "out.jsonl").read_text()) == {"a": "x", "a_3": "y", "a_2": "z"}
    assert pq.read_table(workplace / "out.parquet").to_pylist() == [{"a": "x", "a_3": "y", "a_2": "z"}]


def test_value_that_cannot_be_is_told_wherever_the_answer_goes(run: Run, workplace: Path) -> None:
    """Given a query that fails at a row far behind, when its answer becomes a file, then the query is blamed for it."""
    finished_job(workplace / "a")
    late = "select case when i > 300000 then cast('x' || i as int) else 1 end as v from range(400000) t(i)"

    shown, written = run(f'query a "{late}" --limit 1000000'), run(f'query a "{late}" -o out.csv')

    for code, _, err in (shown, written):
        assert code == 2
        assert err.startswith("Error: query: Conversion Error: Could not convert string 'x300001'")
    assert not (workplace / "out.csv").exists()


@pytest.mark.parametrize("sql", ["select * from results", "select sum(row) from results"])
def test_damaged_part_is_named_with_its_remedy(run: Run, workplace: Path, sql: str) -> None:
    """Whether it is met while the answer is read, or before its first row."""
    job = make_job(workplace / "a", (1,) * 40)
    for shard in range(40):
        write_part(job, shard, [ok(shard)])
    assert finalize(job) is not None
    part = job.part_path(30)
    data = bytearray(part.read_bytes())
    data[4:400] = bytes(396)
    part.write_bytes(data)

    code, _, err = run(f'query a "{sql}"')

    assert code == 3
    assert f"{part}: cannot read" in err
    assert "`batcher resume" in err
