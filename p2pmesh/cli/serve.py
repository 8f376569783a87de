"""`p2pmesh serve`: a signaling server."""

from __future__ import annotations

import json
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from p2pmesh.cli.options import json_option, option

if TYPE_CHECKING:
    from p2pmesh.server.app import SignalingServer
    from p2pmesh.server.config import ServerConfig

_SPARE_FILES = 64
"""File descriptors that the process needs for anything but connections."""


@click.command("serve", short_help="Run a signaling server.")
@option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 or :: for every network.")
@option("--port", type=click.IntRange(0, 65_535), default=8080, help="Port to listen on; 0 for a free one.")
@option("--cert", type=click.Path(path_type=Path), help="Certificate chain (PEM): serve wss and https.")
@option("--key", type=click.Path(path_type=Path), help="Its private key (PEM), if it is in a file of its own.")
@option("--join-token", help="Let in only who shows this token. Better set in the environment than here.")
@option(
    "--bootstrap-peers",
    type=int,
    show_default="5",
    help="Nearest peers that a joiner is told of, besides its two ring neighbours.",
)
@option("--max-clients", type=int, show_default="10000", help="Clients in all.")
@option(
    "--clients-per-address",
    type=int,
    show_default="256",
    help="Clients from one IPv4 address or IPv6 /64; raise it behind a proxy.",
)
@option("--max-rooms", type=int, show_default="4096", help="Rooms in all.")
@option("--clients-per-room", type=int, show_default="10000", help="Clients in one room.")
@option("--max-message", type=int, show_default="131072", help="Bytes of one message.")
@option("--messages-per-second", type=float, show_default="50", help="Of one client, in the long run.")
@option("--message-burst", type=int, show_default="200", help="Of one client, at once.")
@option("--ping-interval", type=float, show_default="30", help="Seconds of silence until a client is pinged.")
@option(
    "--ping-timeout", type=float, show_default="15", help="Seconds until a pinged client that stays silent is dropped."
)
@json_option
def serve(*, host: str, port: int, cert: Path | None, key: Path | None, as_json: bool, **limits: Any) -> None:
    """Run a signaling server until Ctrl-C or SIGTERM.

    Peers meet here, in rooms, and exchange their first messages; their meshes live on without it. Serves WebSocket,
    /healthz and /metrics (Prometheus) on one port.

    With --json: one line with the address, once it listens.
    """
    import trio

    from p2pmesh.server.config import ServerConfig

    config = ServerConfig(**{name: value for name, value in limits.items() if value is not None})
    tls = _tls_context(cert, key)
    _raise_file_limit(config.max_clients + config.spare_connections + _SPARE_FILES)
    try:
        trio.run(_serve, host, port, config, tls, as_json)
    except OSError as error:
        raise click.ClickException(f"can't listen on {host} port {port}: {error.strerror or error}") from error


async def _serve(host: str, port: int, config: ServerConfig, tls: ssl.SSLContext | None, as_json: bool) -> None:
    import trio

    from p2pmesh.server.app import open_signaling_server

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_signaling_server(host, port, config=config, tls=tls) as server:
            _announce(server, as_json=as_json)
            async for _ in signals:
                break


def _announce(server: SignalingServer, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(attrs.asdict(server, filter=attrs.filters.include("url", "host", "port"))))
        return
    web = server.url.replace("ws", "http", 1)
    click.echo(f"Signaling server on {server.url} ({web}/healthz, {web}/metrics). Ctrl-C stops it.")


def _tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        if key is not None:
            raise click.UsageError("--key is of no use without --cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise click.UsageError(
            f"--cert and --key are no PEM certificate and its key: {error.reason or error}"
        ) from error
    except OSError as error:
        raise click.UsageError(f"can't read {key or cert} or {cert}: {error.strerror}") from error
    return context


def _raise_file_limit(wanted: int) -> None:
    """Each connection is an open file; many systems start processes with 1,024."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        click.echo(
            f"Only {allowed} files may be open, {wanted} are needed: see `ulimit -Hn`, or lower --max-clients.",
            err=True,
        )
