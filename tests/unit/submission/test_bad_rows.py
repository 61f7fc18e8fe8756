"""A mistake that ruins every row is told before anything is written; any other input becomes a job."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.submission import bad_rows
from batcher.submission.planner import submit
from batcher.submission.validation import validate
from batcher.types import SamplingParams
from tests.support.submitted import make_options, rows_of, write_lines
from tests.support.tiny_gguf import write_tiny_gguf
from tests.unit.conftest import Run

Line = dict[str, Any] | bytes

#: Lines with one mistake each, whose values differ.
MISTAKES: dict[str, tuple[Line, Line]] = {
    "no prompt": ({"text": "a"}, {"text": "b", "max_tokens": 3}),
    "no text as prompt": ({"prompt": 5}, {"prompt": {"a": 1}}),
    "a bad parameter": ({"prompt": "a", "temperature": 70}, {"prompt": "b", "temperature": "hot"}),
    "a bad element": ({"prompt": "a", "stop": ["x", ""]}, {"prompt": "b", "stop": ["", 5]}),
    "an unknown model": ({"prompt": "a", "model": "gpt-4"}, {"prompt": "b", "model": "gpt-5"}),
    "no JSON": (b"hello", b'{"prompt": "a'),
    "no object": (b"[1]", b'"text"'),
    "a bad message": (
        {"messages": [{"role": "boss", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "human", "content": "x"}]},
    ),
    "a bad body": (
        {"method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "top_p": 2}},
        {"method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "top_p": "x"}},
    ),
    "too many tokens": ({"prompt": "a", "max_tokens": 512}, {"prompt": "b", "max_tokens": 999}),
}
GOOD: Line = {"prompt": "good"}
OPTIONS = make_options(allow_bad_rows=False, context_lengths={"tiny": 512})


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return JobDir(tmp_path / "job")


def numbered(lines: Sequence[Line]) -> list[Line]:
    """The lines with ids of their own, as batch lines need."""
    return [line | {"custom_id": f"id-{n}"} if isinstance(line, dict) else line for n, line in enumerate(lines)]


def refusal(path: str, **changes: Any) -> str | None:
    """What a dry run says of the input as a whole."""
    options = {"allow_bad_rows": False, "context_lengths": {"tiny": 512}} | changes
    return validate([path], make_options(**options)).refusal


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_mistake_in_all_rows_refuses_the_input_and_leaves_nothing(
    tmp_path: Path, job: JobDir, mistake: str
) -> None:
    first, second = MISTAKES[mistake]
    path = write_lines(tmp_path / "p.jsonl", *numbered([first, second, first]))

    with pytest.raises(InputError) as refused:
        submit(job, [path], OPTIONS)

    text = str(refused.value)
    assert text.startswith(f"all 3 rows are refused for the same reason, so no job is made of them:\n  {path}:1: ")
    assert text.endswith("\nCorrect that, or give --allow-bad-rows to have a job with these error rows")
    assert refusal(path) == text
    assert not job.path.exists()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_allowed_bad_rows_become_a_job(tmp_path: Path, job: JobDir, mistake: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", *numbered(MISTAKES[mistake]))

    manifest = submit(job, [path], make_options(context_lengths={"tiny": 512})).manifest

    assert manifest.num_rows == len(rows_of(job)) == 2
    assert refusal(path, allow_bad_rows=True) is None


def test_two_mistakes_are_no_mistake_of_the_whole_input(tmp_path: Path) -> None:
    """Whatever two they are: reasons differ by code, field or kind."""
    names = list(MISTAKES)
    for number, one in enumerate(names):
        for other in names[:number]:
            path = write_lines(tmp_path / "p.jsonl", MISTAKES[one][0], MISTAKES[other][0])
            assert refusal(path) is None, (one, other)


@given(st.lists(st.sampled_from([*MISTAKES, "good"]), min_size=1, max_size=6))
def test_an_input_is_refused_if_and_only_if_all_its_rows_share_a_mistake(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("input")
    lines = [GOOD if kind == "good" else MISTAKES[kind][number % 2] for number, kind in enumerate(kinds)]
    path = write_lines(folder / "p.jsonl", *numbered(lines))
    is_refused = len(set(kinds)) == 1 and kinds[0] != "good"

    assert (refusal(path) is not None) is is_refused
    job = JobDir(folder / "job")
    if is_refused:
        with pytest.raises(InputError):
            submit(job, [path], OPTIONS)
    else:
        submit(job, [path], OPTIONS)
    assert job.exists() is not is_refused


def test_only_the_first_thousand_rows_are_read(tmp_path: Path, job: JobDir) -> None:
    """Given a mistake in the first 1,000 rows, then what comes after is not looked at; in 999 it is."""
    seen: list[int] = []
    bad = [{"text": str(number)} for number in range(bad_rows.NUM_ROWS)]
    many = write_lines(tmp_path / "many.jsonl", *bad, *[{"prompt": "x" * 1000}] * 2000)
    fewer = write_lines(tmp_path / "fewer.jsonl", *bad[1:], GOOD)

    with pytest.raises(InputError, match=r"^the first 1,000 rows are refused for the same reason"):
        submit(job, [many], OPTIONS, on_progress=seen.append)

    assert sum(seen) < 1000
    assert not job.path.exists()
    assert refusal(many) is not None
    assert submit(job, [fewer], OPTIONS).manifest.num_refused == 999


def test_rows_of_several_files_count_together(tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "a.jsonl", {"text": "a"})
    good = write_lines(tmp_path / "b.jsonl", GOOD)

    assert validate([bad, good], OPTIONS).refusal is None
    found = validate([bad, bad], OPTIONS).refusal
    assert found is not None
    assert found.startswith("all 2 rows are refused")


def test_only_row_is_refused_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"text": "a"})
    found = refusal(path)
    assert found is not None
    assert found.startswith(f"the only row is refused, so no job is made of them:\n  {path}:1: prompt is missing; ")


def test_strict_lists_the_rows_and_a_thousand_are_enough_for_it(tmp_path: Path, job: JobDir) -> None:
    few = write_lines(tmp_path / "few.jsonl", {"text": "a"}, {"text": "b"})
    many = write_lines(tmp_path / "many.jsonl", *[{"text": "a"}] * 1500)
    strict = make_options(strict=True, allow_bad_rows=False)

    with pytest.raises(InputError, match=r"2 of 2 rows are not valid, and --strict takes all or none"):
        submit(job, [few], strict)
    with pytest.raises(InputError, match=r"the first 1,000 rows are refused(.|\n)*\nCorrect that$"):
        submit(job, [many], strict)


def test_templates_and_tables_tell_their_mistake_too(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": pa.nulls(5, pa.string()), "n": range(5), "raw": [b"\xff"] * 5}), path)

    found = refusal(str(path), template="Say {text}")
    assert found is not None
    assert "row 1: text is null; the template needs a value" in found
    assert refusal(str(path), template="Say {raw}") is not None
    assert refusal(str(path), template="Say {n}") is None
    assert refusal(str(path), prompt_column="text") is not None


def test_max_tokens_of_the_job_is_held_against_the_context_of_the_model(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})

    found = refusal(path, params=SamplingParams(max_tokens=512))
    assert found is not None
    assert f"{path}:1: max_tokens is 512, which leaves no room for a prompt in the context of 512 tokens; " in found
    assert refusal(path, params=SamplingParams(max_tokens=511)) is None
    assert refusal(path, params=SamplingParams(max_tokens=512), context_lengths={"other": 512}) is None
    # The default of chats is as many as there is room for.
    chats = write_lines(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "x"}]})
    assert refusal(chats, context_lengths={"tiny": 256}) is None
    assert refusal(chats, context_lengths={"tiny": 256}, chat_max_tokens=256) is not None


# -- commands ---------------------------------------------------------------------------------------------------------


def test_run_and_validate_agree_on_max_tokens(run: Run, tmp_path: Path) -> None:
    """Given too many tokens for the context, when they are asked, then both say so, and --ctx is a remedy for both."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    line = "p.jsonl --model tiny.gguf --max-tokens 5000"

    validated = run(f"validate {line}")
    ran = run(f"run {line} -o out")

    assert validated[0] == ran[0] == 2
    told = re.compile(r"Error: all 2 rows are refused.*\n.*p\.jsonl:1: max_tokens is 5000, which leaves no room", re.M)
    assert told.search(validated[2])
    assert told.search(ran[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "tiny.gguf"]
    assert run(f"validate {line} --ctx 5376")[0] == 0
    assert run(f"validate {line} --allow-bad-rows")[0] == 1


def test_validate_counts_the_rows_that_do_not_fit_the_context(run: Run, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    # 512 tokens: the tiny model takes a byte for each, and hardly a word is one token.
    write_lines(tmp_path / "p.jsonl", {"prompt": "z" * 300}, {"prompt": "z" * 300, "max_tokens": 300}, {"prompt": 5})

    code, out, _ = run("validate p.jsonl --model tiny.gguf --json")
    found = json.loads(out)

    assert code == 1
    assert found["error_codes"] == {"context_length_exceeded": 1, "invalid_request": 1}
    assert (found["num_ok"], found["num_bad"], found["num_refused"], found["refusal"]) == (1, 2, 1, None)
    assert found["bad"][0].startswith("p.jsonl:2: This model's maximum context length is 512 tokens")
    code, out, _ = run("validate p.jsonl --model tiny.gguf --ctx 1024")
    assert re.search(r"^Rows +3 = 2 ok \+ 1 bad$", out, re.M)
    assert re.search(r"^Errors +invalid_request 1$", out, re.M)


def test_strict_and_allowing_bad_rows_contradict_each_other(run: Run, tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", GOOD)

    code, _, err = run("validate p.jsonl --model qwen --strict --allow-bad-rows")

    assert code == 2
    assert "--strict and --allow-bad-rows contradict each other" in err
