"""What a server says of itself and its models: GET /models, and for Ollama GET /api/version beside the API."""

import asyncio
import difflib
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import httpx
from pydantic import BaseModel, BeforeValidator, ValidationError

from batcher.errors import InputError, ModelError
from batcher.types import RemoteServers
from workers.engines.remote import dialects
from workers.engines.remote.dialects import Dialect
from workers.engines.remote.failures import (
    AwayError,
    BrokenError,
    DeniedError,
    MissingError,
    RemoteError,
    describe,
    failure_of,
)

#: Seconds for a look at a server. It may be computing for many.
LOOK_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
#: Seconds that a connection is kept unused. Servers close theirs after 5 (uvicorn, llama-server): a request that goes
#: out at that moment is cut.
KEEPALIVE_S = 3.0
_MOST_MODELS_SHOWN = 10

_Lenient = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "")]


class _Meta(BaseModel):
    n_ctx: int | None = None


class _Model(BaseModel):
    id: str
    owned_by: _Lenient = ""
    aliases: list[str] | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None


class _Models(BaseModel):
    data: list[_Model] | None = None


class AbsentModelError(MissingError):
    """The server answers, and has no such model."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that a server lists. `context_length`: tokens of a sequence, where it says so."""

    name: str
    aliases: tuple[str, ...] = ()
    context_length: int | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a server is, and its models; none where it has no list."""

    dialect: Dialect
    models: tuple[ListedModel, ...]

    def find(self, name: str) -> ListedModel | None:
        """The model that answers to `name`; None where the server has a list without it."""
        for model in self.models:
            if name in (model.name, *model.aliases):
                return model
        if not self.models:
            return ListedModel(name)
        # With one model loaded, any name means it.
        is_only = self.dialect.ignores_model and len(self.models) == 1
        return self.models[0] if is_only else None

    def missing(self, name: str) -> "AbsentModelError":
        """That there is no such model, with what there is."""
        names = [model.name for model in self.models]
        near = difflib.get_close_matches(name, names, n=_MOST_MODELS_SHOWN, cutoff=0.4) or names[:_MOST_MODELS_SHOWN]
        more = ", ..." if len(near) < len(names) else ""
        return AbsentModelError(f"no model {name} there; it serves {', '.join(near)}{more}")


def open_client(url: str, key: str, *, tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """One connection to a server, kept for the next request. For the event loop in which it is used.

    `tls` is of `tls_context`, for those who open many.
    """
    # Unpacked, an answer could be of any size.
    headers = {"accept-encoding": "identity", "user-agent": "batcher"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(
        base_url=url,
        headers=headers,
        verify=tls or tls_context(url) or False,
        timeout=httpx.Timeout(LOOK_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S),
    )


def tls_context(url: str) -> ssl.SSLContext | None:
    """What certificates are checked by; None without TLS: to read all that are trusted takes a while, and redirects
    are not followed."""
    return httpx.create_ssl_context() if url.startswith("https:") else None


async def look(client: httpx.AsyncClient) -> Catalog:
    """Ask a server what it is. Raises RemoteError: AwayError where nobody answers, DeniedError for the key."""
    try:
        response = await client.get("models")
    except httpx.InvalidURL as exc:
        raise MissingError(str(exc)) from exc
    except httpx.TransportError as exc:
        raise AwayError(words_of(exc)) from exc
    except httpx.HTTPError as exc:
        raise BrokenError(words_of(exc)) from exc
    if response.status_code == httpx.codes.NOT_FOUND and str(client.base_url).rstrip("/").endswith("/v1"):
        return Catalog(dialects.GENERIC, ())
    if not response.is_success:
        raise failure_of(response.status_code, response.headers, response.content, sent=())
    try:
        found = _Models.model_validate_json(response.content).data or []
    except ValidationError as exc:
        raise BrokenError(f"its list of models is none of the OpenAI API: {describe(response.content)}") from exc
    models = tuple(ListedModel(each.id, tuple(each.aliases or ()), _context_length(each)) for each in found)
    return Catalog(await _recognize(client, found), models)


async def _recognize(client: httpx.AsyncClient, models: list[_Model]) -> Dialect:
    owners = {model.owned_by for model in models}
    if len(owners) == 1 and (known := dialects.BY_OWNER.get(owners.pop())):
        return known
    try:
        response = await client.get(client.base_url.join("/api/version"))
        if response.is_success and "version" in response.json():
            return dialects.OLLAMA
    except (httpx.HTTPError, ValueError, TypeError):
        pass
    return dialects.GENERIC


def _context_length(model: _Model) -> int | None:
    return model.max_model_len or (model.meta.n_ctx if model.meta is not None else None)


def words_of(exc: Exception) -> str:
    """What a library says of a connection, or what kind of end it was."""
    words = str(exc).strip()
    cause = exc.__cause__ or exc.__context__
    if not words or words == "All connection attempts failed":
        words = str(cause).strip() if cause is not None and str(cause).strip() else type(exc).__name__
    return words


def check_url(url: str) -> str:
    """The URL of a server's API, without a slash at its end. Raises InputError with the remedy."""
    example = "give the URL of its API, such as http://127.0.0.1:8000/v1"
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as exc:
        raise InputError(f"--engine: not a URL ({exc}); {example}") from exc
    if parsed.userinfo:
        raise InputError(
            "--engine: a user or password in the URL is seen by everyone who can run `ps`; put the key into the "
            "environment as BATCHER_ENGINE_KEY, or into a file that only you can read, for --engine-key-file"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"--engine {url}: not an http:// or https:// URL; {example}")
    if parsed.query or parsed.fragment:
        raise InputError(f"--engine {url}: nothing may follow the path; {example}")
    return str(parsed).rstrip("/")


def look_at_all(servers: RemoteServers) -> dict[str, "Catalog | RemoteError"]:
    """What each server is, by URL, or why it does not say. Blocks for as long as a look may take."""

    async def one(url: str) -> Catalog | RemoteError:
        async with open_client(url, servers.key) as client:
            try:
                return await look(client)
            except RemoteError as exc:
                return exc

    async def all_of_them() -> list[Catalog | RemoteError]:
        return list(await asyncio.gather(*map(one, servers.urls)))

    # In a thread of its own: that of a caller may have an event loop that runs, as a notebook's has.
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: asyncio.run(all_of_them())).result()
    return dict(zip(servers.urls, found, strict=True))


def refusal(url: str, exc: RemoteError) -> ModelError | None:
    """Why a worker can't use this server as it is; None where waiting may help."""
    if isinstance(exc, DeniedError):
        remedy = "give its key as BATCHER_ENGINE_KEY or with --engine-key-file"
        return ModelError(f"{url}: {exc}; {remedy}")
    if isinstance(exc, AbsentModelError):
        return ModelError(f"{url}: {exc}")
    if isinstance(exc, MissingError | BrokenError):
        return ModelError(f"{url}: {exc}; is it the URL of an API? Most end in /v1")
    return None
