"""Servers that compute: whether each answers, has the models, and completes a prompt of them."""

import queue
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from batcher.api.servers import choose_served
from batcher.cli.doctor.finding import Check, Level
from batcher.errors import BatcherError
from batcher.types import UNKNOWN_DEMAND, EngineConfig, RemoteModel, RemoteServers, SamplingParams
from batcher.words import counted

if TYPE_CHECKING:
    from workers.engines.base import SequenceResult

#: Seconds for one token. A server that is busy has others before it.
TRIAL_TIMEOUT_S = 60.0


def check_servers(servers: RemoteServers, specs: Sequence[str]) -> Iterator[Check]:
    """Each server by itself, with the models that `specs` say, as `--model` does: by default the only one there."""
    for url in servers.urls:
        one = RemoteServers((url,), servers.key)
        check, answers = _check_server(one)
        yield check
        if not answers:
            continue
        try:
            chosen = choose_served(specs, one)
        except BatcherError as exc:
            message, _, remedy = str(exc).partition("; ")
            yield Check(f"model at {url}", Level.FAIL, message, remedy or "give --model a name that the server lists")
            continue
        for model in chosen:
            yield _try(model, one)


def _check_server(servers: RemoteServers) -> tuple[Check, bool]:
    """What there is to say of the one server, and whether it answers."""
    from workers.engines.open import look_at_servers

    [(url, found)] = look_at_servers(servers).items()
    name = f"engine {url}"
    if isinstance(found, str):
        remedy = "start it; a worker waits for it, and correct the URL if it is another"
        return Check(name, Level.FAIL, f"does not answer: {found}", remedy), False
    if isinstance(found, BatcherError):
        message, _, remedy = str(found).removeprefix(f"{url}: ").partition("; ")
        return Check(name, Level.FAIL, message, remedy), False
    return Check(name, Level.OK, f"{found.dialect.name}, {counted(len(found.models), 'model')}"), True


def _try(model: RemoteModel, servers: RemoteServers) -> Check:
    from workers.engines.base import SequenceRequest
    from workers.engines.open import load_engines

    name = f"model {model.name}"
    request = SequenceRequest((0, 0), "Hello", SamplingParams(max_tokens=1, temperature=0), timeout_s=TRIAL_TIMEOUT_S)
    inbox: queue.SimpleQueue[SequenceResult | BatcherError] = queue.SimpleQueue()
    [loaded] = load_engines([(model.name, model.served_name)], EngineConfig(servers=servers), UNKNOWN_DEMAND)
    try:
        loaded.engine.start()
        began_at = monotonic()
        loaded.engine.submit([request], inbox.put)
        # Beyond the request's own, where the server is asked more than once.
        result = inbox.get(timeout=2 * TRIAL_TIMEOUT_S)
    except (BatcherError, queue.Empty) as exc:
        return Check(name, Level.FAIL, f"completes nothing: {exc or 'no answer'}", _REMEDY)
    finally:
        loaded.engine.close()
    if isinstance(result, BatcherError):
        return Check(name, Level.FAIL, f"completes nothing: {result}", _REMEDY)
    if result.error is not None:
        return Check(name, Level.FAIL, f"completes nothing: {result.error.message}", _REMEDY)
    return Check(name, Level.OK, f"{model.served_name} completes a prompt, in {monotonic() - began_at:.2f} s")


_REMEDY = "look into the server's log; its /completions must take prompts of this model"
