"""The arguments of the application's calls, checked where the caller stands: what goes on to a core is valid.

What is wrong raises there, and the caller's own objects are read there and nowhere else: a payload becomes a `Body`,
text a plain `str`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TypeAlias

import trio

from p2pmesh.checks import flag, number, shown, text
from p2pmesh.config import KademliaConfig, MeshConfig
from p2pmesh.errors import ConfigError, LocalProtocolError, PayloadTooLarge
from p2pmesh.events import PayloadLike
from p2pmesh.keyspace import PeerId, parse_peer_id
from p2pmesh.moderation import Validator
from p2pmesh.protocols.broadcast.message_store import ANY_HOPS
from p2pmesh.protocols.broadcast.validation import RESERVED_TOPICS
from p2pmesh.protocols.core import WallClock
from p2pmesh.wire.fields import MAX_TOPIC
from p2pmesh.wire.payloads import Body, pack

LATEST = float(1 << 43)
"""Seconds since 1970: as late as a timestamp in milliseconds can be."""
LEAST_TTL = 0.001
"""Seconds: messages tell their ttl in milliseconds."""

Broadcast: TypeAlias = tuple[str, Body, float | None, int | None, bool]
"""Topic, payload, ttl, hops and whether receipts are wanted."""


def topic(value: object) -> str:
    """A topic that a broadcast can have.

    Raises:
      LocalProtocolError: if it is none.
    """
    plain = text("a topic", value, MAX_TOPIC, error=LocalProtocolError)
    if plain.startswith(RESERVED_TOPICS):
        raise LocalProtocolError(f"topics that begin with {RESERVED_TOPICS!r} are reserved: choose another")
    return plain


def broadcast(
    config: MeshConfig, name: object, payload: PayloadLike, ttl: object, max_hops: object, receipts: object
) -> Broadcast:
    """What `Mesh.broadcast` takes.

    Raises:
      LocalProtocolError: if no broadcast can have that topic.
      ConfigError: if `ttl`, `max_hops` or `receipts` is out of range.
      InvalidPayload, PayloadTooLarge: if no message can carry the payload.
    """
    return (
        topic(name),
        pack(payload, config.max_payload),
        None if ttl is None else number("ttl", ttl, low=LEAST_TTL, high=config.broadcast.max_ttl),
        None if max_hops is None else number("max_hops", max_hops, low=1, high=ANY_HOPS, whole=True),
        flag("receipts", receipts),
    )


def put(
    config: KademliaConfig, key: object, value: PayloadLike, ttl: object, owned: object = False
) -> tuple[str, Body, float | None, bool]:
    """What `Dht.put` takes: key, value, ttl and whether the key is owned.

    Raises:
      ConfigError: if the key is no text, `ttl` out of range, or `owned` neither true nor false.
      InvalidPayload, PayloadTooLarge: if no record can carry the value.
    """
    try:
        body = pack(value, config.max_value)
    except PayloadTooLarge as error:
        said = str(error).replace("the payload", "the value", 1)
        raise PayloadTooLarge(said.replace("MeshConfig.max_payload", "KademliaConfig.max_value")) from None
    seconds = None if ttl is None else number("a value's ttl", ttl, low=1, high=config.max_ttl)
    return dht_key(key), body, seconds, flag("owned", owned)


def dht_key(value: object) -> str:
    """A key of the DHT.

    Raises:
      ConfigError: if it is no text.
    """
    return text("a key of the DHT", value)


def history(seconds: object) -> float:
    """How far back a subscription goes; not at all if that is None.

    Raises:
      ConfigError: if it is no number of seconds.
    """
    return 0.0 if seconds is None else float(number("history", seconds, low=0))


def validator(value: Validator | None) -> Validator | None:
    """What judges the broadcasts of a topic; None for nothing.

    Raises:
      ConfigError: if it can't be called, or only waited for.
    """
    if value is None:
        return None
    if not callable(value):
        raise ConfigError(f"a validator is a function that takes a message and returns a Verdict, not {shown(value)}")
    if inspect.iscoroutinefunction(value):
        raise ConfigError("a validator is a plain function, not an async one: every broadcast waits for it")
    return value


def peers(values: Iterable[str]) -> list[PeerId]:
    """Ids of peers.

    Raises:
      ConfigError: if they are no iterable; a single text is none.
      InvalidPeerId: if one is no id.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"bootstrap_peers must be a list of ids of peers, not {shown(values)}")
    return [parse_peer_id(value) for value in values]


def clock(wall: WallClock) -> WallClock:
    """A wall clock.

    Raises:
      ConfigError: if it can't tell the time now.
    """
    if not callable(wall):
        raise ConfigError(f"wall_clock must be a function that gives the wall time of an instant, not {shown(wall)}")
    number("the time of wall_clock", wall(trio.current_time()), low=0, high=LATEST)
    return wall
