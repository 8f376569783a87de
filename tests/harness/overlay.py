"""One overlay core alone, at place 80 of a ring of 256, and what its neighbours may say to it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Self

from p2pmesh.config import ChordConfig, LinkConfig, MeshConfig, TopologyConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import SendFrame, WantLink
from p2pmesh.protocols.inputs import LinkLost, LinkUp, PeersFound, Received, RemotePeer, ServiceUp, Source
from p2pmesh.protocols.notices import (
    Input,
    Offered,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
)
from p2pmesh.protocols.overlay.overlay import OverlayCore
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.simulation.model.sdp_stub import describe
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import FindSuccessor, Neighbours, SuccessorFound
from tests.harness.one_core import OneCore


def at(place: int) -> PeerId:
    """The peer at this place of a ring of 256."""
    return PeerId(f"{place % 256:02x}" * 20)


ME = at(0x80)
ALL = range(0, 256, 8)
"""Places that are taken, in the mesh of 32 of most tests; `ME` is one of them."""


def says(place, *, links=(), free=0, leaf=False, serial=1, ring=ALL, count=8) -> Neighbours:
    """What the peer at this place says of itself, in the mesh of the peers at `ring`."""
    after = sorted((other for other in ring if other != place), key=lambda other: (other - place) % 256)
    return Neighbours(
        serial=serial,
        links=tuple(map(at, links)),
        free=free,
        leaf=leaf,
        successors=tuple(map(at, after[:count])),
        predecessors=tuple(map(at, after[::-1][:count])),
    )


def finds(place, ring=ALL) -> SuccessorFound:
    """What the peer at this place answers to a look-up of our place."""
    said = says(place, ring=ring)
    return SuccessorFound(successors=said.successors, predecessors=said.predecessors)


def offered(place, links=None, version=1, purpose=None) -> Offered:
    description = describe(f"{place:016x}", bytes(32), "actpass")
    return Offered(RemotePeer(at(place), bool(version), version), description, links, purpose)


class Peer(OneCore[OverlayCore]):
    """The core under test."""

    def __init__(
        self,
        max_peers: int = 3,
        *,
        online: bool = True,
        unverified: bool = False,
        chord: ChordConfig | None = None,
        **topology: Any,
    ) -> None:
        links = LinkConfig(allow_unverified=unverified)
        config = MeshConfig(
            max_peers=max_peers, topology=TopologyConfig(**topology), chord=chord or ChordConfig(), links=links
        )
        self.max_peers = max_peers
        self.health = LocalHealth()
        core = OverlayCore(Identity.unverified(ME), config, random.Random(1), lambda now: 1000.0 + now, self.health)
        super().__init__(core, now=50.0)
        if online:
            self.feed(ServiceUp("one"))

    def feed(self, event: Input) -> Self:
        super().feed(event)
        snapshot = self.core.snapshot()
        assert sum(len(snapshot[part]) for part in ("links", "attempts", "closing")) <= self.max_peers
        return self

    # --- what comes in ------------------------------------------------------------------------------------------------

    def up(self, place: int, message: Message | None = None, *, verified: bool = True, version: int = 1) -> Self:
        """A link opens, and the peer says who it is."""
        effects = self.feed(LinkUp(RemotePeer(at(place), verified, version))).effects
        if message is not None:
            effects = effects + self.hear(place, message).effects
        self.effects = effects
        return self

    def linked(self, *places: int, version: int = 1) -> Self:
        """Links that came by the peers' offers, a minute ago."""
        for place in places:
            self.feed(offered(place, links=1)).feed(LinkUp(RemotePeer(at(place), True, version)))
        return self.wait(60)

    def hear(self, place: int, message: Message) -> Self:
        return self.feed(Received(at(place), message))

    def found(self, *places: int, source: Source = "bootstrap") -> Self:
        return self.feed(PeersFound(tuple(map(at, places)), source))

    def placed(self) -> Self:
        """Both neighbours on the ring are there, and agree."""
        return self.up(0x88, says(0x88)).up(0x78, says(0x78))

    def settled(self, *places: int) -> Self:
        """These neighbours say that they and we are all of the ring."""
        for place in places:
            self.hear(place, says(place, ring=(*places, 0x80)))
        return self

    def asked(self, question: FindSuccessor, place: int = 0x20) -> SuccessorFound:
        """What another peer gets for an answer."""
        way = ReturnPath(at(place), "1", (at(place),))
        self.feed(RoutedReceived(RemotePeer(at(place), True, 1), question, way))
        (answer,) = self.notices(RouteReply)
        assert isinstance(answer.message, SuccessorFound)
        return answer.message

    def searching(self) -> Route:
        """The next search for a long link; look-ups of our place fail."""
        return self._next_route(lambda question: question.seeks_link)

    def placing(self, key: PeerId | None = None) -> Route:
        """The next look-up of our place, or of this key instead; others fail."""
        return self._next_route(lambda question: not question.seeks_link and key in {None, question.key})

    def _next_route(self, wanted: Callable[[FindSuccessor], bool]) -> Route:
        for _ in range(1000):
            for route in self.wait(1).routes():
                assert isinstance(route.message, FindSuccessor)
                if wanted(route.message):
                    return route
                self.feed(RouteFailed(route.call, "no way"))
        raise AssertionError("it was not looked up")

    def searched(self, *places: int) -> Self:
        """The next search for a long link finds these."""
        answer = SuccessorFound(vacant=tuple(map(at, places)))
        return self.feed(RouteSucceeded(self.searching().call, at(0xFF), answer))

    def in_vain(self) -> Self:
        """What is dialed comes to nothing, until nothing more is dialed."""
        effects = self.effects
        while self.attempts:
            for peer in self.attempts:
                effects = effects + self.feed(LinkLost(peer, "no answer")).effects
        self.effects = effects
        return self

    # --- what comes out -----------------------------------------------------------------------------------------------

    @property
    def dialed(self) -> list[PeerId]:
        return [effect.peer for effect in self.got(WantLink)]

    @property
    def links(self) -> list[PeerId]:
        return list(self.snap()["links"])

    @property
    def attempts(self) -> list[PeerId]:
        return list(self.snap()["attempts"])

    @property
    def known(self) -> int:
        """Peers in the passive view."""
        return int(self.snap()["passive_view"]["known"])

    def snap(self) -> Any:
        return self.core.snapshot()

    def lists(self) -> Any:
        return self.snap()["successor_list"]

    def notices(self, kind: type) -> list[Any]:
        return [notice for notice in self.told if isinstance(notice, kind)]

    def routes(self) -> list[Route]:
        return self.notices(Route)

    def sent(self, kind: type) -> list[tuple[tuple[PeerId, ...], Any]]:
        return [(frame.peers, frame.message) for frame in self.got(SendFrame) if isinstance(frame.message, kind)]
