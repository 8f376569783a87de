"""`p2pmesh serve`: a signaling server."""

from __future__ import annotations

import json
import re
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from p2pmesh.cli.options import F, json_option, option
from p2pmesh.errors import ConfigError

if TYPE_CHECKING:
    from p2pmesh.server.app import SignalingServer
    from p2pmesh.server.config import ServerConfig

_SPARE_FILES = 64
"""File descriptors that the process needs for anything but connections."""


_LISTENING = "Where it listens"
_GUESTS = "Who may come"
_CLIENT = "Limits of one client"
_ALL = "Limits of an address, and in all"


class _Grouped(click.Command):
    """A command whose help shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


class _Option(click.Option):
    """An option that stands in a group of the help."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


def _grouped(name: str, *declarations: str, **attributes: Any) -> Callable[[F], F]:
    return option(*declarations, cls=_Option, group=name, **attributes)


def _limit(group: str, name: str, kind: type[float], default: str, text: str) -> Callable[[F], F]:
    return _grouped(group, name, type=kind, show_default=default, help=text)


def _listed(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    items = (item.strip() for item in value.split(","))
    return tuple(item for item in items if item and item.lower() != "none")


@click.command("serve", cls=_Grouped, short_help="Run a signaling server.")
@_grouped(
    _LISTENING,
    "--host",
    default="127.0.0.1",
    help="Address or name to listen on; :: for every network, IPv6 and IPv4, 0.0.0.0 for IPv4 alone.",
)
@_grouped(
    _LISTENING,
    "--port",
    type=click.IntRange(0, 65_535),
    default=8080,
    help="Port, the same for all addresses; 0 for a free one.",
)
@_grouped(_LISTENING, "--cert", type=click.Path(path_type=Path), help="Certificate chain (PEM): serve wss and https.")
@_grouped(
    _LISTENING, "--key", type=click.Path(path_type=Path), help="Its private key (PEM), if it is in a file of its own."
)
@_grouped(
    _LISTENING,
    "--status-port",
    type=click.IntRange(0, 65_535),
    help="Serve /healthz and /metrics on this port instead, not on --port.",
)
@_grouped(_LISTENING, "--status-host", default="127.0.0.1", help="Address of --status-port.")
@_grouped(_GUESTS, "--join-token", help="Let in only who shows this token. Better set in the environment than here.")
@_grouped(
    _GUESTS,
    "--allowed-origins",
    metavar="ORIGINS",
    callback=_listed,
    help="Pages of other hosts that may connect from browsers: https://app.example,https://... or * for all. Pages of"
    " this host may, and what is no browser.",
)
@_grouped(
    _GUESTS,
    "--proxy-headers",
    metavar="ADDRESSES",
    callback=_listed,
    show_default="127.0.0.1,::1",
    help="Reverse proxies whose X-Forwarded-For or Forwarded says who a client is, for the limits: addresses and"
    " networks, or none.",
)
@_grouped(
    _GUESTS,
    "--proxy-protocol",
    metavar="ADDRESSES",
    callback=_listed,
    help="Proxies that begin each connection with a PROXY protocol header (v1 or v2): addresses and networks.",
)
@_limit(_CLIENT, "--max-message", int, "131072", "Bytes of one message.")
@_limit(_CLIENT, "--messages-per-second", float, "50", "In the long run; one of more than 4 KiB counts for several.")
@_limit(_CLIENT, "--message-burst", int, "200", "At once.")
@_limit(_CLIENT, "--joins-per-minute", float, "30", "Joins, in the long run: repeated ones, changes of id or room.")
@_limit(_CLIENT, "--ping-interval", float, "30", "Seconds of silence until a client is pinged.")
@_limit(_CLIENT, "--ping-timeout", float, "15", "Seconds until one that stays silent, or takes nothing, is dropped.")
@_limit(_ALL, "--max-clients", int, "10000", "Clients in all.")
@_limit(_ALL, "--clients-per-address", int, "256", "Clients from one IPv4 address or IPv6 /64.")
@_limit(_ALL, "--connects-per-second", float, "10", "New connections from one such address, in the long run.")
@_limit(_ALL, "--connect-burst", int, "512", "New connections from one such address, at once.")
@_limit(_ALL, "--backlog", int, "67108864", "Bytes that may wait for clients that do not read.")
@_limit(_ALL, "--max-rooms", int, "4096", "Rooms in all.")
@_limit(_ALL, "--clients-per-room", int, "10000", "Clients in one room.")
@_limit(_ALL, "--bootstrap-peers", int, "5", "Nearest peers that a joiner is told of, besides its two ring neighbours.")
@json_option
def serve(
    *,
    host: str,
    port: int,
    cert: Path | None,
    key: Path | None,
    status_host: str,
    status_port: int | None,
    as_json: bool,
    **limits: Any,
) -> None:
    """Run a signaling server until Ctrl-C or SIGTERM.

    Peers meet here, in rooms, and exchange their first messages; their meshes live on without it. Serves WebSocket,
    /healthz and /metrics (Prometheus) on one port.

    With --json: one line with the address, once it listens.
    """
    import trio

    from p2pmesh.server.config import DEFAULT_SHARE, ServerConfig

    chosen = {name: value for name, value in limits.items() if value is not None}
    share = max(DEFAULT_SHARE, 2 * chosen.get("max_message", 0))  # larger messages need larger places to wait in
    try:
        config = ServerConfig(outbox=4 * share, outbox_share=share, **chosen)
    except ConfigError as error:
        raise click.UsageError(_in_words_of_options(str(error))) from None
    tls = _tls_context(cert, key)
    _raise_file_limit(config.max_clients + config.spare_connections + _SPARE_FILES)
    status = None if status_port is None else (status_host, status_port)
    try:
        trio.run(_serve, host, port, status, config, tls, as_json)
    except OSError as error:
        raise click.ClickException(f"can't listen on {host} port {port}: {error.strerror or error}") from error
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


async def _serve(
    host: str,
    port: int,
    status: tuple[str, int] | None,
    config: ServerConfig,
    tls: ssl.SSLContext | None,
    as_json: bool,
) -> None:
    import trio

    from p2pmesh.server.app import open_signaling_server

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_signaling_server(host, port, config=config, tls=tls, status=status) as server:
            _announce(server, as_json=as_json)
            async for _ in signals:
                break


def _in_words_of_options(text: str) -> str:
    """What is wrong with a field of the config, as what is wrong with its option."""
    return re.sub(r"ServerConfig\.(\w+)", lambda found: "--" + found[1].replace("_", "-"), text)


def _announce(server: SignalingServer, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(attrs.asdict(server, filter=attrs.filters.include("url", "host", "port", "status_url"))))
        return
    status = server.status_url
    click.echo(f"Signaling server on {server.url} ({status}/healthz, {status}/metrics). Ctrl-C stops it.")


def _tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        if key is not None:
            raise click.UsageError("--key is of no use without --cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password="")  # an encrypted key is refused, not asked for on a terminal
    except ssl.SSLError as error:
        raise click.UsageError(
            f"--cert and --key are no PEM certificate and its key: {error.reason or error}"
        ) from error
    except OSError as error:
        names = " or ".join(dict.fromkeys(str(path) for path in (cert, key) if path is not None))
        raise click.UsageError(f"can't read {names}: {error.strerror}") from error
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
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    except (OSError, ValueError, OverflowError):  # some systems allow less than they say
        allowed = soft
    if allowed < wanted:
        click.echo(
            f"Only {allowed} files may be open, {wanted} are needed: see `ulimit -Hn`, or lower --max-clients.",
            err=True,
        )
