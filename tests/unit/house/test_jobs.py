"""The example jobs are valid, are what their README says, and show the parameters they are meant to show."""

import json
import re
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import jsonschema
import pyarrow.parquet as pq
import pytest

from batcher.cli import cli
from batcher.cli.row_options import read_template
from batcher.submission.source import SubmitOptions
from batcher.submission.template import parse_template
from batcher.submission.validation import ValidationReport, validate
from batcher.types import SamplingParams

ROOT = Path(__file__).parents[3]
JOBS = ROOT / "jobs"
COMPLETIONS = JOBS / "completions" / "prompts.jsonl"
REVIEWS = JOBS / "classification" / "reviews.parquet"
TEMPLATE = JOBS / "classification" / "template.txt"
MAILS = JOBS / "extraction" / "mails.jsonl"
ORDER = JOBS / "extraction" / "order.json"
MAIL_TEMPLATE = JOBS / "extraction" / "template.txt"
BATCH = JOBS / "openai-batch" / "batch.jsonl"
MODEL = "smollm2-135m"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check(path: Path, *, template: str | None = None, id_column: str | None = None) -> ValidationReport:
    options = SubmitOptions(
        default_model=MODEL,
        params=SamplingParams(max_tokens=48),
        known_models=frozenset({MODEL}),
        template=template,
        id_column=id_column,
        strict=True,
    )
    return validate([str(path)], options)


