"""The command that says what a job will take: estimate."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api.engines import needed_extras, take_engine_options
from batcher.cli.engines import choose_models, engine_options, models_option
from batcher.cli.options import files_argument, json_option, option
from batcher.cli.row_options import input_options, sampling_options, submit_options, with_stdin
from batcher.cli.texts import aligned, size_text
from batcher.installation import check_installed
from batcher.paths import expand_home
from batcher.words import counted, duration_text

if TYPE_CHECKING:
    from batcher.api.estimating import Estimate


@click.command("estimate")
@files_argument
@option(
    "--output",
    "-o",
    type=click.Path(file_okay=False),
    help="The job directory, for `run` to go on with what is computed here. [default: none, and nothing is kept]",
)
@option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    help="How long to run rows of the job, for each model.",
)
@option("--price-per-hour", type=click.FloatRange(min=0), metavar="MONEY", help="What an hour of this machine costs.")
@option(
    "--price-per-million",
    type=click.FloatRange(min=0),
    metavar="MONEY",
    help="What a million tokens cost, of prompts and completions together.",
)
@models_option
@sampling_options
@input_options
@engine_options
@json_option
def estimate_command(
    files: tuple[str, ...],
    *,
    output: str | None,
    seconds: float,
    price_per_hour: float | None,
    price_per_million: float | None,
    models: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> int:
    """Say what `run` of FILE... would take on this machine: rows, tokens, time with a range, memory, and money.

    Takes the options of `run`. The job is made, rows from all over it are run for some seconds, and the whole is
    reckoned from these. With -o all of that is kept, and `run -o` with the same options goes on from there.

    \b
    Example:
      batcher estimate prompts.jsonl -o out --model smollm2-135m --max-tokens 64 --price-per-hour 1.20
    """
    check_installed("estimate", *needed_extras("none", is_remote=bool(options["engine"])))
    if price_per_hour is not None and price_per_million is not None:
        raise click.UsageError("--price-per-hour and --price-per-million contradict each other; give one of them")
    from batcher.api.estimating import Price, estimate_run, job_folder
    from batcher.api.order import prepare_run

    engine = take_engine_options(options)
    make_options = partial(submit_options, row_timeout=engine["row_timeout_s"], **options)
    out = None if output is None else Path(expand_home(output)).resolve()
    click.echo(f"Running rows of the job, for about {seconds:g} s ...", err=True)
    with job_folder(out) as job:
        found = estimate_run(
            prepare_run(job, models, engine, make_options, quiet=True, choose=choose_models),
            with_stdin(files),
            seconds=seconds,
            price=Price(price_per_hour, price_per_million),
            is_kept=out is not None,
        )
    click.echo(json.dumps(asdict(found)) if as_json else _text(found, output))
    return 0


def _text(found: "Estimate", output: str | None) -> str:
    refused = f" ({found.num_refused:,} refused)" if found.num_refused else ""
    cached = f" ({found.cached_tokens:,} from cache)" if found.cached_tokens else ""
    money = ""
    if found.cost is not None:
        money = f"{found.cost:,.2f}"
        if found.cost_low != found.cost_high:
            money += f" ({found.cost_low:,.2f} to {found.cost_high:,.2f})"
    kept = f"{counted(found.num_done, 'row')} done; go on with `batcher run ... -o {output}` and the same options"
    return aligned(
        {
            "Rows": f"{found.num_rows:,}{refused}",
            "Tokens": f"{found.prompt_tokens:,} prompt{cached} + about {found.completion_tokens:,} generated",
            "Time": f"{duration_text(found.total_s)} ({duration_text(found.low_s)} to {duration_text(found.high_s)}), "
            f"{duration_text(found.start_s)} of it to start",
            "Speed": f"{found.tokens_per_s:,.1f} tokens/s",
            "Memory": f"{size_text(found.peak_memory)} at most",
            "Cost": money,
            "Measured": f"{found.num_measured:,} completions",
            "Engine": "\n".join(found.setups),
            "Kept": kept
            if output is not None
            else "nothing; with -o OUT, `batcher run` goes on with what was computed",
        }
    )
