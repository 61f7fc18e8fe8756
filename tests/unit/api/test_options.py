"""The options of Python callers: those of the command line, by name, bounds and meaning."""

import inspect
from decimal import Decimal
from typing import Any

import click
import numpy as np
import pytest

import batcher
from batcher.api.options import EngineOptions, JobOptions, RunOptions, SubmitJobOptions, check_options, submit_options
from batcher.cli import cli
from batcher.cli.row_options import submit_options as options_of_the_command
from batcher.errors import InputError
from batcher.submission.source import SubmitOptions

#: Of commands, and parameters of `run`, `submit` and `Job.resume` themselves.
OWN = {"output", "model", "workers", "broker", "broker_file", "quiet", "jobs_dir", "job_id", "wait"}
#: Where the log of a command goes; a program has that of its logger "batcher" as it likes.
OWN |= {"log_format", "log_level"}


def command(name: str) -> dict[str, click.Option]:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    options = (each for each in found.params if isinstance(each, click.Option))
    return {max(each.opts, key=len).removeprefix("--").replace("-", "_"): each for each in options}


@pytest.mark.parametrize(
    ("name", "kind"), [("run", RunOptions), ("submit", SubmitJobOptions), ("resume", EngineOptions)]
)
def test_options_are_those_of_the_command(name: str, kind: type) -> None:
    assert set(kind.__annotations__) == set(command(name)) - OWN


def numbers() -> list[tuple[str, click.IntRange | click.FloatRange]]:
    return [
        (name, each.type)
        for name, each in command("run").items()
        if name not in OWN and isinstance(each.type, click.IntRange | click.FloatRange)
    ]


@pytest.mark.parametrize(("name", "bounds"), numbers(), ids=lambda value: value if isinstance(value, str) else "")
def test_numbers_have_the_bounds_of_the_command(name: str, bounds: Any) -> None:
    step = 1 if isinstance(bounds, click.IntRange) else 1e-6
    is_whole = isinstance(bounds, click.IntRange)
    assert bounds.min is not None
    lowest = bounds.min + (step if bounds.min_open else 0)
    good = [lowest] + ([bounds.max] if bounds.max is not None else [lowest + 1])
    bad = [lowest - step, "1", *([bounds.max + step] if bounds.max is not None else [])]
    bad += [1.5] if is_whole else [float("nan")]

    for value in good:
        assert check_options("run", RunOptions, {name: value}) == {name: value}
    for value in bad:
        with pytest.raises(InputError, match=f"^{name} is "):
            check_options("run", RunOptions, {name: value})


def test_defaults_are_those_of_the_command() -> None:
    found = cli.get_command(click.Context(cli), "run")
    assert found is not None
    parameters = found.make_context("run", ["prompts.jsonl", "-o", "out"]).params
    values: dict[str, Any] = {name: value for name, value in parameters.items() if name in JobOptions.__annotations__}
    of_command = options_of_the_command(default_model="m", known_models=None, **values)
    of_python = submit_options({}, default_model="m", known_models=None, context_lengths={})

    # Outside of a command nothing says that max_tokens was not given.
    assert of_command.chat_max_tokens == of_command.params.max_tokens
    assert of_python.chat_max_tokens is None
    for name in SubmitOptions.__dataclass_fields__:
        if name != "chat_max_tokens":
            assert getattr(of_python, name) == getattr(of_command, name), name


def test_options_are_what_the_planner_takes() -> None:
    options: RunOptions = {
        "max_tokens": 3,
        "temperature": 1,
        "top_k": -1,
        "stop": "x",
        "chat": True,
        "fields": ["n"],
        "seed": None,
        "row_timeout": 2,
        "csv_delimiter": ";",
    }

    found = submit_options(
        check_options("run", RunOptions, options), default_model="m", known_models=None, context_lengths={}
    )

    assert (found.params.max_tokens, found.params.top_k, found.params.stop) == (3, 0, ("x",))
    # As the command line has it: a job is found again by either.
    assert repr(found.params.temperature) == "1.0"
    assert (found.chat, found.chat_max_tokens, found.fields) == (True, 3, ("n",))
    assert (found.seed, found.row_timeout_s, found.reading.csv_delimiter) == (None, 2, ";")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"stop": ["a", ""]}, r'stop is \["a", ""\]: use text that is not empty'),
        ({"stop": ["a"] * 17}, "stop has 17 texts; at most 16"),
        ({"chat": 1}, "chat is 1: use True or False"),
        ({"fields": "top_k"}, 'fields is "top_k"'),
        ({"strict": True, "allow_bad_rows": True}, "strict and allow_bad_rows contradict each other"),
        ({"input_format": "xml"}, 'input_format is "xml"; use one of jsonl, csv, tsv'),
        ({"csv_delimiter": "--"}, 'csv_delimiter is "--", not one ASCII character'),
        ({"memory": "much"}, 'memory is "much": not a size; write 800m or 16g'),
        ({"memory": 0}, "memory is 0: not a size"),
        ({"max_tokens": Decimal(4)}, 'max_tokens is "4" of type Decimal: use a whole number'),
        ({"temperature": None}, "temperature is null"),
        ({"temperature": 3}, "temperature is 3: use 2.0 or less"),
        ({"json_schema": 5}, "json_schema is 5: use a dict or text or a path or a class"),
        ({"choice": "a"}, 'choice is "a": use a list'),
        ({"choice": ["a", 2]}, r'choice is \["a", 2\]: use text'),
        ({"validate": 5}, "validate is 5: use a function or text"),
        ({"on_truncation": "x"}, "on_truncation is \"x\": use 'mark', 'fail' or 'retry'"),
    ],
)
def test_what_an_option_cannot_be_is_told_with_its_name(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"^{problem}"):
        submit_options(
            check_options("run", RunOptions, options), default_model="m", known_models=None, context_lengths={}
        )


def test_memory_is_bytes_or_a_size() -> None:
    for value, num_bytes in (("1G", 2**30), (2**30, 2**30), (np.int64(5), 5)):
        assert check_options("run", RunOptions, {"memory": value}) == {"memory": num_bytes}


def test_numbers_of_numpy_are_numbers() -> None:
    found = check_options("run", RunOptions, {"max_tokens": np.int64(4), "temperature": np.float32(0.5)})

    assert {name: (type(value), value) for name, value in found.items()} == {
        "max_tokens": (int, 4),
        "temperature": (float, 0.5),
    }


def test_unknown_option_is_an_error_of_the_call_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"run\(\) got an unexpected option 'max_token'; did you mean 'max_tokens'\?"):
        check_options("run", RunOptions, {"max_token": 3})
    with pytest.raises(TypeError, match=r"submit\(\) got an unexpected option 'slots'; did you mean|there are: "):
        check_options("submit", SubmitJobOptions, {"slots": 3})


@pytest.mark.parametrize(
    ("function", "kind"),
    [(batcher.run, RunOptions), (batcher.submit, SubmitJobOptions), (batcher.Job.resume, EngineOptions)],
)
def test_help_shows_every_option_with_its_type(function: Any, kind: type) -> None:
    shown = str(inspect.signature(function))

    assert [name for name in kind.__annotations__ if f" {name}: " not in shown] == []
    assert "Annotated" not in shown
    assert "options" not in inspect.signature(function).parameters
