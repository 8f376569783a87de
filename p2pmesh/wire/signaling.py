"""Every message that a peer exchanges with a signaling service, as one typed union.

The original's names and fields; what is ours is optional. The server stamps `from` on everything that it relays.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from p2pmesh.config import MAX_ROOM as MAX_ROOM
from p2pmesh.config import MAX_TOKEN as MAX_TOKEN
from p2pmesh.wire.fields import (
    MAX_SIGNALS_IN_BATCH,
    Id,
    Mark,
    Milliseconds,
    Part,
    PeerIds,
    PublicKey,
    Reason,
    Signature,
    Tagged,
)
from p2pmesh.wire.messages import Signal

MAX_BOOTSTRAP = 64

Room: TypeAlias = Annotated[str, Meta(max_length=MAX_ROOM)]
Token: TypeAlias = Annotated[str, Meta(max_length=MAX_TOKEN)]


# --- from a peer to the service ---------------------------------------------------------------------------------------


class Join(Tagged, frozen=True, kw_only=True, tag="join"):
    """Here I am. A repeated join asks for fresh `bootstrap_peers` and announces the peer again."""

    peer_id: Id
    room: Room | None = None
    token: Token | None = None
    version: Annotated[int, Meta(ge=1, lt=1 << 16)] | None = None
    """Our protocol version: asks for an answer in every case, `bootstrap_peers` may be empty."""
    public_key: PublicKey | None = None
    timestamp: Milliseconds | None = None
    signature: Signature | None = None
    """Over room, id and timestamp: see `p2pmesh.protocols.signaling.handshake`."""


class Leave(Tagged, frozen=True, kw_only=True, tag="leave"):
    peer_id: Id


# --- from the service to a peer ---------------------------------------------------------------------------------------


class KnownPeer(Part, frozen=True, kw_only=True):
    id: Id
    last_seen: Milliseconds | None = None


class BootstrapPeers(Tagged, frozen=True, kw_only=True, omit_defaults=False, tag="bootstrap_peers"):
    peers: Annotated[tuple[KnownPeer, ...], Meta(max_length=MAX_BOOTSTRAP)] = ()


class PeerJoined(Tagged, frozen=True, kw_only=True, tag="peer_joined"):
    peer_id: Id


class PeerLeft(Tagged, frozen=True, kw_only=True, tag="peer_left"):
    peer_id: Id


class ServiceError(Tagged, frozen=True, kw_only=True, tag="error"):
    """Something was refused. The original sends only `message`; our server adds a `code` to tell them apart."""

    message: Annotated[str, Meta(max_length=1024)] = ""
    code: Annotated[str, Meta(max_length=64)] | None = None
    """One of `ERROR_CODES`."""
    to: Id | None = None
    """The peer that a relayed message could not be brought to."""
    later_than: Milliseconds | None = None
    """With `clock_skew`: what the timestamp of a join of this id has to exceed."""


ERROR_CODES = {
    "bad_join": "the join lacks a valid id, room or signature",
    "bad_token": "the join token is missing or wrong",
    "clock_skew": "the join's timestamp is too far from the server's clock",
    "id_taken": "another client holds this id and proved that it is its own",
    "replaced": "another client joined with this id",
    "full": "the server or the room takes no more clients",
    "not_found": "the receiver of a relayed message is not here",
    "rate_limited": "too many messages: some were dropped",
    "too_large": "the message is too large",
    "unknown_type": "the server does not know this type of message",
    "bad_message": "the message is not a JSON object with the fields its type needs",
}
"""Codes of `ServiceError`. The first six end an attempt to join: `JOIN_REFUSALS`."""

JOIN_REFUSALS = frozenset({"bad_join", "bad_token", "clock_skew", "id_taken", "replaced", "full"})


# --- between peers, by way of the service -----------------------------------------------------------------------------


class PeerSignal(Tagged, frozen=True, kw_only=True, tag="signal"):
    to: Id | None = None
    from_: Id | None = None
    signal: Signal


class PeerSignals(Tagged, frozen=True, kw_only=True, tag="batched_signals"):
    to: Id | None = None
    from_: Id | None = None
    signals: Annotated[tuple[Signal, ...], Meta(max_length=MAX_SIGNALS_IN_BATCH)] = ()
    batch_timestamp: Milliseconds = 0


class ConnectionRejected(Tagged, frozen=True, kw_only=True, tag="connection_rejected"):
    """No link now: full, or not willing. `alternative_peers` may have room."""

    to: Id | None = None
    from_: Id | None = None
    reason: Reason = ""
    max_peers: Annotated[int, Meta(ge=0, lt=1 << 16)] | None = None
    alternative_peers: PeerIds | None = None
    """Always set by us: the original's peers rely on it."""
    about: Mark | None = None
    """Which offer: see `LinkRejected`. Only for peers of ours."""


class SignalRejected(Tagged, frozen=True, kw_only=True, tag="signal_rejected"):
    """The wrong side made the offer: `correct_initiator` shall."""

    to: Id | None = None
    from_: Id | None = None
    reason: Reason = ""
    correct_initiator: Id | None = None


class Ack(Tagged, frozen=True, kw_only=True, tag="ack"):
    """Are you there? And the answer. The original's server relays it, and its clients take no notice."""

    to: Id | None = None
    from_: Id | None = None
    answers: bool = False
    """Whether this is the answer."""


SignalingMessage: TypeAlias = (
    Join
    | Leave
    | BootstrapPeers
    | PeerJoined
    | PeerLeft
    | ServiceError
    | PeerSignal
    | PeerSignals
    | ConnectionRejected
    | SignalRejected
    | Ack
)
