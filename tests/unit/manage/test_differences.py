"""Two jobs beside each other: what is equal, what changed, what only one of them has."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

import batcher
from batcher import constraints
from batcher.cli import diff as diff_cli
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.manage.differences import Pair, diff
from batcher.types import Completion, SamplingParams
from tests.support.job_files import answered, failed, make_job, ok, write_chunk, write_part
from tests.unit.conftest import Run


def renamed(completion: Completion, custom_id: str) -> Completion:
    return replace(completion, request=replace(completion.request, custom_id=custom_id))


def job_of(path: Path, *completions: Completion, params: SamplingParams | None = None) -> JobDir:
    """A job of one shard with these results, those of an `n` too."""
    job = make_job(path, (len({completion.request.row for completion in completions}),), params=params)
    write_part(job, 0, completions)
    return job


def test_rows_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    """Given answers that are equal, others, errors, and rows of one job, when compared, then each counts once."""
    a = job_of(tmp_path / "a", ok(0), ok(1), failed(2), failed(3), ok(4, num_choices=2), ok(5), tokens_of(ok(6), 9))
    b = job_of(tmp_path / "b", ok(0), ok(1, text="new"), ok(2), failed(3), ok(4), ok(6), ok(7), ok(8))

    found = diff(a, b)

    assert (found.num_equal, found.num_changed, found.num_only_a, found.num_only_b) == (4, 2, 2, 2)
    assert found.statuses == (Pair("error", "ok", 1),)
    assert found.changed.column_names == ["custom_id", "row", "index", "a", "b", "status_a", "status_b"]
    assert [tuple(row.values()) for row in found.changed.to_pylist()] == [
        ("id-1", 1, 0, "text 1.0", "new 1.0", "ok", "ok"),
        ("id-2", 2, 0, None, "text 2.0", "error", "ok"),
    ]
    assert (found.column, found.key, found.labels) == ("text", "custom_id", ())
    assert (found.tokens_a.mean, found.tokens_a.median, found.tokens_b.mean) == (4.0, 3.0, 3.0)


def tokens_of(completion: Completion, number: int) -> Completion:
    choices = tuple(replace(each, usage=replace(each.usage, completion_tokens=number)) for each in completion.choices)
    return replace(completion, choices=choices)


def test_rows_are_found_by_their_ids_wherever_they_stand_and_else_by_their_place(tmp_path: Path) -> None:
    a = job_of(tmp_path / "a", ok(0), ok(1))
    other_order = job_of(tmp_path / "b", renamed(ok(0), "id-1"), renamed(ok(1), "id-0"))
    other_ids = job_of(tmp_path / "c", renamed(ok(0), "x"), renamed(ok(1, text="new"), "y"))

    assert [(row["a"], row["b"]) for row in diff(a, other_order).changed.to_pylist()] == [
        ("text 0.0", "text 1.0"), ("text 1.0", "text 0.0"),
    ]  # fmt: skip
    by_row = diff(a, other_ids)
    assert (by_row.key, by_row.num_equal, by_row.num_changed) == ("row", 1, 1)
    assert by_row.changed["custom_id"].to_pylist() == ["id-1"]


def test_labels_are_a_table_of_what_became_what(tmp_path: Path) -> None:
    params = SamplingParams(constraint=constraints.choice(["good", "bad"]))
    a, b = (
        job_of(tmp_path / name, *(answered(row, text, params=params) for row, text in enumerate(texts)), params=params)
        for name, texts in (("a", ["good", "good", "bad", "bad"]), ("b", ["good", "bad", "bad", "bad"]))
    )

    found = diff(a, b)

    assert found.column == "label"
    assert found.labels == (Pair("bad", "bad", 2), Pair("good", "bad", 1), Pair("good", "good", 1))
    assert diff(a, b, column="text").num_changed == 1
    assert diff(a, b, column="finish_reason").num_changed == 0


def test_fields_and_columns_of_any_type_are_compared_as_text(tmp_path: Path) -> None:
    a = job_of(tmp_path / "a", ok(0), ok(1))
    b = job_of(tmp_path / "b", ok(0), ok(1, cached=2))

    assert diff(a, b, column="tags").num_equal == 2
    assert diff(a, b, column="cached_tokens").changed["b"].to_pylist() == ["2"]
    with pytest.raises(InputError, match=r"^a: column: there is no column 'txt'; did you mean text"):
        diff(a, b, column="txt")
    with pytest.raises(InputError, match=r"^a: column: 'custom_id,text' are several; one is compared"):
        diff(a, b, column="custom_id,text")
    with pytest.raises(InputError, match=r"^a: column: no column is named"):
        diff(a, b, column=",")


def test_running_jobs_are_compared_as_far_as_they_are(tmp_path: Path) -> None:
    a, b = job_of(tmp_path / "a", ok(0), ok(1)), make_job(tmp_path / "b", (2,))
    nothing = diff(a, b)
    write_chunk(b, 0, [ok(1)])

    assert (nothing.num_only_a, nothing.num_only_b, nothing.num_changed, nothing.labels) == (2, 0, 0, ())
    assert nothing.tokens_b.mean is None
    assert (diff(a, b).num_only_a, diff(a, b).num_equal) == (1, 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), unique_by=lambda row: row[0], min_size=1),
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), unique_by=lambda row: row[0], min_size=1),
)
def test_counts_are_those_of_python(
    tmp_path_factory: pytest.TempPathFactory, left: list[tuple[int, str]], right: list[tuple[int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("jobs")
    mine, theirs = dict(left), dict(right)
    a, b = (
        job_of(folder / name, *(renamed(ok(row, text=f"{text} "), f"id-{row}") for row, text in sorted(rows.items())))
        for name, rows in (("a", mine), ("b", theirs))
    )

    found = diff(a, b)

    kinds = Counter(
        "only_a" if key not in theirs else "only_b" if key not in mine else str(mine[key] == theirs[key])
        for key in {*mine, *theirs}
    )
    if found.key == "custom_id":
        counts = (found.num_equal, found.num_changed, found.num_only_a, found.num_only_b)
        assert counts == tuple(kinds[kind] for kind in ("True", "False", "only_a", "only_b"))
    else:
        assert not {*mine} & {*theirs}


# -- as it is shown ---------------------------------------------------------------------------------------------------


def test_command_shows_counts_and_the_first_changed_side_by_side(run: Run, workplace: Path) -> None:
    job_of(workplace / "a", ok(0), ok(1), ok(2))
    job_of(workplace / "b", ok(0), ok(1, text="word " * 30), failed(2))

    code, out, err = run("diff a b --limit 1")

    assert (code, err) == (0, "")
    assert "Rows      1 equal, 2 changed\n" in out
    assert "Status    ok became error 1\n" in out
    assert "Compared  text, by custom_id\n" in out
    assert "[1] id-1\ntext 1.0" + " " * 40 + " | word word" in out
    assert "... and 1 more; --limit shows more of them, --json all.\n" in out


def test_command_shows_which_label_became_which(run: Run, workplace: Path) -> None:
    params = SamplingParams(constraint=constraints.choice(["good", "bad"]))
    for name, texts in (("a", ["good", "good", "bad"]), ("b", ["good", "bad", "bad"])):
        job_of(workplace / name, *(answered(i, text, params=params) for i, text in enumerate(texts)), params=params)

    out = run("diff a b")[1]

    assert "A \\ B  bad  good\nbad    1    0\ngood   1    1\n" in out


def test_json_has_all_of_it(run: Run, workplace: Path) -> None:
    job_of(workplace / "a", ok(0), ok(1))
    job_of(workplace / "b", ok(0), ok(1, text="new"))

    found = json.loads(run("diff a b --json")[1])

    assert list(found) == [
        "column", "key", "num_equal", "num_changed", "num_only_a", "num_only_b", "statuses", "labels", "tokens_a",
        "tokens_b", "changed",
    ]  # fmt: skip
    assert [row["b"] for row in found["changed"]] == ["new 1.0"]
    assert run("diff a b --column nope")[0] == run("diff a nowhere")[0] == 2


def test_python_has_the_same(workplace: Path) -> None:
    a, b = job_of(workplace / "a", ok(0)), job_of(workplace / "b", ok(0, text="new"))

    found = batcher.diff(batcher.Job(a), str(b.path))

    assert isinstance(found.changed, pa.Table)
    assert (found.num_changed, found) == (1, batcher.diff(a.path, b.path))


@given(st.text(max_size=80), st.text(max_size=80), st.integers(25, 90))
def test_sides_stay_beside_each_other_in_any_terminal(left: str, right: str, width: int) -> None:
    row = {"row": 3, "index": 1, "custom_id": left, "status_a": "ok", "status_b": "error", "a": left, "b": right}

    title, *lines = diff_cli._side_by_side(row, width).splitlines()

    assert title.startswith("[3.1]")
    assert max(cell_len(line) for line in (title, *lines)) <= width
