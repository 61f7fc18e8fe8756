"""What is wrong with this machine for Batcher, and the remedy: each check really tries the thing.

finding.py      what a check says
software.py     packages, llama.cpp's library, the machine
broker.py       the broker
jobs_folder.py  the jobs root, and who works there
models.py       the model files, and whether they fit into memory
servers.py      servers that compute
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from batcher.cli.doctor.broker import check_broker, check_embedded_broker
from batcher.cli.doctor.finding import Check, Level
from batcher.cli.doctor.jobs_folder import check_elsewhere, check_jobs_dir, check_workers, loaded_models
from batcher.cli.doctor.models import check_models
from batcher.cli.doctor.servers import check_servers
from batcher.cli.doctor.software import check_kernels, check_llama, check_machine, check_packages
from batcher.model_files import ModelRef
from batcher.types import EngineConfig

__all__ = ["Check", "Level", "run_checks"]


def run_checks(
    *,
    jobs_dir: Path,
    broker: str | None,
    models: Sequence[ModelRef],
    wishes: EngineConfig,
    is_one_worker: bool,
    served: Sequence[str] = (),
) -> Iterator[Check]:
    """All checks, one after the other as they are done.

    Touches disk (a probe file, removed again) and the broker (a key, removed again; without a URL a server of its own
    is started and stopped). Reads the headers of the models, not their weights. Where `wishes` have servers, these are
    asked, with the models that are `served`, and there is no model here and no llama.cpp.
    """
    yield from check_packages("worker" if wishes.servers is None else "remote")
    if wishes.servers is None:
        llama = check_llama()
        yield llama
        if llama.level is Level.OK:
            yield check_kernels()
    yield check_machine()
    yield from check_jobs_dir(jobs_dir)
    yield check_workers(jobs_dir)
    if broker:
        yield from _check_broker(broker, jobs_dir)
    else:
        yield check_embedded_broker()
    if wishes.servers is not None:
        yield from check_servers(wishes.servers, served)
        return
    yield from check_models(models, wishes, is_one_worker=is_one_worker, loaded=loaded_models(jobs_dir))


def _check_broker(url: str, jobs_dir: Path) -> Iterator[Check]:
    is_well = True
    for check in check_broker(url):
        is_well &= check.level is not Level.FAIL
        yield check
    if is_well:
        yield check_elsewhere(jobs_dir, url)
