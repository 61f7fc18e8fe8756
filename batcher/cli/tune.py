"""The command that measures: tune."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli.options import Number, context_option, gpu_layers_option, option
from batcher.cli.row_options import prompt_column_option, template_option
from batcher.installation import check_installed
from batcher.types import EngineConfig
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.model_files import ModelRef
    from workers.engines.profile import Profile
    from workers.tuning.search import Measurement
    from workers.tuning.trial import TrialPrompt

#: A few paragraphs of the kinds that jobs have: instructions, questions, texts to go on with.
_BUILT_IN_PROMPTS = (
    "Summarize in one sentence: {}",
    "The following is a review of a product. Say whether it is positive or negative, and why.\n\n{}\n\nAnswer:",
    "Continue the story.\n\n{}",
    "Question: What is the text below about?\n\n{}\n\nAnswer:",
)
_BUILT_IN_TEXTS = (
    "The old lighthouse keeper counted seven ships that passed before dawn, while rain moved slowly over the hills.",
    "I ordered the kettle in spring, and it still boils a litre in two minutes. The lid is loose, but nobody minds.",
    "Bread is made from flour, water, salt and a little patience; the rest is the heat of the oven and the hour.",
    "When the river rose for the third time that year, the village moved its market to the top of the hill.",
    "The committee met twice and decided that the bridge should be painted green, as it had been before the war.",
    "A good map leaves out almost everything, and what it keeps it keeps in the place where people look for it.",
    "She had repaired clocks for forty years and was late for dinner every day of them, as her husband liked to say.",
    "The battery lasts a day if you hardly use it. The screen is fine, the speaker is not, and the price was fair.",
)

_LABEL_WIDTH = 52

#: Processes that wanted to run at a time within the last minute, above which measurements mean little.
_BUSY_CORES = 0.7


@click.command("tune")
@option(
    "--model", envvar="BATCHER_MODEL", metavar="NAME|PATH|NAME=PATH", help="Model to tune for. [default: the only one]"
)
@option("--prompts", multiple=True, metavar="FILE", help="Input whose first rows are used. [default: built-in prompts]")
@prompt_column_option
@template_option
@option(
    "--max-tokens",
    type=click.IntRange(min=1, max=2**31 - 1),
    default=64,
    help="Most tokens to generate, for rows that don't say.",
)
@option("--seconds", type=Number(min=0.05), default=3.0, help="Length of each measurement, of about ten.")
@gpu_layers_option
@context_option
@option("--show", "is_showing", envvar="BATCHER_SHOW", is_flag=True, help="Only show the profile in use.")
@option("--forget", "is_forgetting", envvar="BATCHER_FORGET", is_flag=True, help="Only delete the model's profiles.")
def tune_command(
    *,
    model: str | None,
    prompts: tuple[str, ...],
    prompt_column: str | None,
    template: str | None,
    max_tokens: int,
    seconds: float,
    gpu_layers: int | None,
    ctx: int | None,
    is_showing: bool,
    is_forgetting: bool,
) -> int:
    """Measure which settings make the most tokens/s of a model on this machine, and keep them for its workers.

    Tries numbers of threads and of slots, and sizes of batches; a candidate must be more than 3% faster than the
    default to replace it, and is measured beside it once more. What is found goes into a profile, which `worker`, `run`
    and `resume` use from then on, under options given to them. It is best done with nothing else running.

    \b
    Example:
      batcher tune --model smollm2-135m --prompts prompts.jsonl --max-tokens 64
    """
    if not is_forgetting:
        check_installed("tune", "worker")

    if is_showing and is_forgetting:
        raise click.UsageError("--show and --forget: give one of them")
    ref = _find_model(model)
    if is_forgetting:
        return _forget(ref)
    if is_showing:
        return _show(ref, gpu_layers=gpu_layers)
    config = EngineConfig(num_gpu_layers=gpu_layers, context_length=ctx)
    found = _read_prompts(ref, prompts, prompt_column=prompt_column, template=template, max_tokens=max_tokens)
    return _tune(ref, found, config=config, seconds=seconds, source=", ".join(prompts))


def _tune(model: "ModelRef", prompts: "list[TrialPrompt]", *, config: EngineConfig, seconds: float, source: str) -> int:
    from workers.engines.profile import save_profile
    from workers.tuning.search import tune

    if os.getloadavg()[0] > _BUSY_CORES:
        click.echo(
            f"Note: other processes keep {os.getloadavg()[0]:.1f} cores busy; what is measured holds while they do.",
            err=True,
        )
    workload = f"{len(prompts)} of {source}" if source else f"{len(prompts)} built-in prompts"
    click.echo(f"Tuning {model.name} with {workload}, {seconds:g} s each.")
    click.echo(f"{'CANDIDATE':<{_LABEL_WIDTH}}{'TOKENS/S':>10}{'RATIO':>8}")
    profile = tune(
        *(model.name, model.path),
        prompts=prompts,
        workload=workload,
        config=config,
        seconds=seconds,
        on_measured=lambda measurement: click.echo(_measurement_text(measurement)),
    )
    path = save_profile(profile)
    click.echo(f"\nChoice     {profile.values}\nReason     {profile.reason}\nSaved      {path}")
    return 0


def _show(model: "ModelRef", *, gpu_layers: int | None) -> int:
    from workers.engines.open import uses_gpu
    from workers.engines.profile import load_profile, machine_key, model_key, profile_path

    key = model_key(model.path)
    machine = machine_key(uses_gpu=uses_gpu(EngineConfig(num_gpu_layers=gpu_layers)))
    profile = load_profile(key, machine)
    if profile is None:
        click.echo(f"There is no profile of {model.name}; `batcher tune --model {model.name}` makes one.", err=True)
        return 0
    click.echo(_profile_text(profile, profile_path(key, machine)))
    return 0


def _forget(model: "ModelRef") -> int:
    from workers.engines.profile import forget_profiles, model_key

    paths = forget_profiles(model_key(model.path))
    for path in paths:
        click.echo(f"Deleted {path}")
    if not paths:
        click.echo(f"There is no profile of {model.name}.", err=True)
    return 0


def _find_model(spec: str | None) -> "ModelRef":
    from batcher.cli.engines import tell
    from batcher.models.resolver import our_models, parse_model

    if spec is not None:
        return parse_model(spec, tell=tell)
    ours = our_models()
    if len(ours) != 1:
        raise click.UsageError("which model? Give --model NAME|PATH; `batcher models` lists the known names")
    return ours[0]


def _read_prompts(
    model: "ModelRef", files: tuple[str, ...], *, prompt_column: str | None, template: str | None, max_tokens: int
) -> "list[TrialPrompt]":
    """The prompts of the first rows, each with its own parameters. Raises InputError."""
    from batcher.cli.row_options import read_template
    from batcher.errors import InputError
    from batcher.submission.source import SubmitOptions, read_requests
    from batcher.types import SamplingParams
    from workers.tuning.search import MAX_PROMPTS
    from workers.tuning.trial import TrialPrompt

    params = SamplingParams(max_tokens=max_tokens)
    if not files:
        texts = [prompt.format(text) for text in _BUILT_IN_TEXTS for prompt in _BUILT_IN_PROMPTS]
        return [TrialPrompt(text, params) for text in texts]
    options = SubmitOptions(
        default_model=model.name,
        params=params,
        chat_max_tokens=max_tokens,
        known_models=frozenset({model.name}),
        prompt_column=prompt_column,
        template=read_template(template),
    )
    requests = read_requests(files, options, limit=MAX_PROMPTS)
    prompts = [TrialPrompt(text, request.params) for request in requests for text in request.prompts]
    if not prompts:
        raise InputError(f"--prompts {' '.join(files)}: no row is good for {model.name}; `batcher validate` says why")
    return prompts[:MAX_PROMPTS]


def _measurement_text(measurement: "Measurement") -> str:
    if measurement.tokens_per_s is None or measurement.ratio is None:
        return f"{measurement.what:<{_LABEL_WIDTH}}{'failed':>10}  {measurement.error}"
    return f"{measurement.what:<{_LABEL_WIDTH}}{measurement.tokens_per_s:>10,.0f}{measurement.ratio:>8.2f}"


def _profile_text(profile: "Profile", path: Path) -> str:
    machine = profile.machine
    lines = (
        ("Profile", str(path)),
        ("Model", profile.model_name),
        ("Settings", str(profile.values)),
        ("Reason", profile.reason),
        ("Speed", f"{profile.tokens_per_s:,.0f} tokens/s; the default {profile.default_tokens_per_s:,.0f}"),
        ("Measured", f"{profile.measured_at.astimezone():%Y-%m-%d %H:%M}, {profile.workload}"),
        (
            "Machine",
            f"{counted(machine.num_cores, 'core')}, {machine.processor}, {'GPU' if machine.uses_gpu else 'no GPU'}, "
            f"llama-cpp-python {machine.llama_cpp_python}",
        ),
    )
    return "\n".join(f"{name:<11}{text}" for name, text in lines)
