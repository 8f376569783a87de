"""The contract of the sans-IO cores: inputs go in with a time, effects come out.

A core is plain synchronous code that owns its state and its timers. It never waits, never looks at a clock, never
draws from global randomness: time comes with each call, `random.Random`, identity and config with the constructor. So a
core's run is a function of its seed, and the same core is driven by Trio over WebRTC links, by the simulator in virtual
time, and bare by a property test.

What goes in has a file for each source: `inputs` from outside, `notices` from the other cores of the same peer. What
comes out is here: *effects*, orders to the shell and notices to other cores.

Whoever drives a core promises to call `handle` for each input and `expire` once `next_deadline` has come, with times
that never go backwards, and to carry out the effects of one call in their order before it makes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from p2pmesh.errors import MeshError
from p2pmesh.events import Event
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import RemotePeer, Subsystem, Value
from p2pmesh.protocols.notices import Input
from p2pmesh.wire.messages import Description, Facts, Message
from p2pmesh.wire.signaling import SignalingMessage


class SendFrame(Value, frozen=True):
    """Send a message over the open links to these peers. Dropped and counted where a link's queue is full or gone."""

    peers: tuple[PeerId, ...]
    message: Message
    urgent: bool = False
    """Overtakes what is not: for acks, repairs and control, never for payloads."""
    patient: bool = False
    """May wait for `LinkConfig.patience` until something else goes to the same peer: for acks and counts."""


class WantLink(Value, frozen=True):
    """Open a link to this peer by an offer of ours. Ends in `LinkUp` or `LinkLost`."""

    peer: PeerId


class AcceptOffer(Value, frozen=True):
    """Answer this offer. Ends in `LinkUp` or `LinkLost`. Replaces an attempt of ours at the same peer."""

    peer: RemotePeer
    description: Description


class FeedSignal(Value, frozen=True):
    """An answer or candidate, checked, for the attempt at this peer."""

    peer: RemotePeer
    signal: Facts


class DropLink(Value, frozen=True):
    """Close the link to this peer, or end the attempt at it. An open link ends in `LinkDown`, an attempt in silence."""

    peer: PeerId
    reason: str
    blame: bool = False
    """The peer broke the protocol."""


class InspectLink(Value, frozen=True):
    """Say how much of ours waits in the link to this peer: answered by `LinkLoad`, if there is one."""

    peer: PeerId


class SendSignaling(Value, frozen=True):
    """Send a message to a signaling service. Dropped and counted if it is down."""

    transport: str
    message: SignalingMessage


class Notify(Value, frozen=True):
    """An input for another core of this peer."""

    subsystem: Subsystem
    input: Input


class Emit(Value, frozen=True):
    """An event for the application."""

    event: Event


class Reply(Struct, frozen=True):  # not a `Value`: an error's traceback may lead back to it
    """The result of an application's call."""

    call: int
    value: Any = None
    error: MeshError | None = None


class Progress(Value, frozen=True):
    """How far a broadcast of ours has come: `reached` other peers are known to have it.

    Comes with every change, also after the one `MessageDelivered` or `MessageFailed` of that broadcast, and never
    before the `Reply` that names its id.
    """

    message_id: str
    reached: int
    settled: bool
    """Whether everybody it went to has answered or was given up on; newcomers may unsettle it again."""


class ServiceRefused(Value, frozen=True):
    """This signaling service refuses us for good: its connection is closed and not retried at once."""

    transport: str
    reason: str


class ServiceUnanswering(Value, frozen=True):
    """This signaling service does not answer: its connection is opened anew, at once."""

    transport: str


Effect: TypeAlias = (
    SendFrame
    | WantLink
    | AcceptOffer
    | FeedSignal
    | DropLink
    | InspectLink
    | SendSignaling
    | Notify
    | Emit
    | Reply
    | Progress
    | ServiceRefused
    | ServiceUnanswering
)
Effects: TypeAlias = list[Effect]

WallClock: TypeAlias = Callable[[float], float]
"""Gives the wall time (seconds since 1970) of a monotonic instant; passed in where a message carries a timestamp."""


class Core(Protocol):
    """What every protocol core is."""

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input. Never raises on what a peer may have sent."""

    def next_deadline(self) -> float:
        """When `expire` wants to be called next, in monotonic seconds; `math.inf` for never."""

    def expire(self, now: float) -> Effects:
        """Do what is due at `now`. Calling it early is harmless."""

    def snapshot(self) -> Mapping[str, Any]:
        """Statistics that JSON can carry."""
