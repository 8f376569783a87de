"""Islands: parts of the mesh that lost each other are found, linked by a bridge, and made one ring again.

An island is a part of the mesh that is whole in itself: its ring is closed, so nobody in it lacks anything. It shows only
to peers that remember others (after Shafaat, Ghodsi, Haridi: Dealing with network partitions in structured overlay
networks, 2009; ours differs in that each peer looks for its own place on the other side).

- *Suspect.* A peer whose link broke without a word is looked for at its place on the ring, soon (`FindSuccessor`, answered
  by itself, or by who is nearest instead). Who is not there is *missing*. The same goes for one of those whom a service
  names when we come back to it, or to somebody who is on several services.
- *Probe.* For missing peers the signaling services are asked, so often that an island of any size asks every few seconds
  in all. Of a peer that answers there, a link is wanted: a *bridge*. The probed peer looks for the asker in the same
  way, and makes room for it. A peer of which the services know nothing is forgotten; if the mesh has shrunk by that,
  they are asked who is next to us, since after a mass failure the survivors may be many small islands.
- *Confirm.* A bridge, or a link that a service brought about where the mesh did not (`LinkedViaService`), joins two islands only if
  who is nearest to us beyond it is not at its place on our side.
- *Merge.* Each end of the bridge then floods `merge` on its side. Some who hear it, so many on each side, ask the far end
  who is next to them beyond the bridge (`find_beyond`), and link to those, whom their offers reach by the bridge. In
  between the rings close by what new neighbours tell each other, in both directions from each of these seeds.
- *Healed.* Three peers from beyond are at their places by a way that avoids the bridge. The bridge stays as a long link.

Who tries to open a bridge floods its side with that, so that nobody else does meanwhile: an island tries one at a time, however
large it is. Who has just heard `merge` asks no services for a while, and looks for its suspects again afterwards: so there are few
bridges, however many miss somebody. Events go to the applications of the peers at bridges, and of those who asked the
services and found somebody: each `IslandSuspected` is followed by one `IslandHealed`, unless that takes too long.

All that is heard here is taken for a hint: it makes us dial peers, and look for some; links prove who they lead to.

This file says who does what: see `missing` for the first two of these, `bridges` for the next two, `healing` for the last, and
`island_side` for what they share.

Takes: LinkBroken, ServicePeers, LinkedViaService, PingedViaService, ServicePong, LinkUp, LinkDown, Received (Merge), RoutedReceived (FindBeyond), RouteSucceeded,
RouteFailed, MeshSize, Leave.
Gives: SendFrame (Merge), Notify(ROUTING, Route | RouteReply), Notify(SIGNALING, PingViaService | RouteHint | FindPeers),
Notify(OVERLAY, OpenBridge | Welcome | PeersFound), Emit(IslandSuspected | IslandHealed).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, assert_never

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Effects
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkUp, Received, RemotePeer
from p2pmesh.protocols.islands.bridge_merge import BridgeMerge
from p2pmesh.protocols.islands.context import IslandCall, IslandContext, IslandLookup, Question
from p2pmesh.protocols.islands.detection import Detection
from p2pmesh.protocols.islands.recovery import IslandRecovery
from p2pmesh.protocols.notices import (
    Input,
    LinkBroken,
    LinkedViaService,
    MeshSize,
    PingedViaService,
    RoutedReceived,
    RouteFailed,
    RouteSucceeded,
    ServicePeers,
    ServicePong,
)
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import FoundBeyond, Merge


class IslandsCore:
    """What one peer does about islands: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        del wall
        self._side = IslandContext(identity.peer_id, config.islands, rng)
        self._healing = IslandRecovery(self._side)
        self._missing = Detection(self._side, self._healing)
        self._bridges = BridgeMerge(self._side, self._healing, self._missing, ring_list=config.chord.successors)
        self._leaving = False

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        if self._leaving:
            return []
        match event:
            case LinkUp():
                self._on_link_up(event.peer, now)
            case LinkDown():
                self._side.links.pop(event.peer, None)
                self._missing.link_down(event.peer)
            case LinkBroken():
                self._missing.vanished(event.peer, now)
            case ServicePeers():
                self._missing.named(event, now)
            case ServicePong():
                self._missing.probed(event, now)
            case PingedViaService():
                self._missing.hailed(event.peer, now)
            case LinkedViaService():
                self._bridges.stranger(event.peer, now)
            case Received(peer, Merge() as merge):
                self._bridges.merge(peer, merge, now)
            case RoutedReceived():
                self._bridges.asked(event)
            case RouteSucceeded() | RouteFailed():
                self._on_outcome(event, now)
            case MeshSize():
                self._missing.resized(event.peers, now)
            case Leave():
                self._leaving = True
                self._side.timers = Timers()
            case _:
                return []
        return self._side.take()

    def next_deadline(self) -> float:
        return self._side.timers.next_deadline()

    def expire(self, now: float) -> Effects:
        for timer in self._side.timers.pop_due(now):
            match timer.kind:
                case "check":
                    self._missing.check(PeerId(timer.of))
                case "ask":
                    self._missing.ask_services(now)
                case "probed":
                    self._side.counts["unanswered"] += 1
                case "bridge":
                    if self._missing.bridge_to(PeerId(timer.of), now):
                        self._bridges.tell_wanted(PeerId(timer.of), now)
                case "confirm":
                    self._bridges.confirm(PeerId(timer.of), now)
                case "seek":
                    self._bridges.seek_place(timer.of)
                case "watch":
                    self._healing.watch(PeerId(timer.of), now)
                case _:
                    assert_never(timer.kind)
        return self._side.take()

    def snapshot(self) -> Mapping[str, Any]:
        counts = self._side.counts
        return {
            "suspects": len(self._missing.suspects),
            "missing": len(self._missing.suspects.missing()),
            "healing": len(self._healing),
            "floods": len(self._bridges.floods),
            "calls": len(self._side.calls),
            **{name: counts[name] for name in sorted(counts)},
        }

    # --- what came of it ----------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        self._side.links[remote.peer_id] = remote.is_member
        self._missing.link_up(remote.peer_id, now)

    def _on_outcome(self, event: RouteSucceeded | RouteFailed, now: float) -> None:
        call = self._side.calls.pop(event.call, None)
        match call:
            case IslandLookup():
                self._looked(call, found=isinstance(event, RouteSucceeded) and event.peer == call.peer, now=now)
            case Question() if isinstance(event, RouteSucceeded) and isinstance(event.message, FoundBeyond):
                self._bridges.beyond(call, event.message)
            case Question():
                self._side.counts["vain_questions"] += 1
            case IslandCall():
                self._bridges.looked_up(call, event)
            case None:
                pass
            case _:
                assert_never(call)

    def _looked(self, call: IslandLookup, *, found: bool, now: float) -> None:
        match call.purpose:
            case "check" | "probe":
                self._missing.looked(call, found=found, now=now)
            case "greet":
                if not found:
                    self._missing.greet(call.peer)
            case "confirm":
                self._bridges.looked(call, found=found, now=now)
            case "witness":
                self._healing.looked(call, found=found, now=now)
            case _:
                assert_never(call.purpose)
