"""What the hub's refusals and failures mean to a user, and what helps."""

import contextlib
from collections.abc import Iterator

from batcher.errors import ModelError, first_line
from batcher.models.hub import KEY, HubName, endpoint

#: How HTTP libraries call their errors of connections; which library huggingface_hub uses changes with its versions.
_NO_CONNECTION = ("ConnectError", "ConnectionError", "ConnectTimeout", "Timeout", "TimeoutException", "TransportError")


@contextlib.contextmanager
def explained(wanted: HubName) -> Iterator[None]:
    """What is raised within by huggingface_hub or the system comes out as ModelError with the remedy."""
    try:
        yield
    except ModelError:
        raise
    except Exception as exc:
        text = _explain(exc, wanted)
        if text is None:
            raise
        raise ModelError(f"{KEY}:{wanted}: {text}") from exc


def _explain(exc: Exception, wanted: HubName) -> str | None:
    from huggingface_hub import errors, get_token

    page = f"{endpoint()}/{wanted.repository}"
    if isinstance(exc, errors.OfflineModeIsEnabled):
        return "offline mode forbids to ask the hub; unset HF_HUB_OFFLINE, or take what `batcher models` lists"
    if isinstance(exc, errors.GatedRepoError):
        if get_token():
            return f"the repository is gated, and the account of HF_TOKEN has no access: accept its terms at {page}"
        return f"the repository is gated: accept its terms at {page}, then set HF_TOKEN to a token of that account"
    if isinstance(exc, errors.RevisionNotFoundError):
        return f"the repository has no revision {wanted.revision}; leave out @{wanted.revision} for the main one"
    if isinstance(exc, errors.RepositoryNotFoundError):
        private = "" if get_token() else "; one that is private takes HF_TOKEN"
        return f"there is no such repository at {endpoint()}, or none that you may see; check its name{private}"
    if isinstance(exc, errors.EntryNotFoundError) and not isinstance(exc, errors.LocalEntryNotFoundError):
        return "the repository has no such file; leave out the file to have one chosen"
    if isinstance(exc, errors.HFValidationError):
        return f"{first_line(exc)}; write hf:OWNER/REPO:QUANT"
    if isinstance(exc, errors.HfHubHTTPError):
        return _explain_status(exc.response.status_code, endpoint())
    names = {each.__name__ for each in type(exc).__mro__}
    if isinstance(exc, errors.LocalEntryNotFoundError | ConnectionError) or names & set(_NO_CONNECTION):
        return (
            f"cannot reach {endpoint()}: {first_line(exc)}; check the network and HF_ENDPOINT. What has come "
            "is kept, and the same command goes on with it"
        )
    if isinstance(exc, OSError):
        what = exc.strerror or first_line(exc)
        return f"cannot store it: {what}: {exc.filename or 'the cache'}; free room, or set HF_HOME to another folder"
    return None


def _explain_status(status: int, endpoint: str) -> str:
    if status in (401, 403):
        return f"{endpoint} refuses HF_TOKEN ({status}); make a token with read access there, or unset HF_TOKEN"
    if status == 429:
        return f"{endpoint} has had too many requests (429); wait a minute, or set HF_TOKEN for a higher limit"
    return f"{endpoint} answers with {status}; try again later"
