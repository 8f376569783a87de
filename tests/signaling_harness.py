"""The signaling core under test: a clock, its neighbours, and what came out of it."""

from __future__ import annotations

import random

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import (
    CancelRoute,
    Emit,
    LinkUp,
    LocalSignal,
    RemotePeer,
    Route,
    Routed,
    SendSignaling,
    ServiceUp,
    Signaled,
    Subsystem,
    Tell,
    Way,
)
from p2pmesh.protocols.signaling import SignalingCore
from p2pmesh.wire.messages import Candidate, RelaySignal, Signal
from p2pmesh.wire.signaling import BootstrapPeers, PeerSignal

ME, BOB, EVE, CAROL = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4))
ORIGINAL = Identity.unverified("0a" * 20)
WALL = 1_700_000_000.0


def description(kind: str, n: int) -> Signal:
    return Signal(type=kind, sdp=f"v=0\r\na=fingerprint:sha-256 {':'.join([f'{n:02X}'] * 32)}\r\n")


CANDIDATE = Signal(type="candidate", candidate=Candidate(candidate="candidate:1 1 udp 1 192.0.2.1 9 typ host"))


class Peer:
    """The core under test with a clock; `got` has its effects of one kind, unwrapped."""

    def __init__(self, **config):
        self.config = MeshConfig(room="demo", join_token="secret", **config)
        self.core = SignalingCore(ME, self.config, random.Random(1), lambda now: WALL + now)
        self.now = 0.0
        self.effects = []

    def feed(self, event):
        self.effects = self.core.handle(event, self.now)
        return self

    def signaled(self, message, transport="one"):
        return self.feed(Signaled(transport, message))

    def join(self, *transports):
        for transport in transports or ("one",):
            self.feed(ServiceUp(transport)).signaled(BootstrapPeers(), transport)
        return self

    def in_mesh(self, neighbour=CAROL):
        return self.feed(LinkUp(remote(neighbour)))

    def wait(self, seconds):
        end, gathered = self.now + seconds, []
        while self.core.next_deadline() <= end:
            self.now = max(self.now, self.core.next_deadline())
            gathered += self.core.expire(self.now)
        self.now, self.effects = end, gathered
        return self

    def got(self, kind):
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def sent(self):
        return [(effect.transport, effect.message) for effect in self.got(SendSignaling)]

    @property
    def told(self):
        return [effect.input for effect in self.got(Tell) if effect.subsystem is Subsystem.TOPOLOGY]

    @property
    def routes(self):
        return [told for told in self.asked if isinstance(told, Route)]

    @property
    def cancelled(self):
        return [told.call for told in self.asked if isinstance(told, CancelRoute)]

    @property
    def asked(self):
        """Of the routing core."""
        return [effect.input for effect in self.got(Tell) if effect.subsystem is Subsystem.ROUTING]

    @property
    def events(self):
        return [effect.event for effect in self.got(Emit)]

    def counts(self, name):
        return self.core.snapshot().get(name, 0)

    def dial(self, peer, n=1):
        """Our offer to `peer`, as it went out."""
        self.feed(LocalSignal(peer, description("offer", n)))
        ((_, message),) = self.sent
        return message.signal


def from_peer(identity, signal, **fields):
    return PeerSignal(to=ME.peer_id, from_=identity.peer_id, signal=signal, **fields)


def remote(identity):
    return RemotePeer(identity.peer_id, identity.verified, 1, identity.public_key)


def way_back(identity, *path):
    return Way(identity.peer_id, f"packet of {identity.peer_id[:4]}", (identity.peer_id, *path))


def routed(identity, message):
    """A message that came over a route."""
    return Routed(remote(identity), message, way_back(identity))


def routed_signal(identity, signal, **fields):
    return routed(identity, RelaySignal(**{"from_": identity.peer_id, "to": ME.peer_id, "signal": signal, **fields}))
