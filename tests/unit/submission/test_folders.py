"""Folders as input, their names as columns, and where a row came from."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError, JobError
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from batcher.submission.readers.files import ReadOptions
from batcher.submission.readers.paths import expand
from batcher.submission.validation import validate
from tests.support.submitted import carried_rows, make_options, rows_of, write_lines
from tests.unit.conftest import Run


def write_table(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_spark_folder(folder: Path) -> None:
    """Parquet in partitions, as Spark writes it."""
    for lang, day, texts in (
        ("de", "01", ["a", "b"]),
        ("en", "02", ["c"]),
        ("__HIVE_DEFAULT_PARTITION__", "10", ["d"]),
    ):
        part = folder / f"lang={lang}" / f"day={day}" / "part-00000-1f.c000.snappy.parquet"
        write_table(part, prompt=texts)
        (part.parent / f".{part.name}.crc").write_bytes(b"crc\0")
    (folder / "_SUCCESS").touch()
    (folder / "._SUCCESS.crc").write_bytes(b"crc\0")
    (folder / "_temporary" / "0").mkdir(parents=True)
    (folder / "_temporary" / "0" / "part-0.parquet").write_bytes(b"half")


def names(inputs: list[str], root: Path) -> list[str]:
    return [os.path.relpath(file.name, root) for file in expand(inputs)]


def job_of(tmp_path: Path, *inputs: str, name: str = "job", **options: Any) -> JobDir:
    job = JobDir(tmp_path / name)
    submit(job, inputs, make_options(**options))
    return job


# -- which files ------------------------------------------------------------------------------------------------------


def test_folder_as_spark_lays_it_out_runs(run: Run, workplace: Path) -> None:
    write_spark_folder(workplace / "in")
    code, out, _ = run("validate in --model m --template '{lang} {day}: {prompt}' --json")
    report = json.loads(out)
    assert code == 1
    assert (report["num_rows"], report["num_ok"]) == (4, 3)
    assert report["bad"] == [
        "in/lang=__HIVE_DEFAULT_PARTITION__/day=10/part-00000-1f.c000.snappy.parquet: row 1: "
        "lang is null; the template needs a value"
    ]
    job = job_of(workplace, "in", template="{day}: {prompt}")
    assert [row.request.prompts[0] for row in rows_of(job)] == ["10: d", "1: a", "1: b", "2: c"]
    assert carried_rows(job).select(["lang", "day"]).to_pydict() == {
        "lang": [None, "de", "de", "en"],
        "day": [10, 1, 1, 2],
    }


def test_files_come_in_order_of_their_folders_and_names(tmp_path: Path) -> None:
    for name in ("b/1.jsonl", "a/2.csv", "a/10.ndjson.gz", "a-b/0.parquet", "c.json", "a/x/y/z.tsv.zst"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("_x/1.jsonl", ".x/1.jsonl", "a/_x.jsonl", "a/.x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no JSON")
    assert names([str(tmp_path)], tmp_path) == [
        *("a/10.ndjson.gz", "a/2.csv", "a/x/y/z.tsv.zst", "a-b/0.parquet", "b/1.jsonl", "c.json")
    ]


def test_files_without_a_suffix_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    write_lines(tmp_path / "part-00000", {"prompt": "a"})
    write_table(tmp_path / "part-00001", prompt=["b"])
    assert [row.request.prompts[0] for row in rows_of(job_of(tmp_path.parent, str(tmp_path), name="out"))] == ["a", "b"]
    (tmp_path / "LICENSE").write_text("You may ...")
    with pytest.raises(InputError, match=r"LICENSE: its name does not say what it holds"):
        expand([str(tmp_path)])


@pytest.mark.parametrize(
    ("other", "problem"), [("README.md", "its name does not say"), ("b.jsonl.bz2", "bzip2 is not")]
)
def test_file_that_cannot_be_read_refuses_its_folder_and_the_remedies_hold(
    tmp_path: Path, other: str, problem: str
) -> None:
    write_table(tmp_path / "lang=de" / "a.parquet", prompt=["p"])
    (tmp_path / other).write_text("text")
    with pytest.raises(InputError) as caught:
        expand([str(tmp_path)])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/{other}: {problem}")
    pattern = message.rpartition("as in ")[2].strip("'")
    [file] = expand([pattern])
    assert (file.name, dict(file.columns)) == (f"{tmp_path}/lang=de/a.parquet", {"lang": "de"})
    (tmp_path / other).rename(tmp_path / f"_{other}")
    assert names([str(tmp_path)], tmp_path) == ["lang=de/a.parquet"]


def test_links_are_followed_and_those_that_lead_around_are_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write_lines(tmp_path / "real.jsonl", {"prompt": "p"})
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    write_lines(tmp_path / "elsewhere" / "x.jsonl", {"prompt": "p"})
    (folder / "file.jsonl").symlink_to(tmp_path / "real.jsonl")
    (folder / "around").symlink_to(folder)
    assert names([str(folder)], folder) == ["file.jsonl", "linked/x.jsonl"]
    (folder / "dangling.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"dangling\.jsonl: no such file"):
        expand([str(folder)])


def test_star_stands_for_no_name_with_an_underscore_unless_it_is_written(tmp_path: Path) -> None:
    write_spark_folder(tmp_path)
    assert len(names([f"{tmp_path}/*/*/*"], tmp_path)) == 3
    assert names([f"{tmp_path}/_S*"], tmp_path) == ["_SUCCESS"]


def test_job_directory_is_told_from_a_folder_of_rows_and_its_results_are_taken(run: Run, workplace: Path) -> None:
    (workplace / "data").mkdir()
    write_lines(workplace / "data" / "a.jsonl", {"prompt": "p"})
    job = JobDir(workplace / "data" / "out")
    options = make_options()
    manifest = submit(job, ["data"], options).manifest
    # The same command again finds its job, which lies among its input.
    assert submit(job, ["data"], options).manifest == manifest
    with pytest.raises(InputError, match=r"data/out: is the directory of a job; .* name data/out/results and say"):
        expand(["data/out"])
    with pytest.raises(InputError, match="data: is the input and also where the job would be written"):
        submit(JobDir(workplace / "data"), ["data"], options)
    # The folder of a submit that was killed has no manifest yet.
    job.manifest_path.unlink()
    submit(job, ["data"], options)
    results = workplace / "data" / "out" / "results"
    results.mkdir(exist_ok=True)
    write_table(results / "part-00000.parquet", row=[0], prompt=["p"], text=["answer"], model=["tiny"])
    (results / "_SUCCESS").touch()
    [row] = rows_of(job_of(workplace, "data/out/results", name="next", prompt_column="text"))
    assert row.request.prompts == ("answer",)


# -- columns ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.sampled_from(["1", "01", "-7", "x", "", "1.5", "__HIVE_DEFAULT_PARTITION__", "ä/=%", "9" * 18, "9" * 20]),
        min_size=1,
        max_size=4,
    )
)
def test_values_of_folders_are_integers_where_all_are_and_text_where_not(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    root = tmp_path_factory.mktemp("hive")
    for i, value in enumerate(values):
        path = root / f"n={i}" / f"k%20={quote(value, safe='')}" / "a.jsonl"
        path.parent.mkdir(parents=True)
        path.touch()
    found = [file.columns["k "] for file in expand([str(root)])]
    filled = [value for value in values if value != "__HIVE_DEFAULT_PARTITION__"]
    are_integers = all(value.lstrip("-").isdecimal() and len(value) < 19 for value in filled)
    expected = [None if v == "__HIVE_DEFAULT_PARTITION__" else int(v) if are_integers else v for v in values]
    assert found == expected


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_of_folders_are_like_those_of_the_file_and_own_ones_go_before(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in" / "max_tokens=3" / "lang=de" / "x=1"
    folder.mkdir(parents=True)
    if kind == "jsonl":
        write_lines(folder / "a.jsonl", {"prompt": "p"}, {"prompt": "q", "lang": "en"}, b"{broken")
    elif kind == "csv":
        (folder / "a.csv").write_text("prompt,lang\np,de\nq,en\nbroken\n")
    else:
        write_table(folder / "a.parquet", prompt=["p", "q", None], lang=["de", "en", None])

    job = job_of(tmp_path, str(tmp_path / "in"), reading=ReadOptions(file_column="file"))

    rows = rows_of(job)
    assert [row.error is None for row in rows] == [True, True, False]
    assert [row.request.params.max_tokens for row in rows[:2]] == [3, 3]
    carried = carried_rows(job)
    assert carried["lang"].to_pylist() == ["de", "en", "de" if kind == "jsonl" else None]
    assert carried["x"].to_pylist() == [1, 1, 1]
    assert carried["file"].to_pylist() == [f"{folder}/a.{kind}"] * 3


def test_name_of_the_file_column_must_be_free(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", {"prompt": "p", "src": "mine"}, {"prompt": "q"})
    job = job_of(tmp_path, lines, reading=ReadOptions(file_column="src"))
    bad, good = rows_of(job)
    assert good.error is None
    assert bad.error is not None
    assert f"{lines}:1: has a key 'src', which would get the file's path" in bad.error.message
    assert carried_rows(job)["src"].to_pylist() == ["mine", lines]
    write_table(tmp_path / "k=1" / "a.parquet", prompt=["p"], src=["mine"])
    for name, problem in (
        ("src", "a.parquet has a column of this name"),
        ("k", "give a column of this name"),
        ("prompt", "that column is a field of the request"),
        ("id", "that column is a field of the request"),
    ):
        options = make_options(id_column="id" if name == "id" else None, reading=ReadOptions(file_column=name))
        with pytest.raises(InputError, match=f"^--file-column {name}: .*{problem}"):
            validate([str(tmp_path / "k=1")], options)


def test_same_command_finds_its_job_and_other_folders_are_another_input(tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", {"prompt": "p"})
    for lang in ("de", "en"):
        folder = tmp_path / lang / f"lang={lang}"
        folder.mkdir(parents=True)
        write_lines(folder / "a.jsonl", {"prompt": "p"})
    job = JobDir(tmp_path / "job")
    manifest = submit(job, [str(tmp_path / "de")], make_options()).manifest
    assert submit(job, [str(tmp_path / "de")], make_options()).manifest == manifest
    with pytest.raises(JobError, match="with other input;"):
        submit(job, [str(tmp_path / "en")], make_options())
    with pytest.raises(JobError, match="with other input and options;"):
        submit(job, [str(tmp_path / "de")], make_options(reading=ReadOptions(file_column="file")))


# -- odd names --------------------------------------------------------------------------------------------------------


def test_names_that_are_no_utf8_are_shown_and_carried_as_text(run: Run, workplace: Path) -> None:
    folder = Path(os.fsdecode(b"caf\xe9=\xff"))
    folder.mkdir()
    file = folder / os.fsdecode(b"\xe9.jsonl")
    file.write_text('{"prompt": "p"}\nbroken\n')
    job = JobDir(workplace / "job")
    manifest = submit(job, [str(folder)], make_options(reading=ReadOptions(file_column="file"))).manifest
    assert manifest.inputs == (r"caf\xe9=\xff",)
    assert JobDir.open(job.path).manifest == manifest
    bad = rows_of(job)[1].error
    assert bad is not None
    assert bad.message.startswith(r"caf\xe9=\xff/\xe9.jsonl:2: not JSON")
    assert carried_rows(job).to_pydict() == {r"caf\xe9": [r"\xff"] * 2, "file": [r"caf\xe9=\xff/\xe9.jsonl"] * 2}
    for inputs in ([str(folder)], [str(file)], [f"{folder}/*"]):
        quoted = " ".join(f"'{name}'" for name in inputs)
        code, out, _ = run(f"validate {quoted} --model m")
        assert code == 1
        assert r"caf\xe9=\xff/\xe9.jsonl:2: not JSON" in out


@pytest.mark.parametrize("name", [b"\xe9.jsonl", b"\xe9*.jsonl", b"\xe9.csv", b"\xe9.parquet", b"\xe9"])
@pytest.mark.parametrize("content", [None, b"", b"[\n{}]", b"PAR1", b"a;b\n1;2\n"])
def test_messages_about_odd_names_can_be_printed(run: Run, workplace: Path, name: bytes, content: bytes | None) -> None:
    path = Path(os.fsdecode(name))
    if content is not None:
        path.write_bytes(content)
    code, _, err = run(f"validate '{path}' --model m")
    assert code == 2 or (content == b"a;b\n1;2\n" and code == 1)
    assert code == 1 or r"\xe9" in err
    assert "Traceback" not in err


def test_file_called_dash_is_not_standard_input(workplace: Path) -> None:
    write_lines(workplace / "-", {"prompt": "p"})
    assert [file.name for file in expand(["."])] == ["./-"]
    assert len(rows_of(job_of(workplace, "./-"))) == 1
