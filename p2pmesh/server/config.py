"""Every limit of the signaling server, with its reason. Times are seconds, sizes are bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from attrs import field, frozen

from p2pmesh.errors import ConfigError
from p2pmesh.wire.signaling import MAX_BOOTSTRAP

KIB = 1024
MIB = 1024 * KIB


def _between(low: float, high: float) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            bounds = f"{low:g} or more" if high == float("inf") else f"between {low:g} and {high:g}"
            raise ConfigError(f"{type(instance).__name__}.{attribute.name} must be {bounds}, not {value!r}")

    return check


def _number(default: Any, *, low: float = 0, high: float = float("inf")) -> Any:
    return field(default=default, validator=_between(low, high))


@frozen(kw_only=True)
class ServerConfig:
    """What a signaling server allows. Make variants with `attrs.evolve`."""

    bootstrap_peers: int = _number(5, low=0, high=MAX_BOOTSTRAP - 2)
    """Nearest peers by XOR that a joiner is told of, its two ring neighbours aside; as the original."""
    announced_to: int = _number(3, low=0)
    """Peers of ours that are told of a joiner of ours: its ring neighbours, which make room for it, and the nearest by
    XOR, in case one of them is gone. Once it has one link it finds all others through the mesh."""
    join_token: str | None = field(default=None, repr=False)
    """What a join must show in its `token` field; None lets everybody in."""

    max_message: int = _number(128 * KIB, low=1 * KIB)
    """A description with all its candidates takes 1 to 4 KiB; the original's AWS service ends at 128 KiB too."""
    messages_per_second: float = _number(50.0, low=0.1)
    """Of one client, in the long run. A peer at work needs about one; what is above is dropped, and the client told."""
    message_burst: int = _number(200, low=1)
    """At once: a batch of dials with trickled candidates. A client that goes on until it has overdrawn this much again
    is closed."""
    max_clients: int = _number(10_000, low=1)
    """In all: about 210 MB at the 21 KB that an idle one takes (`benchmarks/server.py`). Needs as many file descriptors
    (`ulimit -n`)."""
    clients_per_address: int = _number(256, low=1)
    """An IPv4 address, or an IPv6 /64: an office behind one router fits, one machine can't take every place."""
    max_rooms: int = _number(4096, low=1)
    """Rooms that have members; an empty one is forgotten at once."""
    clients_per_room: int = _number(10_000, low=1)
    """As many as the server takes: one mesh may have it all."""
    audience: int = _number(64, low=0)
    """Peers that are told when a peer leaves: the last ones that were told of it. A peer has a handful of links."""

    join_timeout: float = _number(30.0, low=0.1)
    """A client that has not joined by then is closed; the original's clients join as soon as they are connected."""
    clock_skew: float = _number(900.0, low=1)
    """Between a signed join's timestamp and this server's clock, either way; AWS signatures allow as much."""
    remembered_joins: int = _number(65_536, low=1)
    """Peers whose last signed join is remembered against replays: six times `max_clients`, about 16 MB."""

    ping_interval: float = _number(30.0, low=0.05)
    """A client that was silent for this long is pinged: half of the 60 s after which many proxies cut a connection."""
    ping_timeout: float = _number(15.0, low=0.05)
    """A client that stays silent for this long after a ping is dropped."""
    outbox: int = _number(1 * MIB, low=1 * KIB)
    """Bytes that may wait for one client; a client that lets more pile up is dropped."""
    head_size: int = _number(16 * KIB, low=1 * KIB)
    """Of an HTTP request line with its headers; browsers' cookies stay below 8 KiB."""
    head_timeout: float = _number(10.0, low=0.05)
    """For the TLS handshake and the request head together: a client that dribbles them is cut off."""
    spare_connections: int = _number(256, low=1)
    """Open connections above `max_clients`: for requests in flight, health checks, and to say "full" politely."""
    spare_per_address: int = _number(16, low=1)
    """Of these, above `clients_per_address`: one machine can't block the port by connections that say nothing."""
    close_timeout: float = _number(5.0, low=0)
    """For closing handshakes, of one client or of all at shutdown; after that they are cut."""

    def __attrs_post_init__(self) -> None:
        if self.outbox < self.max_message + KIB:
            raise ConfigError("ServerConfig.outbox must hold one message: max_message + 1 KiB or more")
