"""The command `serve`: the OpenAI-compatible HTTP server."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api.engines import needed_extras, take_engine_options
from batcher.cli.engines import choose_models, engine_options, models_dir_option, models_option, standing_config
from batcher.cli.logs import log_options, log_to_stderr, with_log
from batcher.cli.options import Number, broker_option, jobs_dir_option, option
from batcher.installation import check_installed
from batcher.submission.readers.bounds import MAX_RATIO, MAX_UNPACKED_BYTES

if TYPE_CHECKING:
    from batcher.server.guard.auth import ApiKeys
    from batcher.server.guard.limits import Limits

_LIMIT_OPTIONS = (
    option("--max-body", type=click.IntRange(min=1024), default=10 << 20, help="Most bytes of a request's JSON body."),
    option("--max-file", type=click.IntRange(min=1024), default=1 << 30, help="Most bytes of an uploaded file."),
    option(
        "--max-unpacked",
        type=click.IntRange(min=1),
        default=MAX_UNPACKED_BYTES,
        help="Most bytes that the compressed input of a batch may unpack to.",
    ),
    option(
        "--max-ratio",
        type=click.IntRange(min=0),
        default=MAX_RATIO,
        help="Most times its own size that the compressed input of a batch may unpack to, if that is more than 1 GB; 0 "
        "is any.",
    ),
    option(
        "--max-prompts",
        type=click.IntRange(min=1),
        default=2048,
        help="Most completions that one request may ask for: its prompts times n or best_of.",
    ),
    option(
        "--max-queue",
        type=click.IntRange(min=1),
        default=16384,
        help="Most completions of all live requests together, running and waiting; beyond it the answer is 429.",
    ),
    option(
        "--max-concurrent",
        type=click.IntRange(min=1),
        default=1024,
        help="Most requests at a time; beyond it the answer is 429.",
    ),
    option(
        "--max-queue-per-key",
        type=click.IntRange(min=1),
        help="As --max-queue, of those that one key asked for. [default: half of it, where there are several keys]",
    ),
    option(
        "--max-concurrent-per-key",
        type=click.IntRange(min=1),
        help="As --max-concurrent, of those of one key. [default: half of it, where there are several keys]",
    ),
    option(
        "--max-held-per-key",
        type=click.IntRange(min=1024),
        help="Most bytes of the bodies of one key's requests being answered; beyond it the answer is 429. "
        "[default: 128 MiB, where there are several keys]",
    ),
    option(
        "--max-connections-per-address",
        type=click.IntRange(min=1),
        help="Most connections from one address, idle ones too. Not behind a proxy, whose address all have. "
        "[default: no limit but that of all connections]",
    ),
    option(
        "--request-timeout",
        type=Number(min=0, min_open=True),
        default=600.0,
        help="Seconds that a live request may take, waiting included; then it ends with 504.",
    ),
    option(
        "--body-timeout",
        type=Number(min=0, min_open=True),
        default=30.0,
        help="Seconds that a client may send nothing in the middle of a request; then the answer is 408.",
    ),
    option(
        "--write-timeout",
        type=Number(min=0, min_open=True),
        default=60.0,
        help="Seconds that a client may read nothing of its answer; then it is cut off.",
    ),
)


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the server bears. Parameters: max_body ... write_timeout."""
    for decorate in reversed(_LIMIT_OPTIONS):
        command = decorate(command)
    return command


