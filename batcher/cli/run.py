"""The commands that do the work: run, submit, worker, resume."""

import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api.engines import model_spec, needed_extras, take_engine_options
from batcher.cli import EXIT_INTERRUPTED
from batcher.cli.engines import (
    choose_models,
    engine_options,
    metrics_options,
    models_dir_option,
    models_option,
    standing_config,
)
from batcher.cli.logs import log_options, log_to_stderr, take_stderr, with_log
from batcher.cli.options import (
    broker_option,
    files_argument,
    find_job,
    job_argument,
    jobs_dir_option,
    option,
    row_timeout_option,
    standing_options,
)
from batcher.cli.piping import STDOUT, output_folder, write_results
from batcher.cli.row_options import input_options, sampling_options, say_shortage, submit_options, with_stdin
from batcher.cli.texts import say_json_parts, typed_job
from batcher.cli.unserved import here_line, warn_of_unserved
from batcher.cli.watch import complete_job, how_far, report, report_complete, typed_command, wait_for_job
from batcher.installation import check_installed
from batcher.paths import expand_home
from batcher.selection import ALL_ROWS
from batcher.words import counted

if TYPE_CHECKING:
    import subprocess

    from batcher.api.order import Run
    from batcher.jobdir.folder import JobDir
    from batcher.jobdir.sending import Send
    from batcher.manage.finish import Summary
    from batcher.manage.repair import Damage
    from batcher.submission.source import SubmitOptions

quiet_option = option("--quiet", "-q", is_flag=True, help="No progress; only the summary, and what went wrong.")
workers_option = option(
    "--workers", "num_workers", envvar="BATCHER_WORKERS", type=click.IntRange(min=1), default=1, help="Local workers."
)


