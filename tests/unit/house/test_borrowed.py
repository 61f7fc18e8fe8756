"""Parts of other packages that are not their public interface and that ours builds on: each is still there.

Another version of theirs may rename one, and then what we override is silently never called. Each name that is missing
here asks for a ceiling or a floor in pyproject.toml, and for a look at what took its place.
"""

import asyncio
import inspect
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import uvicorn
from celery.app.defaults import NAMESPACES
from celery.worker.consumer import Consumer
from kombu.connection import Connection as BrokerConnection
from kombu.transport import redis as kombu_redis
from kombu.transport.redis import Channel
from packaging.requirements import Requirement
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from batcher.server.guard.connections import Connection
from workers.queue import transport
from workers.queue.app import _SETTINGS
from workers.queue.consumer import PatientConsumer

ROOT = Path(__file__).parents[3]


def source_of(*names: str) -> str:
    return "".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def names_behind(prefix: str, source: str) -> set[str]:
    return set(re.findall(rf"\b{re.escape(prefix)}\.(\w+)", source))


def make_protocol() -> HttpToolsProtocol:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Is never asked."""

    async def make() -> HttpToolsProtocol:
        return HttpToolsProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})

    return asyncio.run(make())


def test_what_connections_call_and_override_of_uvicorn_exists() -> None:
    protocol = make_protocol()
    source = source_of("batcher/server/guard/connections.py")
    own = {name for name in Connection.__dict__ if not name.startswith("__")} | set(Connection.__annotations__)
    own |= set(re.findall(r"self\.(\w+)(?:: [^=]+)? = ", source))
    overridden = {
        *("connection_made", "connection_lost", "data_received", "on_message_begin", "on_headers_complete", "on_body"),
        *("on_message_complete", "on_response_complete", "_start_asgi_task", "_unsupported_upgrade_warning"),
        *("send_400_response", "timeout_keep_alive_handler", "shutdown", "pause_writing", "resume_writing"),
    }

    assert overridden <= own, "this list is not up to date"
    used = overridden | names_behind("super()", source) | names_behind("self", source) - own
    assert {name for name in used if name != "__init__" and not hasattr(protocol, name)} == set()


def test_what_connections_read_and_set_of_uvicorns_requests_exists() -> None:
    source = source_of("batcher/server/guard/connections.py")
    used = names_behind("self.cycle", source) | names_behind("self._answered", source) | names_behind("cycle", source)
    slots = set(re.findall(r"self\.(\w+)", Path(RequestResponseCycle.__init__.__code__.co_filename).read_text()))

    assert used
    assert used <= slots | set(dir(RequestResponseCycle))


def test_what_the_consumer_calls_and_overrides_of_celery_exists() -> None:
    source = source_of("workers/queue/consumer.py")
    overridden = {"ensure_connected", "on_connection_error_after_connected", "on_ready"}

    assert all(name in PatientConsumer.__dict__ for name in overridden)
    assert names_behind("super()", source) <= overridden | {"__init__"}
    assert {name for name in overridden | {"first_connection_attempt"} if not hasattr(Consumer, name)} == set()
    # Set by its __init__.
    assert "self.connection_errors" in Path(Consumer.__init__.__code__.co_filename).read_text()


def test_what_the_transport_calls_and_overrides_of_kombu_exists() -> None:
    ours = {name: found for name, found in vars(transport).items() if isinstance(found, type)}
    for name, theirs in {
        "CheckingClient": kombu_redis.PrefixedStrictRedis,
        "TakenMessages": kombu_redis.QoS,
        "Channel": kombu_redis.Channel,
        "Transport": kombu_redis.Transport,
    }.items():
        assert {each for each in vars(ours[name]) if not each.startswith("__") and not hasattr(theirs, each)} == set()
    assert {"unacked_key", "unacked_index_key", "visibility_timeout", "_remove_from_indices"} <= set(
        dir(kombu_redis.QoS)
    )
    # Who is asked for the answer to BRPOP, where messages are kept, and by what a connection finds its transport.
    assert "self.client.parse_response(" in inspect.getsource(Channel._brpop_read)
    assert "self._delivered" in inspect.getsource(kombu_redis.QoS.restore_unacked)
    assert "self.transport_cls" in inspect.getsource(BrokerConnection.get_transport_cls)
    assert "self.get_transport_cls()" in inspect.getsource(BrokerConnection.create_transport)


def settings_of_celery(tree: Any = NAMESPACES, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if hasattr(value, "items"):
            yield from settings_of_celery(value, f"{prefix}{name}_")
        else:
            yield f"{prefix}{name}"


def test_each_setting_is_one_of_celery_and_each_option_one_of_kombu() -> None:
    options = _SETTINGS["broker_transport_options"]
    assert isinstance(options, dict)

    assert set(_SETTINGS) - set(settings_of_celery()) == set()
    assert set(options) - {"global_keyprefix", *Channel.from_transport_options} == set()
    assert hasattr(Channel, "global_keyprefix")
    # What batcher/broker/client.py says of the keys.
    assert (Channel.unacked_key, Channel.keyprefix_queue.partition("%")[0]) == ("unacked", "_kombu.binding.")


def test_what_downloads_call_of_the_hubs_client_exists() -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils.tqdm import tqdm

    given = {"url", "temp_file", "resume_size", "headers", "expected_size", "_tqdm_bar"}
    assert given <= set(inspect.signature(http_get).parameters)
    assert callable(build_hf_headers)
    assert hasattr(tqdm, "update")


def test_versions_that_nobody_has_tried_are_kept_out() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {found.name: found for found in map(Requirement, project["dependencies"])}

    for name in ("celery", "kombu"):
        major, minor = metadata.version(name).split(".")[:2]
        assert not declared[name].specifier.contains(f"{major}.{int(minor) + 1}"), name
