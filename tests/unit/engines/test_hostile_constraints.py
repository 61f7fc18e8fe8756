"""Constraints that are made to take long, or all memory, or the process: each costs its row an error, or little."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from batcher import constraints
from batcher.types import Constraint, SamplingParams
from tests.support.tiny_engine import complete, running
from workers.engines.base import SequenceRequest

#: A process has tokenizer and grammar in less; without bounds some of these took 7 GB.
MAX_MB = 1_500


def chain(number: int, body: str) -> str:
    """Rules that name each other; `body` has the next where it says NEXT."""
    rules = [f"r{n}: " + body.replace("NEXT", f"r{n + 1}") for n in range(number)]
    return "\n".join(["start: r0", *rules, f'r{number}: "a"'])


def refs(number: int, body: dict[str, Any]) -> dict[str, Any]:
    """Definitions that name each other; `body` has "NEXT" where the next belongs."""
    text = json.dumps(body)
    defs = {f"d{n}": json.loads(text.replace("NEXT", f"#/$defs/d{n + 1}")) for n in range(number)}
    return {"$defs": {**defs, f"d{number}": {"type": "null"}}, "$ref": "#/$defs/d0"}


REF = {"$ref": "NEXT"}
CONSTRAINTS: dict[str, Any] = {
    "exponential anyOf": lambda: constraints.json_schema(
        refs(30, {"anyOf": [REF, {"type": "array", "prefixItems": [REF, REF]}]})
    ),
    "exponential allOf": lambda: constraints.json_schema(
        {"allOf": [{"anyOf": [{"required": [f"p{n}"]}, {"required": [f"q{n}"]}]} for n in range(24)], "type": "object"}
    ),
    "only itself": lambda: constraints.json_schema({"$ref": "#"}),
    "itself inside": lambda: constraints.json_schema(
        {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}
    ),
    "references in a chain": lambda: constraints.json_schema(refs(20_000, REF)),
    "allOf in a chain": lambda: constraints.json_schema(refs(12_000, {"allOf": [REF]})),
    "objects in a chain": lambda: constraints.json_schema(
        refs(8_000, {"type": "object", "properties": {"a": REF}, "required": ["a"]})
    ),
    "many properties": lambda: constraints.json_schema(
        {"type": "object", "properties": {f"p{n}": {"type": "string", "format": "date-time"} for n in range(15_000)}}
    ),
    "long enum": lambda: constraints.json_schema({"enum": [f"value {n}" for n in range(40_000)]}),
    "huge counts": lambda: constraints.json_schema(
        {"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6, "maxLength": 10**7}}
    ),
    "pattern": lambda: constraints.json_schema({"type": "string", "pattern": "^" + "(.?a?)" * 1600 + "$"}),
    "regex of options": lambda: constraints.regex("a?" * 5_000),
    "regex of any": lambda: constraints.regex("(.?a?)" * 1_600),
    "regex of counts": lambda: constraints.regex("((.?a?){1,9000}b?){1,9000}"),
    "regex of suffixes": lambda: constraints.regex("(a|b)*a(a|b){400}"),
    "regex of nests": lambda: constraints.regex("(" * 4_000 + "a" + ")" * 4_000),
    "regex of letters": lambda: constraints.regex(r"(\p{L}{0,200}\s){100}"),
    "rules in a chain": lambda: constraints.grammar(chain(6_000, "NEXT")),
    "rules in brackets": lambda: constraints.grammar(chain(4_000, '"(" NEXT ")"')),
    "rules twice": lambda: constraints.grammar(chain(3_000, "NEXT NEXT")),
    "optional rules": lambda: constraints.grammar(chain(5_000, "NEXT?")),
    "terminals twice": lambda: constraints.grammar(chain(60, "NEXT NEXT").replace("r", "R").replace("staRt", "start")),
    "terminals in a chain": lambda: constraints.grammar(
        chain(4_000, "/[xy]/ NEXT?").replace("r", "R").replace("staRt", "start")
    ),
    "terminal of options": lambda: constraints.grammar("start: A\nA: " + '"a"? ' * 15_000),
    "deep brackets": lambda: constraints.grammar("start: " + "(" * 40_000 + '"a"' + ")" * 40_000),
    "deep JSON": lambda: constraints.grammar("start: %json " + '{"not":' * 9_000 + "{}" + "}" * 9_000),
    "ambiguous": lambda: constraints.grammar('start: e\ne: e e | "a" | '),
    "nothing but itself": lambda: constraints.grammar("start: start"),
    "long GBNF": lambda: constraints.grammar("root ::= " + " | ".join(f'"text {n}"' for n in range(5_000))),
    "deep GBNF": lambda: constraints.grammar("root ::= " + "(" * 40_000 + '"a"' + ")" * 40_000),
    "many choices": lambda: constraints.choice([f"the choice with number {n}" for n in range(10_000)]),
}


def made(name: str) -> Constraint:
    constraint = CONSTRAINTS[name]()
    assert isinstance(constraint, Constraint)
    return constraint


def main(model: Path, name: str) -> None:
    """Have the engine complete a hostile row and an honest one; print how much memory that took."""
    with running(model, num_slots=2, context_length=256) as engine:
        hostile = SamplingParams(max_tokens=20, constraint=made(name))
        for number, params in enumerate([hostile, SamplingParams(max_tokens=8)]):
            [result] = complete(engine, [SequenceRequest((number, 0), "hello", params)])
            # Then the engine has an answer to each, and goes on.
            print(result.error.message if result.error is not None else "ok")
        assert result.choice is not None
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_hostile_constraint_costs_its_row_and_nobody_else(model: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.engines.test_hostile_constraints", str(model), name],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )

    assert done.returncode == 0, done.stderr
    *_, honest, megabytes = done.stdout.splitlines()
    assert honest == "ok"
    assert int(megabytes) < MAX_MB


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: constraints.json_schema({"enum": ["x" * 10_000_000]}), "has 10,0.* characters; use at most 1,000,000"),
        (lambda: constraints.json_schema('{"a":' * 100_000), "is no JSON"),
        (lambda: constraints.json_schema({"pattern": "a" * 10_001}), "has patterns of 10,001 characters"),
        (lambda: constraints.json_schema({"patternProperties": {"a" * 10_001: {}}}), "has patterns of 10,001"),
        (lambda: constraints.regex("a" * 10_001), "has 10,001 characters; use at most 10,000"),
        (lambda: constraints.grammar("start: " + "a" * 100_000), "has 100,007 characters; use at most 100,000"),
        (lambda: constraints.choice([str(n) for n in range(10_001)]), "has 10,001 texts; use at most 10,000"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_compiled(make: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