@click.command("run")
@files_argument
@option(
    "--output",
    "-o",
    required=True,
    type=click.Path(file_okay=False),
    help="The job directory; - writes results to stdout.",
)
@models_option
@sampling_options
@input_options
@standing_options
@engine_options
@workers_option
@broker_option
@quiet_option
@log_options
def run_command(
    files: tuple[str, ...],
    *,
    output: str,
    models: tuple[str, ...],
    num_workers: int,
    broker: str | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Complete the prompts of FILE... on this machine. The same command again resumes what was interrupted.

    FILE is Parquet, JSONL or CSV (.gz, .zst), a folder of these, a glob, or - for stdin. Results are in OUT/results
    as Parquet, or with -o - on stdout as JSON lines, a row a choice in input order, once all are there.

    \b
    Examples:
      batcher run prompts.jsonl -o out --model smollm2-135m --max-tokens 64
      cat prompts.jsonl | batcher run - -o - --model smollm2-135m | jq .text
    """
    check_installed("run", *needed_extras(broker, is_remote=bool(options["engine"])))
    take_stderr()
    spares, log = _launch_spares(num_workers, quiet=quiet)
    log_to_stderr(logging.WARNING, broker_url=broker or "")

    from batcher.api.order import prepare_run
    from batcher.jobdir.folder import JobDir
    from workers.local import job_broker

    engine = take_engine_options(options)
    is_piped = output == STDOUT
    folder = click.get_current_context().with_resource(output_folder(output))
    job = JobDir(Path(expand_home(folder.path)).resolve())
    make_options = partial(submit_options, row_timeout=engine["row_timeout_s"], **options)
    prepared = prepare_run(job, models, engine, make_options, quiet=True, choose=choose_models)
    again = here_line(_resume_line(folder.path, prepared)) if is_piped or "-" in files else typed_command()
    say = partial(write_results, folder, quiet=quiet) if is_piped else report
    with job_broker(job, broker) as queue:
        try:
            summary = _submit(job, files, prepared.submission, quiet=quiet)
        except KeyboardInterrupt:
            if job.exists():
                click.echo(f"Stopped. Go on with:\n  {again}", err=True)
            else:
                click.echo("Stopped while reading the input; nothing was submitted. Start again with:", err=True)
                click.echo(f"  {typed_command()}", err=True)
            return EXIT_INTERRUPTED
        if summary is not None:
            return say(job, summary) if is_piped else report_complete(job, summary)
        return complete_job(
            *(job, prepared.config),
            num_workers=num_workers,
            broker=queue,
            spares=spares,
            log=log,
            quiet=quiet,
            again=again,
            say=say,
        )


@click.command("submit")
@files_argument
@option("--job-id", help="Name of the job. [default: the day and four letters]")
@option("--model", metavar="NAME", help="Model of rows which name none.")
@sampling_options
@input_options
@standing_options
@row_timeout_option
@broker_option
@jobs_dir_option
@option("--wait", "is_waiting", envvar="BATCHER_WAIT", is_flag=True, help="Stay until the job is complete.")
@quiet_option
def submit_command(
    files: tuple[str, ...],
    *,
    job_id: str | None,
    model: str | None,
    broker: str | None,
    jobs_dir: Path,
    is_waiting: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Submit the prompts of FILE... as a job for `batcher worker`, and print its id.

    Workers need the same broker and the same --jobs-dir, so on several machines that is a shared folder.

    \b
    Example:
      batcher submit prompts.jsonl --model qwen --broker redis://host:6379/0 --jobs-dir /mnt/jobs
    """
    from batcher.broker.sender import sending
    from batcher.jobdir.root import place_job
    from batcher.models.resolver import served_name

    if broker is None:
        raise click.UsageError(
            "submit needs --broker URL (or BATCHER_BROKER); on one machine, `batcher run` needs none"
        )
    # Before anything is written: a mistyped URL should leave no job.
    with sending(broker) as send, place_job(jobs_dir, job_id) as job:
        default_model = None if model is None else served_name(model)
        submission = submit_options(default_model=default_model, known_models=None, **options)
        _submit(job, files, submission, send=send, quiet=quiet)
    click.echo(job.job_id)
    warn_of_unserved(job, broker)
    return wait_for_job(job, broker, quiet=quiet) if is_waiting else 0


@click.command("worker")
@models_option
@models_dir_option
@engine_options
@metrics_options
@option("--name", help="What stands in the `worker` column of the results. [default: host and process id]")
@broker_option
@jobs_dir_option
@log_options
def worker_command(
    *,
    models: tuple[str, ...],
    metrics_at: tuple[str, int] | None,
    name: str | None,
    broker: str | None,
    jobs_dir: Path,
    **options: Any,
) -> int:
    """Work on submitted jobs until stopped. Start as many as you like, on any machine that sees broker and jobs.

    On SIGTERM or Ctrl-C the worker saves its finished rows and puts its shards back into the queue.

    \b
    Example:
      batcher worker --model qwen=/models/qwen.gguf --broker redis://host:6379/0 --jobs-dir /mnt/jobs
    """
    check_installed("worker", "remote" if options["engine"] else "worker", *(("metrics",) if metrics_at else ()))
    from batcher.broker.url import hide_password
    from batcher.ids import check_id
    from batcher.jobdir.probe import check_takes_jobs
    from batcher.jobdir.root import make_root
    from workers.local import default_worker_name, run_worker

    if broker is None:
        raise click.UsageError(
            "worker needs --broker URL (or BATCHER_BROKER); on one machine, `batcher run` needs none"
        )
    engine = take_engine_options(options)
    chosen = choose_models(models, servers=engine["engine"].servers, takes_all=True)
    check_takes_jobs(jobs_dir)
    jobs_root = make_root(jobs_dir)
    name = check_id(name, what="worker name") if name else default_worker_name()
    log_to_stderr(logging.INFO, broker_url=broker, worker=name)
    config = standing_config(models, chosen, jobs_root, engine)
    config = replace(with_log(config), broker_url=broker, name=name)
    is_drained = run_worker(
        config,
        on_ready=lambda: click.echo(
            f"Worker {config.name} is ready: {', '.join(model.name for model in chosen)} "
            f"from {hide_password(broker)}, jobs in {jobs_root}"
        ),
        metrics_at=metrics_at,
    )
    if is_drained:
        click.echo("Drained; the shards that it had are finished or with others.", err=True)
    else:
        click.echo("Stopped; finished rows are kept, unfinished shards are back in the queue.", err=True)
    return 0


@click.command("resume")
@job_argument
@models_option
@engine_options
@workers_option
@broker_option
@jobs_dir_option
@quiet_option
@log_options
def resume_command(
    job: str,
    *,
    models: tuple[str, ...],
    num_workers: int,
    broker: str | None,
    jobs_dir: Path,
    quiet: bool,
    **options: Any,
) -> int:
    """Take JOB up again: what is finished is kept, also where the job was paused, cancelled or the broker lost.

    With --broker its shards go to the workers there. Without, workers of this machine complete it, as `run` does.

    \b
    Example:
      batcher resume out
    """
    if broker is None:
        check_installed("resume", *needed_extras(broker, is_remote=bool(options["engine"])))
    take_stderr()
    spares, log = _launch_spares(num_workers if broker is None else 0, quiet=quiet)
    log_to_stderr(logging.WARNING, broker_url=broker or "")

    from batcher.api.order import reopen
    from batcher.broker.sender import sending
    from batcher.manage.resume import resume

    engine = take_engine_options(options)
    found = find_job(job, jobs_dir)
    if broker is not None:
        with sending(broker) as send:
            resumed = resume(found, send=send, on_damage=_warn_of_damage)
        if resumed.summary is not None:
            return report_complete(found, resumed.summary)
        line = f"batcher status {typed_job(found)} --watch"
        click.echo(f"Enqueued {counted(resumed.num_sent, 'shard')}; `{line}` shows how they go.")
        warn_of_unserved(found, broker)
        return 0
    with reopen(found, models, engine, quiet=True, choose=choose_models, on_damage=_warn_of_damage) as reopened:
        if reopened.config is None:
            assert reopened.summary is not None
            return report_complete(found, reopened.summary)
        _say_how_far(found, quiet=quiet)
        return complete_job(
            *(found, reopened.config),
            num_workers=num_workers,
            broker=reopened.broker,
            spares=spares,
            log=log,
            quiet=quiet,
            again=typed_command(),
        )


def _launch_spares(number: int, *, quiet: bool) -> "tuple[list[subprocess.Popen[bytes]], int | None]":
    """Processes for workers, to be called first of all: they get ready while this one does. Gone with the command.

    With them the descriptor of their stderr, if that is not ours: no line of theirs breaks into what is drawn.
    """
    from batcher.api.terminal import is_capable, relay
    from workers.process.launch import spare_children

    context = click.get_current_context()
    log = context.with_resource(relay()).descriptor if is_capable() and not quiet else None
    return context.with_resource(spare_children(number, log=log)), log


# -- submitting ---------------------------------------------------------------------------------------------------


def _submit(
    job: "JobDir", files: Sequence[str], options: "SubmitOptions", *, quiet: bool, send: "Send | None" = None
) -> "Summary | None":
    """Make the job, or take up the one that is there; say which on stderr. Returns the summary of a complete one."""
    from batcher.api.order import begin

    on_progress = None if quiet else _show_reading
    begun = begin(job, with_stdin(files), options, send=send, on_progress=on_progress, on_damage=_warn_of_damage)
    if (manifest := begun.manifest) is None:
        if begun.summary is None:
            _say_how_far(job, quiet=quiet)
    elif not quiet:
        refused = f" ({manifest.num_refused:,} refused)" if manifest.num_refused else ""
        is_whole = options.selection == ALL_ROWS or options.selection.find_shortage(manifest.num_rows)
        rows = counted(manifest.num_rows, "row") if is_whole else options.selection
        click.echo(f"Submitted {rows}{refused} in {counted(len(manifest.shards), 'shard')}.", err=True)
        say_shortage(options.selection, manifest.num_rows)
        say_json_parts(options.params)
    return begun.summary


def _warn_of_damage(damage: "Damage") -> None:
    click.echo(f"Warning: {damage}", err=True)


def _show_reading(num_rows: int) -> None:
    """A count that stays on its line; nothing where nobody looks."""
    if sys.stderr.isatty():
        click.echo(f"\rReading: {counted(num_rows, 'row')}\r", nl=False, err=True)


def _say_how_far(job: "JobDir", *, quiet: bool) -> None:
    if not quiet:
        click.echo(f"Resuming: {how_far(job)}.", err=True)


def _resume_line(output: str, run: "Run") -> str:
    """What goes on with a run whose input can't be read again."""
    servers = run.config.engine.servers
    given = [("--engine", url) for url in (servers.urls if servers is not None else ())]
    given += [("--model", model_spec(model)) for model in run.models]
    given += [("--allow-validator", name) for name, _ in run.config.validators]
    return shlex.join(["batcher", "resume", output, *(word for pair in given for word in pair)])
