"""Commands that look before work is done, the options they share with run and submit, and every command's help."""

import io
import json
import re
from pathlib import Path

import click
import pytest

from batcher.cli import cli
from batcher.cli.options import EnvOption
from batcher.cli.row_options import read_template
from tests.support.tiny_gguf import write_tiny_gguf
from tests.unit.conftest import Run

COMMANDS = cli.list_commands(click.Context(cli))


# -- help and options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_ends_with_an_example(run: Run, name: str) -> None:
    code, out, _ = run(f"{name} --help")

    assert code == 0
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help is not None
    last = command.help.rstrip().splitlines()[-1].strip()
    assert re.search(rf"(^|\s)batcher {name}\b", last)
    assert last in out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_has_a_variable_and_a_help_text(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert isinstance(parameter, EnvOption), parameter.name
            assert str(parameter.envvar).startswith("BATCHER_"), parameter.name
            assert parameter.help, parameter.name


#: Needed arguments of commands that take a broker. `doctor` tells itself what is wrong with a URL.
ARGUMENTS = {
    "run": "prompts.jsonl -o out",
    "submit": "prompts.jsonl",
    "resume": "job",
    "retry": "job",
    **dict.fromkeys(("worker", "serve", "health", "workers"), ""),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_broker_url_is_bad_usage_and_changes_nothing(run: Run, name: str, tmp_path: Path) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    if name == "doctor" or all(parameter.name != "broker" for parameter in command.params):
        return

    code, _, err = run(f"{name} {ARGUMENTS.get(name, 'job')} --broker nonsense")

    assert code == 2
    assert "not a broker URL; use redis://host:6379/0" in err
    assert list(tmp_path.glob("**/manifest.json")) == []


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("stauts", "No such command 'stauts'. Did you mean status"),
        ("modle", "Did you mean models"),
        ("resum job", "Did you mean resume"),
        ("run x --max-token 4", "--max-tokens"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_may_have_been_meant(run: Run, line: str, hint: str) -> None:
    code, _, err = run(line)

    assert code == 2
    assert hint in err


def test_what_is_like_no_command_gets_no_hint(run: Run) -> None:
    code, _, err = run("frobnicate")

    assert code == 2
    assert "No such command 'frobnicate'." in err
    assert "Did you mean" not in err


# -- validate -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Two good rows, of which one names no model, and a bad one."""
    rows = [{"prompt": "one"}, {"prompt": ["a", "bc"], "model": "other", "topic": "x"}, {"prompt": "x", "top_p": 2}]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_validate_counts_and_lists_bad_rows_by_line(run: Run, prompts: Path, tmp_path: Path) -> None:
    code, out, err = run("validate prompts.jsonl --model qwen")

    assert code == 1
    assert re.search(r"^Rows +3 = 2 ok \+ 1 bad$", out, re.M)
    assert re.search(r"^Choices +3$", out, re.M)
    assert re.search(r"^Models +other 1, qwen 1$", out, re.M)
    assert re.search(r"^Carried +topic \(string\)$", out, re.M)
    assert re.search(r"^Bad rows:\n  prompts\.jsonl:3: top_p is 2; ", out, re.M)
    assert "qwen is not on this machine" in err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_validate_json_has_the_same(run: Run, prompts: Path) -> None:
    code, out, _ = run("validate prompts.jsonl --model qwen --json --list 0")

    found = json.loads(out)
    assert code == 1
    assert (found["num_rows"], found["num_ok"], found["num_bad"], found["num_choices"]) == (3, 2, 1, 3)
    assert (found["bad"], found["carried"], found["tokens"]) == ([], {"topic": "string"}, None)


def test_standard_input_is_one_of_the_files_and_named_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": 5}\n')))

    assert "<stdin>:1: prompt is 5" in run("validate - --model qwen")[1]
    code, _, err = run("validate - -")
    assert (code, "standard input (-) is named twice" in err) == (2, True)


def test_validate_under_strict_ends_as_submit_would(run: Run, prompts: Path) -> None:
    code, out, err = run("validate prompts.jsonl --model qwen --strict")

    assert code == 2
    assert "prompts.jsonl:3" in out
    assert "1 of 3 rows bad, so --strict refuses the input" in err


def test_validate_of_good_rows_succeeds(run: Run, prompts: Path) -> None:
    prompts.write_text('{"text": "a"}\n{"text": "b"}\n')

    code, out, _ = run("validate prompts.jsonl --model qwen --template 'Say {text}'")

    assert code == 0
    assert "Bad rows" not in out


def test_validate_counts_tokens_with_a_model_of_this_machine(run: Run, prompts: Path, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")

    _, out, _ = run("validate prompts.jsonl --model tiny.gguf --max-tokens 5 --json")

    found = json.loads(out)
    assert found["models"] == {"tiny": 1}  # of models of this machine only those given are known, as in `run`
    assert found["tokens"]["num_prompt_tokens"] >= 1
    assert found["tokens"]["num_at_most"] == found["tokens"]["num_prompt_tokens"] + 5


@pytest.mark.parametrize(("option", "max_tokens"), [("", 1024), ("--max-tokens 16", 16), ("--max-tokens 5", 5)])
def test_chats_have_a_default_of_their_own_unless_one_is_given(
    run: Run, tmp_path: Path, option: str, max_tokens: int
) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 2}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "chats.jsonl").write_text(json.dumps(line))

    _, out, _ = run(f"validate chats.jsonl --model tiny.gguf --json {option}")

    found = json.loads(out)
    assert (found["num_ok"], found["num_choices"]) == (1, 2)
    assert found["tokens"]["num_at_most"] == found["tokens"]["num_prompt_tokens"] + 2 * max_tokens


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("validate", "Missing argument 'FILE...'"),
        ("validate gone.jsonl", "gone.jsonl: no such file"),
        ("validate prompts.jsonl --temperature 3", "Invalid value for '--temperature'"),
        ("validate prompts.jsonl --temperature nan", "Invalid value for '--temperature'"),
        ("validate prompts.jsonl --top-p 1.5", "Invalid value for '--top-p'"),
        ("validate prompts.jsonl --top-p nan", "Invalid value for '--top-p'"),
        ("validate prompts.jsonl --top-k -2", "Invalid value for '--top-k'"),
        ("validate prompts.jsonl --min-p nan", "'nan' is not a finite number"),
        ("validate prompts.jsonl --repetition-penalty 0", "Invalid value for '--repetition-penalty'"),
        ("validate prompts.jsonl --fields min_p,topk", "--fields topk: there is no such field; did you mean top_k?"),
        ("validate prompts.jsonl --fields user", "--fields user: rows can't have that field; they can have "),
        ("validate prompts.jsonl --fields top_k --id-column top_k", "--id-column top_k: that column is a parameter"),
        ("validate prompts.jsonl --max-tokens 0", "Invalid value for '--max-tokens'"),
        ("validate prompts.jsonl --stop ''", "an empty stop string"),
        ("validate prompts.jsonl" + " --stop x" * 17, "17 stop strings; at most 16"),
        ("validate prompts.jsonl --seed -1", "Invalid value for '--seed'"),
        ("validate prompts.jsonl --shard-rows 0", "Invalid value for '--shard-rows'"),
        ("validate prompts.jsonl --template @gone.txt", "--template @gone.txt: cannot read the file"),
        ("validate prompts.jsonl --template @latin1.txt", "not UTF-8 at byte 1"),
        ("validate prompts.jsonl --template @/dev/zero", "@/dev/zero: is longer than 32 MB, as no prompt may be"),
        ("validate prompts.jsonl --model ./gone.gguf", "gone.gguf: no such model file"),
    ],
)
def test_bad_usage_names_the_option_and_the_value(
    run: Run, prompts: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "latin1.txt").write_bytes(b"S\xe9 {text}")

    code, out, err = run(line)

    assert (code, out) == (2, "")
    assert message in err


