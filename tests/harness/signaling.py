"""The signaling core under test: a clock, its neighbours, and what came out of it."""

from __future__ import annotations

import random
from functools import reduce
from operator import getitem

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import Notify, SendSignaling
from p2pmesh.protocols.inputs import LinkUp, LocalSignal, ServiceUp, Signaled, Subsystem
from p2pmesh.protocols.notices import CancelRoute, ReturnPath, Route, RoutedReceived, RouteReply, RouteSucceeded
from p2pmesh.protocols.signaling.signaling import SignalingCore
from p2pmesh.wire.messages import Answer, Candidate, Description, Fingerprint, IceCandidate, Offer, Signal
from p2pmesh.wire.sdp import write_sdp
from p2pmesh.wire.signaling import BootstrapPeers, PeerSignal
from tests.harness.one_core import OneCore
from tests.harness.virtual_time import remote, virtual_wall

ME, BOB, EVE, CAROL = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4))
ORIGINAL = Identity.unverified("0a" * 20)


def description(kind: str, n: int) -> Description:
    return Description(
        ufrag="ufrag",
        pwd=f"{n:022}",
        fingerprints=(Fingerprint(value=bytes([n % 256]) * 32),),
        role="actpass" if kind == "offer" else "active",
        candidates=(IceCandidate(address=bytes([192, 0, 2, 1]), port=9),),
    )


CANDIDATE = Signal(type="candidate", candidate=Candidate(candidate="candidate:1 1 udp 1 192.0.2.1 9 typ host"))


def offer(n: int, **said) -> Offer:
    return Offer(description=description("offer", n), **said)


def answer(n: int) -> Answer:
    return Answer(description=description("answer", n))


def bare(kind: str, n: int) -> Signal:
    """As the original's peers send it: without a proof."""
    return Signal(type=kind, sdp=write_sdp(description(kind, n)))


class Peer(OneCore[SignalingCore]):
    """It is told what the service says and what neighbours send; what it wants is sorted by whom it wants it of."""

    def __init__(self, **config):
        self.config = MeshConfig(join_token="secret", **config)
        self.clock_is_off = 0.0
        wall = lambda now: virtual_wall(now) + self.clock_is_off  # noqa: E731
        super().__init__(SignalingCore(ME, self.config, random.Random(1), wall))

    def signaled(self, message, transport="one"):
        return self.feed(Signaled(transport, message))

    def join(self, *transports):
        for transport in transports or ("one",):
            self.feed(ServiceUp(transport)).signaled(BootstrapPeers(), transport)
        return self

    def in_mesh(self, neighbour=CAROL):
        return self.feed(LinkUp(remote(neighbour)))

    @property
    def sent(self):
        return [(effect.transport, effect.message) for effect in self.got(SendSignaling)]

    @property
    def told(self):
        """The overlay core."""
        return [effect.input for effect in self.got(Notify) if effect.subsystem is Subsystem.OVERLAY]

    @property
    def routes(self):
        return [told for told in self.asked if isinstance(told, Route)]

    @property
    def replies(self):
        """What goes back to offers that came over a route."""
        return [(told.way, told.message) for told in self.asked if isinstance(told, RouteReply)]

    @property
    def cancelled(self):
        return [told.call for told in self.asked if isinstance(told, CancelRoute)]

    @property
    def asked(self):
        """Of the routing core."""
        return [effect.input for effect in self.got(Notify) if effect.subsystem is Subsystem.ROUTING]

    def counts(self, path):
        """A number of the snapshot, by its dotted path."""
        return reduce(getitem, path.split("."), self.core.snapshot())

    def dial(self, peer, n=1):
        """Our offer to `peer`, as it went out."""
        self.feed(LocalSignal(peer, description("offer", n)))
        ((_, message),) = self.sent
        return message.signal


def from_peer(identity, signal, **fields):
    return PeerSignal(to=ME.peer_id, from_=identity.peer_id, signal=signal, **fields)


def way_back(identity, *path):
    return ReturnPath(identity.peer_id, f"packet of {identity.peer_id[:4]}", (identity.peer_id, *path))


def routed(identity, message):
    """A message that came over a route."""
    return RoutedReceived(remote(identity), message, way_back(identity))


def answered(route, message):
    """The reply to an offer of ours that went over a route."""
    return RouteSucceeded(route.call, route.to, message)
