"""The jobs root: which folder a job id means, and none outside it.

A link under the root that leads out of it is refused, so that an id, which anyone at the broker can send, reaches only
what the owner of the root put there. The root itself may be a link. Inside a job directory links are followed: whoever
can write there wrote the manifest, and is trusted.
"""

import os
from pathlib import Path

from batcher.errors import JobError
from batcher.ids import check_id


def locate_job(root: Path, job_id: str) -> Path:
    """The folder that `job_id` means under `root`, without links; it need not exist.

    Raises InputError where `job_id` is none, and JobError where it is a link that leads out of `root`.
    """
    link = root / check_id(job_id, what="job id")
    # os.path.realpath, as Path.resolve raises on a link to itself.
    found = Path(os.path.realpath(link))
    if found.parent != Path(os.path.realpath(root)):
        raise JobError(f"{link}: a link that leads out of the jobs folder, to {found}; give that path if you trust it")
    return found
