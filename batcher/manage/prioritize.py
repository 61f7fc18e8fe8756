"""A job gets another place among others, while it waits or runs.

That is a note beside its manifest, so no broker is needed: what the workers send from now on goes where it belongs, and
what lies in their queue is moved by the next sweep, within seconds. Shards in work are not interrupted.
"""

from batcher.jobdir.folder import JobDir
from batcher.jobdir.standing import Standing, change_standing
from batcher.manage.finish import finalize


def prioritize(job: JobDir, wish: Standing, *, forgets_time: bool = False) -> Standing | None:
    """Note what is asked for; with `forgets_time` the job need not be finished by any time. Returns what it has then;
    None: it is complete.

    Raises JobError where the manifest is wrong, JobBusyError while another command changes the job, StorageError.
    """
    if finalize(job) is not None:
        return None
    return change_standing(job, wish, forgets_time=forgets_time)
