"""The order of steps of what begins or goes on with a job, for the command line and Python callers alike."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batcher.api.engines import (
    ChosenModel,
    chat_templates,
    choose_models,
    context_lengths,
    models_reason,
    worker_config,
)
from batcher.api.servers import check_asked
from batcher.ids import check_id
from batcher.jobdir.folder import JobDir
from batcher.jobdir.root import check_place
from batcher.manage.finish import Summary, finalize
from batcher.manage.repair import Damage
from batcher.manage.resume import needed_models, resume
from batcher.submission.planner import submit
from batcher.submission.source import Input, SubmitOptions

if TYPE_CHECKING:
    from batcher.jobdir.manifest import Manifest
    from batcher.jobdir.sending import Send
    from workers.local import JobBroker
    from workers.process.events import WorkerConfig


@dataclass(frozen=True, slots=True)
class Run:
    """What a run on this machine will do: nothing is read, started or written yet."""

    job: JobDir
    models: Sequence[ChosenModel]
    submission: SubmitOptions
    config: "WorkerConfig"


def prepare_run(
    job: JobDir,
    models: Sequence[str],
    engine: Mapping[str, Any],
    make_options: Callable[..., SubmitOptions],
    *,
    quiet: bool,
    choose: Callable[..., list[ChosenModel]] = choose_models,
) -> Run:
    """Look at all that can be wrong with a run of `models` before its input is read.

    `engine` is of `take_engine_options`, `make_options` is `submit_options` that has the caller's own already. Raises
    InputError, JobError, ModelError.
    """
    check_id(job.path.name, what="name of the job directory")
    check_place(job)
    chosen = choose(models, servers=engine["engine"].servers)
    submission = make_options(
        default_model=chosen[0].name,
        known_models=frozenset(model.name for model in chosen),
        context_lengths=context_lengths(chosen, engine["engine"].context_length),
        models_reason=models_reason(chosen, chat_templates(engine["chat_template"], chosen)),
    )
    if (servers := engine["engine"].servers) is not None:
        check_asked(submission.params, servers, is_chat=submission.chat)
    own = (submission.answers.validator,) if submission.answers.validator else ()
    engine = {**engine, "validators": (*engine["validators"], *own)}
    return Run(job, chosen, submission, worker_config(chosen, job.path.parent, home=job.path, quiet=quiet, **engine))


@dataclass(frozen=True, slots=True)
class Begun:
    """`manifest`: of a job that was made; None: it was there. `summary`: of one that is complete already."""

    manifest: "Manifest | None"
    summary: Summary | None


def begin(
    job: JobDir,
    inputs: Sequence[Input],
    options: SubmitOptions,
    *,
    send: "Send | None" = None,
    on_progress: Callable[[int], None] | None = None,
    on_damage: Callable[[Damage], None] | None = None,
) -> Begun:
    """Make the job, or take up the one that is there; see `submission.planner.submit` and `manage.resume.resume`."""
    submitted = submit(job, inputs, options, send=send, on_progress=on_progress)
    if submitted.is_new:
        # Rows that were all refused wait for nobody.
        return Begun(submitted.manifest, None if submitted.manifest.models else finalize(job))
    return Begun(None, resume(job, send=send, on_damage=on_damage).summary)


@dataclass(frozen=True, slots=True)
class Reopened:
    """A job that can go on here. `config`: of workers for it; None: it is complete, and `summary` says how."""

    broker: "JobBroker"
    config: "WorkerConfig | None"
    summary: Summary | None


@contextlib.contextmanager
def reopen(
    job: JobDir,
    models: Sequence[str],
    engine: Mapping[str, Any],
    *,
    quiet: bool,
    choose: Callable[..., list[ChosenModel]] = choose_models,
    on_damage: Callable[[Damage], None] | None = None,
) -> Iterator[Reopened]:
    """Take the job up for workers of this machine, which have a broker within the context."""
    from workers.local import job_broker

    # Before anything is changed or started.
    servers = engine["engine"].servers
    choose(models, needed=needed_models(job), servers=servers)
    with job_broker(job, None) as broker:
        summary = resume(job, on_damage=on_damage).summary
        if summary is not None:
            yield Reopened(broker, None, summary)
            return
        # Once more: those of damaged parts are needed, too.
        chosen = choose(models, needed=needed_models(job), servers=servers)
        config = worker_config(chosen, job.path.parent, home=job.path, quiet=quiet, **engine)
        yield Reopened(broker, config, None)