def test_columns_that_fields_names_are_checked_as_fields(run: Run, workplace: Path) -> None:
    rows = [{"prompt": "one", "top_k": 5, "n": "mine"}, {"prompt": "two", "top_k": -5, "min_p": 2}]
    (workplace / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    without = run("validate own.jsonl --model qwen")
    opted = run("validate own.jsonl --model qwen --fields top_k --fields min_p,seed")

    assert without[0] == 0
    assert opted[0] == 1
    assert "own.jsonl:2: top_k is -5; use a positive integer, or 0 for all tokens" in opted[1]


def test_template_file_loses_only_what_editors_add(workplace: Path) -> None:
    for content, text in (
        (b"\xef\xbb\xbfa\n", "a"),
        (b"a {b}\n", "a {b}"),
        (b"a\r\n", "a"),
        (b"a\n\n", "a\n"),
        (b"a", "a"),
        (b"", ""),
    ):
        (workplace / "t.txt").write_bytes(content)
        assert read_template("@t.txt") == text
    assert read_template("plain {text}\n") == "plain {text}\n"
    assert read_template(None) is None


# -- doctor -------------------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_failed_here_and_leaves_no_trace(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor --json")

    checks = {check["name"]: check for check in map(json.loads, out.splitlines())}
    assert code == 0, out
    assert {"python", "celery", "pyarrow", "llama.cpp", "machine", "jobs folder", "disk", "broker"} <= set(checks)
    assert checks["jobs folder"]["level"] == "ok"
    assert not (tmp_path / "batcher-jobs").exists()


def test_doctor_names_what_failed_with_its_remedy(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "bad.gguf").write_bytes(b"nope")

    code, out, _ = run("doctor --jobs-dir file/jobs --broker redis://127.0.0.1:1/0 --model bad.gguf --model x=gone")

    assert code == 1
    assert len(re.findall(r"^FAIL  ", out, re.M)) == 4
    assert re.search(r"^FAIL  model bad\.gguf: .*not a GGUF file .*\n +remedy: convert the model", out, re.M)
    assert re.search(r"^FAIL  model x=gone: .*no such model file\n +remedy: `batcher models` lists", out, re.M)
    assert re.search(r"^FAIL  jobs folder: .*\n +remedy: give a folder you may write to", out, re.M)
    assert re.search(r"^FAIL  broker: .*cannot reach it.*\n +remedy: ", out, re.M)


def test_doctor_json_has_the_same_findings_and_the_same_end(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nope")

    code, out, _ = run("doctor --broker redis://127.0.0.1:1/0 --model bad.gguf --json")

    checks = [json.loads(line) for line in out.splitlines()]
    failed = [check for check in checks if check["level"] == "fail"]
    assert code == 1
    assert [check["name"] for check in failed] == ["broker", "model bad.gguf"]
    assert all(set(check) == {"name", "level", "message", "remedy"} and check["remedy"] for check in failed)


def test_doctor_asks_for_the_memory_that_the_slots_take(run: Run, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")

    code, out, _ = run("doctor --model tiny.gguf --slots 256 --ctx 1000000000")

    assert code == 1
    assert re.search(r"^ok    model tiny: .*tiny\.gguf: [0-9,]+ bytes, .*whole by its header", out, re.M)
    assert re.search(r"^FAIL  memory for tiny: .*256 slots x 1,000,000,000 tokens.*\n +remedy: ", out, re.M)
