"""The named workloads of the benchmarks: the same rows on every call, their lengths counted by the model's tokenizer.

    .venv/bin/python -m bench.workloads NAME TARGET --model GGUF [--scale 1 | --rows N]

writes the rows to TARGET as JSONL (what `batcher run` reads) and prints how many and how long they are. A process of
its own does that, because the tokenizer sets OpenMP's variables, which the measured processes must not inherit.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

#: Common words, a token each for most tokenizers.
WORDS = """
about above across after again against air all almost along always among animal answer apple arm around art ask
autumn bank bay beach bear began behind bell below best between big bird black blue boat body book born both bottom
box boy branch bread bridge bright bring brother brown build burn busy butter call captain care carry cat cause
chair child children church circle city clean clear climb clock close cloud coast coffee cold color common corn
corner cost country course cover cross crowd dance dark daughter day deep desert doctor dog door down draw dream
dress drive dry dust early earth east edge egg empty engine evening every eye face fact fall family far farm father
field fire first fish floor flour flower follow food foot forest found free fresh friend front fruit garden gate
gave girl glass gold good grain grass gray great green ground grow guess guide half hand harbor hard hat head hear
heart heavy high hill history hold home hope horse hot hour house hundred hungry ice inside iron island job join
journey jump keep kind king kitchen knew ladder lake land large last late laugh law leaf learn left letter light
line lion list little long look low machine made map market master match meal metal middle mile milk mind minute
money month moon morning mother mountain mouth move music name narrow near neck never new news night noise north
nothing number ocean office often oil old open orange order other page paint paper park part past path patient
people picture piece place plain plan plant play point poor port power press pretty price problem proud pull pure
push quarter queen question quick quiet quite radio rain raise ran reach read ready red remember rest rich ride
right ring river road rock roof room root rose round rule run sail salt same sand school sea season seed sell send
seven shade shape sharp sheep ship shoe shop shore short shoulder side sign silver simple sing sister six skin sky
sleep slow small smoke snow soft soil soldier son song soon sound south space speak spring square stand star station
steel step still stone stop store storm story street strong student sugar summer sun sure sweet table tail tall
teach ten test thin third thought thousand three time tiny tired together told took top town track trade train
travel tree trip true trust turn twelve twenty uncle under until upon valley very view village visit voice wait walk
wall war warm wash watch water wave way weather week west wheel white whole wide wild wind window winter wish woman
wonder wood word work world worth write yard year yellow young
"""

#: Tokens of a shared template, and of what follows it in a prompt.
TEMPLATE_TOKENS = 400
TAIL_TOKENS = 40
NUM_TEMPLATES = 8

#: Of the rows of `duplicates`, how many are copies of others.
COPIED_SHARE = 0.3


class Counter(Protocol):
    """A tokenizer, as far as it is needed here."""

    def count_tokens(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, and how many tokens to generate at most."""

    prompt: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Size:
    """How large a workload is. Tokens are sums over all rows; `max_tokens` what they may generate."""

    num_rows: int
    prompt_tokens: int
    max_tokens: int


