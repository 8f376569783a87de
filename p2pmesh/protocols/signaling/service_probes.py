"""Probes: asking the services whether a peer is there that the mesh does not find; and ways to peers beyond a bridge.

A probe is an `ack` that a service relays, and the probed peer's signaling sends one back.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from attrs import frozen

from p2pmesh.config import SignalingConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effects, Notify, SendSignaling
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.notices import ReturnPath, RouteHint, SeenViaService, Sighting
from p2pmesh.protocols.signaling.delivery import ByMesh, ByService, Came, SignalDelivery
from p2pmesh.protocols.util.lru_table import LruTable
from p2pmesh.protocols.util.rate_limiter import RateLimiter
from p2pmesh.wire import signaling as wire

MOST: Final = 64
"""Probes that are out, and askers whose probes are counted: one peer makes one every few seconds at most."""
LASTS: Final = 20.0
"""Seconds for which it is remembered how a peer was reached: until it is dialed, once or twice."""


@frozen
class _Known:
    came: Came
    until: float


class ServiceProbes:
    """The probes of one peer, and what came of them."""

    def __init__(self, me: PeerId, config: SignalingConfig, ways: SignalDelivery, counts: Counter[str]) -> None:
        self._me = me
        self._ways = ways
        self._counts = counts
        self._out = LruTable[tuple[str, ...]](MOST)
        """The services that have not answered yet."""
        self._reached = LruTable[_Known](config.remembered_offers)
        self._answers = RateLimiter(MOST, 0.2, 3.0)

    def snapshot(self) -> dict[str, int]:
        return {"open_probes": len(self._out), "known_ways": len(self._reached)}

    def is_out(self, peer: PeerId) -> bool:
        """Whether a service has yet to say whether it knows this peer."""
        return peer in self._out

    def ask(self, peer: PeerId) -> Effects:
        """Ask all services for it."""
        services = tuple(self._ways.services)
        if not services:
            return []
        self._counts["probes"] += 1
        self._out.put(peer, services)
        return [SendSignaling(service, wire.Ack(to=peer, from_=self._me)) for service in services]

    def hear(self, came: ByService, sender: PeerId, now: float, *, answers: bool) -> Effects:
        """An `ack` came by a service."""
        if not answers:
            if not self._answers.take(sender, now):
                return []
            answer = wire.Ack(to=sender, from_=self._me, answers=True)
            self._remember(sender, came, now)
            return [SendSignaling(came.transport, answer), Notify(Subsystem.ISLANDS, SeenViaService(sender, Sighting.PINGED_US))]
        if self._out.pop(sender) is None:
            return []
        self._remember(sender, came, now)
        return [Notify(Subsystem.ISLANDS, SeenViaService(sender, Sighting.ANSWERED))]

    def not_found(self, peer: PeerId, transport: str) -> Effects:
        """It is not on this service."""
        left = tuple(name for name in self._out.pop(peer) or () if name != transport)
        if left:
            self._out.put(peer, left)
            return []
        return [Notify(Subsystem.ISLANDS, SeenViaService(peer, Sighting.ABSENT))]

    def acquainted(self, event: RouteHint, now: float) -> Effects:
        """Peers beyond a bridge, and the path to them."""
        for peer in event.peers:
            self._remember(peer, ByMesh(ReturnPath(peer, "", (peer, *event.path))), now)
        return []

    def way_to(self, peer: PeerId, now: float) -> Came | None:
        """How it was reached lately."""
        known = self._reached.get(peer)
        return known.came if known is not None and now < known.until else None

    def _remember(self, peer: PeerId, came: Came, now: float) -> None:
        self._reached.put(peer, _Known(came, now + LASTS))