@click.command("serve")
@models_option
@models_dir_option
@option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 is every one of this machine.")
@option("--port", type=click.IntRange(min=0, max=65535), default=8000, help="Port to listen at; 0 takes a free one.")
@jobs_dir_option
@broker_option
@option(
    "--work/--no-work",
    "is_working",
    envvar="BATCHER_WORK",
    default=None,
    help="Whether the engines also work on batches, after live requests. [default: yes, but no with --broker]",
)
@option(
    "--api-keys-file",
    type=click.Path(path_type=Path),
    help="File with the keys that clients may use, one a line. BATCHER_API_KEYS gives some as well, comma-separated.",
)
@option("--no-auth", is_flag=True, help="Ask for no key. Only for clients of this machine.")
@option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    envvar="BATCHER_CORS_ORIGIN",
    metavar="ORIGIN",
    help="Origin whose web pages may use the server from a browser, such as https://app.example; can be given several "
    "times, and * is every page. [default: none]",
)
@option(
    "--ignore-unknown",
    is_flag=True,
    help="Leave out unknown fields of live requests and name them in the header x-batcher-ignored, rather than refuse "
    "them. For clients that can't be changed.",
)
@limit_options
@engine_options
@log_options
def serve_command(
    *,
    models: tuple[str, ...],
    host: str,
    port: int,
    jobs_dir: Path,
    broker: str | None,
    is_working: bool | None,
    api_keys_file: Path | None,
    no_auth: bool,
    cors_origins: tuple[str, ...],
    ignore_unknown: bool,
    **options: Any,
) -> int:
    """Serve models by the OpenAI API: completions and chats live, files and batches as jobs in --jobs-dir.

    Without --broker the server has a broker of its own and works on the batches itself. With one, and without --model,
    it takes files and batches for workers elsewhere. When stopped it lets requests finish for --grace seconds, then
    gives its engines as many to save their rows.

    \b
    Example:
      openssl rand -hex 24 > keys.txt && chmod 600 keys.txt
      batcher serve --model smollm2-135m --api-keys-file keys.txt
    """
    is_working = broker is None if is_working is None else is_working
    has_engines = bool(models or options["engine"]) or broker is None or is_working
    check_installed("serve", "server", *needed_extras(broker, is_remote=bool(options["engine"])) if has_engines else ())
    from batcher.jobdir.probe import check_takes_jobs
    from batcher.jobdir.root import make_root
    from batcher.server.serve import ServerConfig, serve

    log_to_stderr(logging.INFO, broker_url=broker or "", role="server")
    keys = _choose_keys(host, api_keys_file, no_auth=no_auth)
    origins = _choose_origins(cors_origins, has_keys=keys is not None)
    check_takes_jobs(jobs_dir)
    jobs_root = make_root(jobs_dir)
    limits = _take_limits(options)
    worker = take_engine_options(options)
    engines, names = None, "files and batches"
    if has_engines:
        chosen = choose_models(models, servers=worker["engine"].servers, takes_all=True)
        engines = with_log(standing_config(models, chosen, jobs_root, worker))
        names = ", ".join(model.name for model in chosen)
    config = ServerConfig(
        host=host,
        port=port,
        jobs_root=jobs_root,
        engines=engines,
        broker_url=broker,
        is_working=is_working,
        keys=keys,
        grace_s=worker["grace_s"],
        ignores_unknown=ignore_unknown,
        cors_origins=origins,
        limits=limits,
    )
    serve(config, on_ready=lambda url: click.echo(f"Serving {names} on {url}/v1, jobs in {jobs_root}"))
    click.echo("Stopped; finished rows of batches are kept, the same command goes on with them.", err=True)
    return 0


def _choose_keys(host: str, file: Path | None, *, no_auth: bool) -> "ApiKeys | None":
    """The `ApiKeys`, or None with --no-auth. Raises UsageError and InputError."""
    from batcher.server.guard.auth import HOW_TO_MAKE_A_KEY, is_loopback, read_keys

    if no_auth:
        if not is_loopback(host):
            raise click.UsageError(
                f"--no-auth with --host {host}: everyone who reaches this machine could use the server; give keys with "
                "--api-keys-file FILE, or listen at --host 127.0.0.1"
            )
        if file is not None:
            raise click.UsageError("--no-auth and --api-keys-file contradict each other; leave out one")
        return None
    keys = read_keys(file, os.environ.get("BATCHER_API_KEYS", ""))
    if keys is None:
        raise click.UsageError(
            f"no API keys; make one with\n  {HOW_TO_MAKE_A_KEY}\nand give --api-keys-file keys.txt, or set "
            "BATCHER_API_KEYS; for clients of this machine alone, --no-auth asks for none"
        )
    if not is_loopback(host):
        click.echo("Note: keys and texts travel unencrypted; TLS is the job of a reverse proxy before this.", err=True)
    return keys


def _choose_origins(texts: tuple[str, ...], *, has_keys: bool) -> tuple[str, ...]:
    """The origins of pages that may ask. Raises UsageError and InputError."""
    from batcher.server.guard.origins import ANY_ORIGIN, parse_origins

    origins = parse_origins(texts)
    if ANY_ORIGIN in origins and not has_keys:
        raise click.UsageError(
            "--cors-origin * with --no-auth: every web page that a browser of this machine shows could use the server; "
            "name the origins, or give keys with --api-keys-file FILE"
        )
    return origins


def _take_limits(options: dict[str, Any]) -> "Limits":
    """Move the parameters of `limit_options` out of `options`."""
    from batcher.server.guard.limits import Limits

    return Limits(
        max_body_bytes=options.pop("max_body"),
        max_file_bytes=options.pop("max_file"),
        max_unpacked_bytes=options.pop("max_unpacked"),
        max_ratio=options.pop("max_ratio"),
        max_sequences=options.pop("max_prompts"),
        max_queued=options.pop("max_queue"),
        max_concurrent=options.pop("max_concurrent"),
        max_queued_per_key=options.pop("max_queue_per_key"),
        max_concurrent_per_key=options.pop("max_concurrent_per_key"),
        max_held_bytes_per_key=options.pop("max_held_per_key"),
        max_connections_per_address=options.pop("max_connections_per_address"),
        request_timeout_s=options.pop("request_timeout"),
        body_idle_s=options.pop("body_timeout"),
        write_idle_s=options.pop("write_timeout"),
    )