class Writer:
    """Writes text of a wanted number of tokens, the same text for the same seed."""

    def __init__(self, tokenizer: Counter, seed: int) -> None:
        self.rng = random.Random(seed)
        self._tokenizer = tokenizer
        base = tokenizer.count_tokens("the")
        words = WORDS.split()
        # A tokenizer of bytes has no word in one token.
        self._words = [word for word in words if tokenizer.count_tokens(f"the {word}") == base + 1] or words

    def extend(self, text: str, num_tokens: int) -> str:
        """`text` and then as many words as make the whole `num_tokens` long; up to a word less."""
        words: list[str] = []
        while (missing := num_tokens - self._tokenizer.count_tokens(self._join(text, words))) > 0:
            words += self.rng.choices(self._words, k=max(1, missing // 2))
        while words and self._tokenizer.count_tokens(self._join(text, words)) > num_tokens:
            words.pop()
        return self._join(text, words)

    @staticmethod
    def _join(text: str, words: list[str]) -> str:
        # No sentences: after full stops SmolLM2 asks a question and soon ends its text, sooner on one side than on
        # another, as their sums are rounded differently; a row of words it carries on.
        return " ".join([text, *words] if text else words)


def uniform(writer: Writer, num_rows: int) -> list[Row]:
    """Prompts of 50 tokens, numbered, 64 new tokens."""
    return [Row(writer.extend(f"{number}.", 50), 64) for number in range(num_rows)]


def ragged(writer: Writer, num_rows: int) -> list[Row]:
    """Prompts of 10 to 300 tokens that share no prefix, 8 to 128 new tokens."""
    draw = writer.rng.randint
    return [Row(writer.extend("", draw(10, 300)), draw(8, 128)) for _ in range(num_rows)]


def template(writer: Writer, num_rows: int) -> list[Row]:
    """One template of 400 tokens and tails of 40, 32 new tokens."""
    return _templated(writer, num_rows, num_templates=1)


def templates(writer: Writer, num_rows: int) -> list[Row]:
    """Eight templates of 400 tokens, interleaved at random, with tails of 40, 32 new tokens."""
    return _templated(writer, num_rows, num_templates=NUM_TEMPLATES)


def duplicates(writer: Writer, num_rows: int) -> list[Row]:
    """Prompts of 50 tokens, 64 new tokens; 30% of the rows are copies of others, anywhere."""
    num_copies = round(num_rows * COPIED_SHARE)
    rows = uniform(writer, num_rows - num_copies)
    rows += writer.rng.choices(rows, k=num_copies)
    writer.rng.shuffle(rows)
    return rows


def _templated(writer: Writer, num_rows: int, *, num_templates: int) -> list[Row]:
    texts = [
        writer.extend(f"{number}. Read these words and carry on:", TEMPLATE_TOKENS)
        for number in range(1, num_templates + 1)
    ]
    drawn = writer.rng.choices(texts, k=num_rows)
    return [Row(writer.extend(text, TEMPLATE_TOKENS + TAIL_TOKENS), 32) for text in drawn]


@dataclass(frozen=True, slots=True)
class Workload:
    """How to make the rows, and how many there are at scale 1."""

    make: Callable[[Writer, int], list[Row]]
    num_rows: int

    @property
    def description(self) -> str:
        return (self.make.__doc__ or "").strip().rstrip(".")


WORKLOADS = {
    "uniform": Workload(uniform, 64),
    "ragged": Workload(ragged, 256),
    "template": Workload(template, 96),
    "templates": Workload(templates, 192),
    "duplicates": Workload(duplicates, 128),
}


def make_rows(name: str, tokenizer: Counter, *, num_rows: int) -> list[Row]:
    """The rows of a workload; the same for the same tokenizer and number."""
    return WORKLOADS[name].make(Writer(tokenizer, seed=1), num_rows)


def scaled(name: str, scale: float) -> int:
    """The number of rows at a scale; at least 2."""
    return max(2, round(WORKLOADS[name].num_rows * scale))


def write_workload(name: str, target: Path, *, model: Path, num_rows: int) -> Size:
    """Write the rows of a workload to `target`, in a process of its own."""
    command = [sys.executable, "-m", "bench.workloads", name, str(target)]
    command += ["--model", str(model), "--rows", str(num_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"workload {name}: {done.stderr}")
    return Size(**json.loads(done.stdout))


def write_rows(rows: list[Row], target: Path) -> None:
    """Write rows as a greedy job's JSONL."""
    with target.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            line = {"custom_id": f"row-{number}", **asdict(row), "temperature": 0}
            file.write(json.dumps(line) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows that `write_rows` wrote."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(line["prompt"], line["max_tokens"]) for line in lines]


def main() -> None:
    from workers.engines.llama.loader import load_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF, for its tokenizer")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of rows (default: 1)")
    parser.add_argument("--rows", type=int, help="the number of rows itself")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model)
    rows = make_rows(args.name, tokenizer, num_rows=args.rows or scaled(args.name, args.scale))
    write_rows(rows, args.target)
    prompt_tokens = sum(tokenizer.count_tokens(row.prompt) for row in rows)
    print(json.dumps(asdict(Size(len(rows), prompt_tokens, sum(row.max_tokens for row in rows)))))


if __name__ == "__main__":
    main()
