"""The command that says what a job will take: estimate."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from batcher.api.engines import needed_extras, take_engine_options
from batcher.cli.engines import choose_models, engine_options, models_option
from batcher.cli.options import Number, files_argument, jobs_dir_option, json_option, option
from batcher.cli.row_options import input_options, sampling_options, submit_options, with_stdin
from batcher.cli.texts import aligned, size_text
from batcher.installation import check_installed
from batcher.paths import expand_home
from batcher.words import counted, duration_text, one_line

if TYPE_CHECKING:
    from batcher.api.estimating import Estimate

#: Workers, and jobs, that are named.
_MAX_NAMES = 5


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
    type=Number(min=0, min_open=True),
    default=10.0,
    help="How long to run rows of the job, for each model.",
)
@option(
    "--fleet",
    is_flag=True,
    help="Compute nothing: reckon by what jobs of the model have taken in --jobs-dir, for the workers alive there.",
)
@option(
    "--price-per-hour",
    type=Number(min=0),
    metavar="MONEY",
    help="What an hour of this machine costs; with --fleet, of all its workers together.",
)
@option(
    "--price-per-million",
    type=Number(min=0),
    metavar="MONEY",
    help="What a million tokens cost, of prompts and completions together.",
)
@models_option
@sampling_options
@input_options
@engine_options
@jobs_dir_option
@json_option
def estimate_command(
    files: tuple[str, ...],
    *,
    output: str | None,
    seconds: float,
    fleet: bool,
    price_per_hour: float | None,
    price_per_million: float | None,
    models: tuple[str, ...],
    jobs_dir: Path,
    as_json: bool,
    **options: Any,
) -> int:
    """Say what `run` of FILE... would take on this machine: rows, tokens, time with a range, memory, and money.

    Takes the options of `run`. The job is made, rows from all over it are run for some seconds, and the whole is
    reckoned from these. With -o all of that is kept, and `run -o` with the same options goes on from there. With
    --fleet it says what `submit` would take of the workers in --jobs-dir; run a --sample there before.

    \b
    Example:
      batcher estimate prompts.jsonl -o out --model smollm2-135m --max-tokens 64 --price-per-hour 1.20
      batcher estimate prompts.jsonl --fleet --jobs-dir /mnt/jobs --model qwen --max-tokens 64
    """
    _check_given(is_fleet=fleet)
    check_installed("estimate", *needed_extras("none", is_remote=bool(options["engine"])))
    if price_per_hour is not None and price_per_million is not None:
        raise click.UsageError("--price-per-hour and --price-per-million contradict each other; give one of them")
    from batcher.api.estimating import Price, estimate_run, fleet_model, job_folder
    from batcher.api.fleet_estimate import estimate_fleet
    from batcher.api.order import prepare_run

    price = Price(price_per_hour, price_per_million)
    engine = take_engine_options(options)
    make_options = partial(submit_options, row_timeout=engine["row_timeout_s"], **options)
    if fleet:
        submission = make_options(default_model=fleet_model(models), known_models=None)
        found = estimate_fleet(jobs_dir, with_stdin(files), submission, price=price)
        click.echo(json.dumps(asdict(found)) if as_json else _fleet_text(found))
        return 0
    out = None if output is None else Path(expand_home(output)).resolve()
    with job_folder(out) as job:
        found = estimate_run(
            prepare_run(job, models, engine, make_options, quiet=True, choose=choose_models),
            with_stdin(files),
            seconds=seconds,
            price=price,
            is_kept=out is not None,
            on_trial=lambda model: click.echo(
                f"Running rows of {one_line(model)}, for about {seconds:g} s ...", err=True
            ),
        )
    click.echo(json.dumps(asdict(found)) if as_json else _text(found, output))
    return 0


def _check_given(*, is_fleet: bool) -> None:
    """Refuse options that mean nothing with --fleet, or without it. What the environment has is for other commands."""
    from batcher.api.estimating import OF_THIS_MACHINE

    context = click.get_current_context()
    names = ("output", "seconds", *OF_THIS_MACHINE) if is_fleet else ("jobs_dir",)
    given = [
        param.opts[0]
        for param in context.command.params
        if param.name in names and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    ]
    if given and is_fleet:
        raise click.UsageError(f"{', '.join(given)}: with --fleet nothing is computed here; leave it out")
    if given:
        raise click.UsageError("--jobs-dir is where the workers of a fleet are; give --fleet as well, or leave it out")


def _fleet_text(found: "Estimate") -> str:
    busy = f" ({found.num_busy:,} at work now; the time is that of a fleet with nothing else to do)"
    return aligned(
        {
            **_counts_text(found),
            "Time": f"{duration_text(found.total_s)} ({duration_text(found.low_s)} to {duration_text(found.high_s)})",
            "Speed": f"{found.tokens_per_s:,.1f} tokens/s",
            "Cost": _money_text(found),
            "Workers": _names_text(found.workers) + (busy if found.num_busy else ""),
            "Reckoned by": f"{counted(found.num_measured, 'completion')} of the job"
            f"{'' if len(found.jobs) == 1 else 's'} {_names_text(found.jobs)}",
        }
    )


def _names_text(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _counts_text(found: "Estimate") -> dict[str, str]:
    refused = f" ({found.num_refused:,} refused)" if found.num_refused else ""
    cached = f" ({found.cached_tokens:,} from cache)" if found.cached_tokens else ""
    return {
        "Rows": f"{found.num_rows:,}{refused}",
        "Tokens": f"{found.prompt_tokens:,} prompt{cached} + about {found.completion_tokens:,} generated",
    }


def _money_text(found: "Estimate") -> str:
    if found.cost is None:
        return ""
    if found.cost_low == found.cost_high:
        return f"{found.cost:,.2f}"
    return f"{found.cost:,.2f} ({found.cost_low:,.2f} to {found.cost_high:,.2f})"


def _measured_text(found: "Estimate") -> str:
    measured = counted(found.num_measured, "completion")
    is_left = found.num_done < found.num_rows - found.num_refused
    # Half of the range is as long as all that is to be computed.
    is_vague = is_left and found.high_s - found.total_s >= found.total_s - found.start_s
    return f"{measured}, too few to tell; with more --seconds the range is narrower" if is_vague else measured


def _text(found: "Estimate", output: str | None) -> str:
    kept = f"{counted(found.num_done, 'row')} done; go on with `batcher run ... -o {output}` and the same options"
    return aligned(
        {
            **_counts_text(found),
            "Time": f"{duration_text(found.total_s)} ({duration_text(found.low_s)} to {duration_text(found.high_s)}), "
            f"{duration_text(found.start_s)} of it to start",
            "Speed": f"{found.tokens_per_s:,.1f} tokens/s",
            "Memory": f"{size_text(found.peak_memory)} at most",
            "Cost": _money_text(found),
            "Measured": _measured_text(found),
            "Engine": "\n".join(found.setups),
            "Kept": kept
            if output is not None
            else "nothing; with -o OUT, `batcher run` goes on with what was computed",
        }
    )