def code_block_commands() -> list[list[str]]:
    """The indented `batcher ...` lines of jobs/README.md, as a shell would split them."""
    text = (JOBS / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^ {4}batcher (.+)$", text, flags=re.MULTILINE)
    # shlex knows nothing of bash's $'\n'.
    return [[word.replace("$\\n", "\n") for word in shlex.split(line)] for line in found]


def prompts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [p for row in rows for p in (row["prompt"] if isinstance(row["prompt"], list) else [row["prompt"]])]


@pytest.mark.parametrize(
    ("report", "num_rows"),
    [
        pytest.param(lambda: check(COMPLETIONS), 200, id="completions"),
        pytest.param(
            lambda: check(REVIEWS, template=read_template(f"@{TEMPLATE}"), id_column="review_id"),
            120,
            id="classification",
        ),
        pytest.param(
            lambda: check(MAILS, template=read_template(f"@{MAIL_TEMPLATE}"), id_column="mail_id"),
            100,
            id="extraction",
        ),
        pytest.param(lambda: check(BATCH), 60, id="openai-batch"),
    ],
)
def test_every_row_is_valid(report: Any, num_rows: int) -> None:
    found = report()

    # Strict refuses duplicate ids as well.
    assert found.bad == ()
    assert found.num_ok == found.num_rows >= num_rows
    assert set(found.models) == {MODEL}


def test_completions_show_every_parameter_and_shape() -> None:
    rows = lines(COMPLETIONS)

    assert {type(row["stop"]) for row in rows if "stop" in row} == {str, list}
    assert {row["temperature"] for row in rows if "temperature" in row} == {0, 0.7, 1}
    assert all(any(name in row for row in rows) for name in ("custom_id", "max_tokens", "top_p", "seed"))
    assert sum(isinstance(row["prompt"], list) for row in rows) >= 5
    assert any(set(row) == {"prompt", "topic"} for row in rows), "no row at the defaults of the command line"
    assert len({row["topic"] for row in rows}) >= 10


def test_completions_vary_in_length_and_alphabet() -> None:
    texts = prompts(lines(COMPLETIONS))

    assert min(map(len, texts)) < 40
    assert max(map(len, texts)) > 800
    assert sum(not text.isascii() for text in texts) >= 20
    assert any(ord(character) > 0xFFFF for text in texts for character in text), "no character of four bytes"


def test_completions_finish_in_a_minute_or_two_on_a_small_machine() -> None:
    budget = sum(
        row.get("max_tokens", 48) * (len(row["prompt"]) if isinstance(row["prompt"], list) else 1)
        for row in lines(COMPLETIONS)
    )

    # Prefill and decode of a 135M model on 2 cores: some 200 tokens a second where it is slowest.
    assert budget < 12_000
    assert max(row.get("max_tokens", 0) for row in lines(COMPLETIONS)) <= 64


def test_given_ids_are_unique() -> None:
    for path in (COMPLETIONS, BATCH):
        ids = [row["custom_id"] for row in lines(path) if "custom_id" in row]

        assert ids
        assert len(ids) == len(set(ids))


def test_reviews_table_is_made_from_its_source() -> None:
    source = runpy.run_path(str(REVIEWS.with_name("make_table.py")))["read_reviews"]()

    table = pq.read_table(REVIEWS)

    assert table.equals(source)
    assert set(table["stars"].to_pylist()) == {1, 2, 3, 4, 5}
    assert len(set(table["review"].to_pylist())) == table.num_rows


def test_template_is_a_shared_prefix_and_the_row_after_it() -> None:
    template = read_template(f"@{TEMPLATE}")
    assert template is not None

    prefix, product, rest = template.partition("{product}")

    assert product
    assert "{" not in prefix
    assert rest == "\nReview: {review}\nLabel:"
    reviews = pq.read_table(REVIEWS)["review"].to_pylist()
    assert not any(review in prefix for review in reviews), "a labelled example is one of the rows"


def test_mails_are_made_by_their_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = runpy.run_path(str(MAILS.with_name("make_mails.py")))
    monkeypatch.setitem(program["main"].__globals__, "HERE", tmp_path)
    program["main"]()

    assert (tmp_path / "mails.jsonl").read_bytes() == MAILS.read_bytes()


def test_what_a_mail_says_is_in_it_and_an_order_by_the_schema() -> None:
    schema = json.loads(ORDER.read_text(encoding="utf-8"))
    rows = lines(MAILS)

    for row in rows:
        said = row["said"]
        assert all(said[name] in row["mail"] for name in ("name", "street", "city"))
        assert said["phone"] is None or said["phone"] in row["mail"]
        address = {name: said.pop(name) for name in ("street", "city")}
        jsonschema.validate({**said, "address": address}, schema)
    assert len({row["mail"] for row in rows}) == len(rows)


def test_examples_of_the_mail_template_are_orders_by_the_schema_and_no_rows() -> None:
    template = parse_template(MAIL_TEMPLATE.read_text(encoding="utf-8"))
    shown = template.render({"mail": "!"})
    examples = re.findall(r"^Order: (.+)$", shown, re.MULTILINE)

    assert len(examples) == 3
    for example in examples:
        jsonschema.validate(json.loads(example), json.loads(ORDER.read_text(encoding="utf-8")))
    assert not any(row["mail"] in shown for row in lines(MAILS))


def test_batch_lines_are_of_the_openai_format() -> None:
    rows = lines(BATCH)

    assert all(set(row) == {"custom_id", "method", "url", "body"} for row in rows)
    assert {(row["method"], row["url"]) for row in rows} == {("POST", "/v1/completions")}
    assert {type(row["body"]["stop"]) for row in rows if "stop" in row["body"]} == {str, list}
    assert any(isinstance(row["body"]["prompt"], list) for row in rows)


def test_readme_commands_parse_and_name_existing_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = code_block_commands()

    ran: set[Path] = set()
    for name, *arguments in commands:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        # Raises UsageError for an option that does not exist or a value that is out of range.
        parameters = command.make_context(name, arguments).params
        if name == "run":
            files = parameters["files"]
            assert all(Path(file).is_file() for file in files), files
            ran.update(Path(file).resolve() for file in files)
            assert parameters["template"] is None or read_template(parameters["template"])

    assert ran == {COMPLETIONS, REVIEWS, MAILS, BATCH}


def test_readme_tells_the_real_numbers() -> None:
    text = (JOBS / "README.md").read_text(encoding="utf-8")

    rows = lines(COMPLETIONS)
    assert f"{len(rows)} rows ({len(prompts(rows))} completions)" in text
    assert f"{pq.read_table(REVIEWS).num_rows} short reviews" in text
    assert f"{len(lines(MAILS))} mails" in text
    assert f"{len(lines(BATCH))} lines" in text
