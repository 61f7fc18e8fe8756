"""Two jobs compared, for a Python program."""

import os

from batcher.api.job import Job
from batcher.api.jobs import jobs_folder
from batcher.jobdir.folder import JobDir
from batcher.jobdir.root import find_job
from batcher.manage import differences
from batcher.manage.differences import Diff
from batcher.paths import expand_home


def diff(a: Job | str | os.PathLike[str], b: Job | str | os.PathLike[str], *, column: str | None = None) -> Diff:
    """Compare the answers that two jobs have now, row by row: by custom_id, or by row where they have none in common.

        found = batcher.diff("out-a", "out-b")
        found.num_changed, found.changed.to_pandas()

    A job is a `Job`, the path of its folder, or an id below BATCHER_JOBS_DIR. `column` is what is compared, such as
    "output.name", by default the answer: `output`, `label` or `text`. Raises JobError where there is no job, InputError
    for a column that one of them lacks.
    """
    return differences.diff(_folder(a), _folder(b), column=column)


def _folder(job: Job | str | os.PathLike[str]) -> JobDir:
    return find_job(str(job.path) if isinstance(job, Job) else expand_home(job), jobs_folder(None))
