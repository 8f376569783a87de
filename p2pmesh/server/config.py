"""Every limit of the signaling server, with its reason. Times are seconds, sizes are bytes."""

from __future__ import annotations

import math
import re
from typing import Any

import attrs
from attrs import field, frozen

from p2pmesh.checks import number_field as _number
from p2pmesh.checks import text
from p2pmesh.errors import ConfigError
from p2pmesh.keyspace import is_peer_id
from p2pmesh.server.addresses import Networks
from p2pmesh.wire.signaling import MAX_BOOTSTRAP, MAX_TOKEN

KIB = 1024
MIB = 1024 * KIB
DEFAULT_SHARE = 256 * KIB

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,]+/?|\*|null", re.IGNORECASE)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple | set | frozenset) else value


def _texts(*default: str) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{type(instance).__name__}.{attribute.name} must be a tuple of texts, not {value!r:.60}")

    return field(default=default, converter=_as_tuple, validator=check)


def _token(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    what = f"{type(instance).__name__}.{attribute.name}"
    if value is not None and not text(what, value, MAX_TOKEN, secret=True):
        raise ConfigError(f"{what} must not be empty: that would let everybody in")


@frozen(kw_only=True)
class ServerConfig:
    """What a signaling server allows. Make variants with `attrs.evolve`."""

    bootstrap_peers: int = _number(5, low=0, high=MAX_BOOTSTRAP - 2)
    """Nearest peers by XOR that a joiner is told of, its two ring neighbours aside; as the original."""
    announced_to: int = _number(3, low=0)
    """Peers of ours that are told of a joiner of ours: its ring neighbours, which make room for it, and the nearest by
    XOR, in case one of them is gone. Once it has one link it finds all others through the mesh."""
    join_token: str | None = field(default=None, repr=False, validator=_token)
    """What a join must show in its `token` field; None lets everybody in."""
    token_guesses: int = _number(10, low=1)
    """Wrong tokens from one address at once; above that no join of it is looked at. A right one starts it afresh."""
    token_guesses_per_minute: float = _number(6.0, low=0)
    """In the long run: of a token of 32 bits, half of all are tried after 680 years."""
    allowed_origins: tuple[str, ...] = _texts()
    """Pages of other hosts that may connect, as `https://app.example`; `*` for all. A browser says where its page is
    from; pages of the host that it connects to always may, and so may what is no browser and says nothing."""

    allow_ids: tuple[str, ...] = _texts()
    """Peer ids that may join, each by a signed join; empty for all."""
    allow_networks: tuple[str, ...] = _texts()
    """Addresses and networks that clients may come from; empty for all. `/healthz` and `/metrics` are for all."""

    proxy_headers: tuple[str, ...] = _texts("127.0.0.1", "::1")
    """Addresses and networks of reverse proxies, whose `X-Forwarded-For` and `Forwarded` headers are believed: limits
    count their customers then. The default is a proxy on this machine. Nobody else's are."""
    proxy_protocol: tuple[str, ...] = _texts()
    """Addresses and networks of proxies that begin each connection with a header of the PROXY protocol, v1 or v2.
    One of theirs without it is refused, since who writes it is believed."""

    max_message: int = _number(128 * KIB, low=1 * KIB)
    """A description with all its candidates takes 1 to 4 KiB; the original's AWS service ends at 128 KiB too."""
    messages_per_second: float = _number(50.0, low=0.1)
    """Of one client, in the long run, a message of more than 4 KiB for several. A peer at work needs about one; what is
    above is dropped, and the client told."""
    message_burst: int = _number(200, low=1)
    """At once: a batch of dials with trickled candidates. A client that goes on until it has overdrawn this much again
    is closed."""
    joins_per_minute: float = _number(30.0, low=0.1)
    """Of one client, in the long run: each is told to a handful of others. A peer that finds no link repeats its join
    every 5 s at first, and nobody changes ids."""
    join_burst: int = _number(10, low=1)
    """At once; a client that overdraws it by as many again is closed."""
    max_clients: int = _number(10_000, low=1)
    """In all: about 210 MB at the 21 KB that an idle one takes (`benchmarks/server.py`). Needs as many file descriptors
    (`ulimit -n`)."""
    clients_per_address: int = _number(256, low=1)
    """An IPv4 address, or an IPv6 /64: an office behind one router fits, one machine can't take every place."""
    connects_per_second: float = _number(10.0, low=0.1)
    """From one such address, in the long run; what is above is turned away unheard."""
    connect_burst: int = _number(512, low=1)
    """At once: an office that reconnects, twice."""
    remembered_addresses: int = _number(65_536, low=1)
    """Addresses whose connects and wrong tokens are counted, about 16 MB; the least recent are forgotten."""
    max_rooms: int = _number(4096, low=1)
    """Rooms that have members; an empty one is forgotten at once."""
    clients_per_room: int = _number(10_000, low=1)
    """As many as the server takes: one mesh may have it all."""
    audience: int = _number(64, low=0)
    """Peers that are told when a peer leaves: the last ones that were told of it. A peer has a handful of links."""

    join_timeout: float = _number(30.0, low=0.1)
    """A client that has not joined by then is closed; the original's clients join as soon as they are connected."""
    clock_skew: float = _number(900.0, low=1, high=math.inf)
    """Between a signed join's timestamp and this server's clock, either way; AWS signatures allow as much."""
    remembered_joins: int = _number(65_536, low=1)
    """Peers whose last signed join is remembered against replays: six times `max_clients`, about 16 MB."""

    ping_interval: float = _number(30.0, low=0.05)
    """A client that was silent for this long is pinged: half of the 60 s after which many proxies cut a connection."""
    ping_timeout: float = _number(15.0, low=0.05)
    """A client that stays silent for this long after a ping is dropped."""
    outbox: int = _number(4 * DEFAULT_SHARE, low=1 * KIB)
    """Bytes of others' messages that may wait for one client. What would be more is dropped, and its sender told."""
    outbox_share: int = _number(DEFAULT_SHARE, low=1 * KIB)
    """Of these, from one sender: two messages of the largest size, and whoever floods leaves room for others."""
    backlog: int = _number(64 * MIB, low=1 * MIB)
    """Bytes that may wait for all clients together. Above it, what is sent to one for whom something waits is dropped,
    and so are messages of more than 16 KiB; who reads goes on as ever. Clients may leave as much half said: above it,
    who has for longest is cut off."""
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
        Networks(self.allow_networks, "ServerConfig.allow_networks")
        for peer in self.allow_ids:
            if not is_peer_id(peer):
                raise ConfigError(f"ServerConfig.allow_ids are 40 lower-case hexadecimal digits, not {peer!r:.60}")
        Networks(self.proxy_headers, "ServerConfig.proxy_headers")
        Networks(self.proxy_protocol, "ServerConfig.proxy_protocol")
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"ServerConfig.allowed_origins are written https://app.example, not {origin!r:.60}")
        if self.outbox < self.max_message + KIB:
            raise ConfigError("ServerConfig.outbox must hold one message: max_message + 1 KiB or more")
