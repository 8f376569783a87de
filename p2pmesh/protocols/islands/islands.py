"""Islands: parts of the mesh that lost each other are found, linked by a bridge, and made one ring again.

After Shafaat, Ghodsi, Haridi: Dealing with network partitions in structured overlay networks (2009); ours differs in
that each peer looks for its own place on the other side.

An island is a part of the mesh that is whole in itself: its ring is closed, so nobody in it lacks anything. It shows
only to peers that remember others.

- *Suspect.* A peer whose link broke without a word is looked for at its place on the ring, soon (`FindSuccessor`,
  answered by itself, or else by the nearest peer). If it is not there, it is *missing*. The same goes for one of the
  peers that a service names when we come back to it, or that several services name.
- *Ping.* The signaling services are asked for missing peers, so often that an island of any size asks every few seconds
  in all. To a peer that answers there, a link is wanted: a *bridge*, for which a full peer gives up a long link. A peer
  of which the services know nothing is forgotten.
- *Confirm.* A bridge, or a link that a service brought about where the mesh did not, joins two islands only if the peer
  that is nearest to us beyond it is not at its place on our side.
- *Merge.* Each end of the bridge then floods `merge` on its side. Some peers that hear it, so many on each side, ask
  the far end for those next to them beyond the bridge (`find_beyond`), and link to those, whom their offers reach by
  the bridge. In between the rings close by what new neighbours tell each other, in both directions from each of these
  seeds.
- *Healed.* Three peers from beyond are at their places by a way that avoids the bridge. The bridge stays as a long
  link.

A peer that tries to open a bridge floods its side with that, so that nobody else does meanwhile: an island tries one at
a time, however large it is. After news of a `merge` a peer asks no services for a while, and looks for its suspects
again afterwards: so there are few bridges, however many peers miss somebody. Events go to the applications of the peers
at bridges, and of those that asked the services and found somebody. All that is heard here is a hint: it makes us dial
peers, and look for some; links prove where they lead.

Look-ups are calls to routing, of three kinds: a `Lookup` goes to a place on our ring and finds the peer there, a
`Question` to the far end of a bridge, which makes a `LookupForOther` of it. A call whose outcome stays away counts as
failed.

Inputs: LinkUp, LinkDown, LinkBroken, ServicePeers, SeenViaService, Received, RoutedReceived, RouteSucceeded,
RouteFailed, MeshSize, Leave.
Effects: SendFrame; Notify to routing (Route, RouteReply), signaling (PingViaService, RouteHint), overlay
(OpenBridge, PeersFound, MergeStarted); Emit (IslandSuspected, IslandHealed).
Messages: handles `merge` and `find_beyond`; sends `merge`, `find_successor`, `find_beyond`, `found_beyond`.
Config: `IslandsConfig`, `ChordConfig.successors`.
State: the links, at most `MAX_CALLS` calls, a few timers for each suspect, link, case and flood; and that of its parts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, assert_never

from attrs import asdict, define
from msgspec import Struct

from p2pmesh.config import MeshConfig
from p2pmesh.events import IslandHealed, IslandSuspected
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effects, Emit, Notify, SendFrame, WallClock
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkUp, PeersFound, Received, RemotePeer, Subsystem
from p2pmesh.protocols.islands.bridge_merge import BridgeMerge
from p2pmesh.protocols.islands.detection import Detection
from p2pmesh.protocols.islands.recovery import WATCH_EVERY, IslandRecovery
from p2pmesh.protocols.notices import (
    Input,
    LinkBroken,
    MergeStarted,
    MeshSize,
    OpenBridge,
    PingViaService,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteHint,
    RouteReply,
    RouteSucceeded,
    SeenViaService,
    ServicePeers,
    Sighting,
)
from p2pmesh.protocols.util.latency import LocalHealth
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.protocols.util.window import CallTable
from p2pmesh.wire.fields import Trail
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import FindBeyond, FindSuccessor, FoundBeyond, Merge, SuccessorFound

MAX_CALLS = 512
"""Calls to routing at once. Ours are a few for each suspect and bridge; of more, they wait or are left out."""
MAX_FOR_OTHERS = 256
"""Of them for peers beyond a bridge: about as many as there are seeds, so that they leave room for our own."""


class Lookup(Struct, frozen=True):
    """We look for a peer at its place on our ring."""

    purpose: Literal["check", "ping", "confirm", "witness"]
    peer: PeerId
    far: PeerId | None = None
    """The far end of the bridge that it is about."""


class Question(Struct, frozen=True):
    """We ask the far end of a bridge for those next to a key beyond it."""

    purpose: Literal["confirm", "place", "witness"]
    far: PeerId
    path: tuple[PeerId, ...]
    """From the far end to the last peer before us."""


class LookupForOther(Struct, frozen=True):
    """We look a key up for a peer beyond a bridge."""

    way: ReturnPath


Call: TypeAlias = Lookup | Question | LookupForOther
Outcome: TypeAlias = RouteSucceeded | RouteFailed | None
"""How a call ended; None: its outcome never came."""


class _Timer(Struct, frozen=True):
    """What is due, and of which peer or flood."""

    kind: Literal["check", "ping", "confirm", "seek", "watch"]
    of: str = ""


PING = _Timer("ping")


@define
class IslandsCounts:
    """What the core did, and which of its calls came to nothing."""

    lookups: int = 0
    questions_failed: int = 0
    for_others_failed: int = 0
    for_others_refused: int = 0
    refused: int = 0
    confirms: int = 0
    merges: int = 0
    seeks: int = 0


class IslandsCore:
    """What one peer does about islands: see the module."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        health: LocalHealth | None = None,
    ) -> None:
        del wall
        self._me = identity.peer_id
        self._config = config.islands
        self._links: dict[PeerId, bool] = {}
        """Neighbours, and whether each is a member: verified, and of our protocol."""
        self._timers = Timers[_Timer](health)
        self._calls = CallTable[Call](MAX_CALLS, config.islands.lookup_timeout, health)
        self._counts = IslandsCounts()
        self._detection = Detection(config.islands, self._links, rng)
        self._recovery = IslandRecovery(self._me, config.islands, self._links, rng)
        self._bridges = BridgeMerge(self._me, config.islands, self._links, rng, config.chord.successors)
        self._leaving = False
        self._effects: Effects = []

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        if self._leaving:
            return []
        match event:
            case LinkUp():
                self._on_link_up(event.peer, now)
            case LinkDown():
                self._on_link_down(event.peer)
            case LinkBroken():
                self._on_link_broken(event.peer, now)
            case ServicePeers():
                self._on_service_peers(event, now)
            case SeenViaService():
                self._on_seen_via_service(event.peer, event.sighting, now)
            case Received(peer, Merge() as merge):
                self._on_merge(peer, merge, now)
            case RoutedReceived(message=FindBeyond(key=key)):
                self._on_find_beyond(event.way, key, now)
            case RouteSucceeded() | RouteFailed():
                self._on_outcome(event, now)
            case MeshSize(peers):
                self._detection.size = peers
            case Leave():
                self._on_leave()
            case _:
                return []
        return self._take()

    def next_deadline(self) -> float:
        return min(self._timers.next_deadline(), self._calls.next_deadline())

    def expire(self, now: float) -> Effects:
        for call in self._calls.pop_overdue(now).values():
            self._call_ended(call, None, now)
        for timer in self._timers.pop_due(now):
            match timer.kind:
                case "check":
                    self._check(PeerId(timer.of), now)
                case "ping":
                    self._ping(now)
                case "confirm":
                    self._confirm(PeerId(timer.of), now)
                case "seek":
                    self._seek_place(timer.of, now)
                case "watch":
                    self._watch(PeerId(timer.of), now)
                case _:
                    assert_never(timer.kind)
        return self._take()

    def snapshot(self) -> Mapping[str, Any]:
        return {
            **asdict(self._counts),
            "calls": len(self._calls),
            "lost": self._calls.lost,
            "detection": self._detection.snapshot(),
            "bridges": self._bridges.snapshot(),
            "recovery": self._recovery.snapshot(),
        }

    def _take(self) -> Effects:
        effects, self._effects = self._effects, []
        return effects

    # --- links and services -------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        peer = remote.peer_id
        self._links[peer] = remote.is_member
        pause = self._detection.linked(peer)
        if pause is not None:
            self._timers.set(_Timer("confirm", peer), now + pause)

    def _on_link_down(self, peer: PeerId) -> None:
        self._links.pop(peer, None)

    def _on_link_broken(self, peer: PeerId, now: float) -> None:
        self._suspect(peer, now)

    def _on_service_peers(self, event: ServicePeers, now: float) -> None:
        for peer in self._detection.named_by(event.transport, event.peers):
            self._suspect(peer, now, named=True)

    def _on_seen_via_service(self, peer: PeerId, sighting: Sighting, now: float) -> None:
        match sighting:
            case Sighting.ANSWERED | Sighting.ABSENT:
                self._on_pong(peer, now, is_there=sighting is Sighting.ANSWERED)
            case Sighting.LINKED:
                self._on_stranger(peer, now)
            case _:
                assert_never(sighting)

    def _on_pong(self, peer: PeerId, now: float, *, is_there: bool) -> None:
        """The services have answered our ping."""
        if not self._detection.was_asked_for(peer):
            return
        if is_there:
            self._suspect_island(peer, now, "a signaling service reaches it, and the mesh does not")
            self._open_bridge(peer, now)
        else:
            self._detection.unknown_to_services(peer)

    def _on_stranger(self, peer: PeerId, now: float) -> None:
        """A link to a peer that may be another island's. If nobody is missing here, it is more likely a newcomer."""
        pause = self._detection.crowd() if self._detection.misses_any else self._bridges.stranger_pause(peer)
        self._timers.set(_Timer("confirm", peer), now + pause)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _on_merge(self, sender: PeerId, merge: Merge, now: float) -> None:
        """A neighbour tells of a bridge; if it is our link to it, see for ourselves."""
        if not self._links.get(sender):
            return
        if merge.bridge == self._me and not merge.path:
            self._confirm(sender, now)
        elif self._bridges.takes(sender, merge):
            if not self._bridges.may_flood(now):
                return
            self._flood(merge, merge.path, now)
            pause = self._bridges.seed_pause(merge, self._detection.size)
            if pause is not None:
                self._timers.set(_Timer("seek", merge.id), now + pause)

    def _on_find_beyond(self, way: ReturnPath, key: PeerId, now: float) -> None:
        """A peer beyond a bridge asks for those next to a key, seen from here but not by the link that it asks over."""
        asked = [call.way.packet_id for call in self._calls.values() if isinstance(call, LookupForOther)]
        if way.packet_id in asked or len(asked) >= MAX_FOR_OTHERS:
            self._counts.for_others_refused += 1
            return
        self._look_up(LookupForOther(way), key, now, avoid=way.path[-1:])

    def _on_outcome(self, event: RouteSucceeded | RouteFailed, now: float) -> None:
        call = self._calls.close(event.call)
        if call is not None:
            self._call_ended(call, event, now)

    def _on_leave(self) -> None:
        self._leaving = True
        self._timers = Timers()
        self._calls = CallTable(0, 0.0)

    # --- calls to routing ---------------------------------------------------------------------------------------------

    def _look_for(self, lookup: Lookup, now: float, avoid: Trail = ()) -> bool:
        return self._look_up(lookup, lookup.peer, now, avoid)

    def _look_up(self, call: Lookup | LookupForOther, key: PeerId, now: float, avoid: Trail) -> bool:
        """Find the peer at this place of our ring. Returns whether a look-up is under way."""
        self._counts.lookups += 1
        return self._call(call, key, FindSuccessor(key=key), now, nearest=True, avoid=avoid)

    def _ask_beyond(self, question: Question, key: PeerId, now: float) -> None:
        """Ask the far end of a bridge for those next to a key on its side."""
        way = ReturnPath(question.far, "", question.path) if len(question.path) > 1 else None
        self._call(question, question.far, FindBeyond(key=key), now, way=way)

    def _call(
        self,
        call: Call,
        to: PeerId,
        message: Message,
        now: float,
        *,
        nearest: bool = False,
        way: ReturnPath | None = None,
        avoid: Trail = (),
    ) -> bool:
        if self._calls.is_full:
            self._counts.refused += 1
            return False
        route = Route(
            Subsystem.ISLANDS,
            self._calls.open(call, now),
            to,
            message,
            nearest=nearest,
            answered=True,
            way=way,
            avoid=avoid,
            timeout=self._config.lookup_timeout,
        )
        self._tell(Subsystem.ROUTING, route)
        return True

    def _call_ended(self, call: Call, outcome: Outcome, now: float) -> None:
        answer = outcome if isinstance(outcome, RouteSucceeded) else None
        match call:
            case Lookup():
                self._looked(call, found=answer is not None and answer.peer == call.peer, now=now)
            case Question() if answer is not None and isinstance(answer.message, FoundBeyond):
                self._answered_beyond(call, answer.message, now)
            case Question():
                self._counts.questions_failed += 1
            case LookupForOther() if answer is not None and isinstance(answer.message, SuccessorFound):
                near = answer.message
                found = FoundBeyond(peer=answer.peer, successors=near.successors, predecessors=near.predecessors)
                self._tell(Subsystem.ROUTING, RouteReply(call.way, found))
            case LookupForOther():
                self._counts.for_others_failed += 1
            case _:
                assert_never(call)

    def _looked(self, lookup: Lookup, *, found: bool, now: float) -> None:
        far = lookup.far or lookup.peer
        match lookup.purpose:
            case "check" | "ping":
                self._looked_for_suspect(lookup.peer, now, found=found, pings=lookup.purpose == "ping")
            case "confirm":
                if not found and far in self._links and now >= self._bridges.quiet_until:
                    self._confirmed(far, now)
            case "witness":
                self._healed(far, self._recovery.looked(far, lookup.peer, found=found, now=now))
            case _:
                assert_never(lookup.purpose)

    def _answered_beyond(self, question: Question, found: FoundBeyond, now: float) -> None:
        """The far end has told who is next to a key on its side."""
        match question.purpose:
            case "place":
                self._adopt(question.path, found)
            case "confirm":
                if self._me not in (found.peer, *found.successors, *found.predecessors):
                    self._look_for(Lookup("confirm", found.peer, question.far), now, avoid=(question.far,))
            case "witness":
                self._recovery.add_witness(question.far, found.peer)
            case _:
                assert_never(question.purpose)

    # --- suspects -----------------------------------------------------------------------------------------------------

    def _suspect(self, peer: PeerId, now: float, *, named: bool = False) -> None:
        forgotten = self._detection.suspect(peer, now, named=named)
        if forgotten is not None:
            self._timers.cancel(_Timer("check", forgotten))
        self._check_later(peer, now + self._config.patience)

    def _check_later(self, peer: PeerId, earliest: float) -> None:
        self._timers.set(_Timer("check", peer), self._detection.check_at(earliest))

    def _check(self, peer: PeerId, now: float) -> None:
        """Look for a suspect, if it is still one."""
        if peer in self._detection and not self._look_for(Lookup("check", peer), now):
            self._check_later(peer, now + self._config.patience)

    def _looked_for_suspect(self, peer: PeerId, now: float, *, found: bool, pings: bool) -> None:
        if found or peer not in self._detection:
            self._detection.drop(peer)
            if found:
                self._healed(peer, self._recovery.came_back(peer, now))
            if pings:  # it is back, and so may be the others
                self._timers.set(PING, now + self._detection.crowd())
            return
        if pings:
            self._tell(Subsystem.SIGNALING, PingViaService(peer))
        if self._detection.miss(peer, now, pinged=pings):
            self._timers.set(PING, max(now, self._bridges.quiet_until) + self._detection.crowd())
        else:
            self._ping_later(now)

    def _ping_later(self, now: float) -> None:
        if PING not in self._timers:
            self._timers.set(PING, max(now, self._bridges.waits_until) + self._detection.ping_pause())

    def _ping(self, now: float) -> None:
        """Ask the services for a missing peer, unless a look-up finds it at its place by now."""
        peer = self._detection.next_to_ping(now)
        if peer is None:
            return
        if now < self._bridges.waits_until or not self._look_for(Lookup("ping", peer), now):
            self._ping_later(now)

    # --- bridges ------------------------------------------------------------------------------------------------------

    def _open_bridge(self, peer: PeerId, now: float) -> None:
        """Try to get a link to this peer, unless another bridge has opened, or is tried."""
        if now < self._bridges.waits_until or peer in self._links:
            return
        self._detection.counts.bridges += 1
        self._tell(Subsystem.OVERLAY, OpenBridge(peer))
        if self._bridges.may_flood(now):
            self._flood(self._bridges.new(peer, wanted=True), (), now)

    def _confirm(self, far: PeerId, now: float) -> None:
        """See whether this link joins two islands."""
        if self._links.get(far) and now >= self._bridges.quiet_until:
            self._counts.confirms += 1
            self._ask_beyond(Question("confirm", far, (far,)), self._me, now)

    def _confirmed(self, far: PeerId, now: float) -> None:
        """Whoever is next to us beyond that link is not at its place here: a stranger may just have come."""
        pause = self._bridges.second_look(far)
        if pause is not None:
            self._timers.set(_Timer("confirm", far), now + pause)
            return
        self._suspect_island(far, now, "a link leads to peers that are not at their places here")
        if not self._recovery.bridge(far):
            return
        self._ask_witnesses(far, now)
        merge = self._bridges.new(far)
        self._effects.append(SendFrame((far,), merge, urgent=True))
        if self._bridges.may_flood(now):
            self._counts.merges += 1
            self._flood(merge, (far,), now)
            self._seek_place(merge.id, now)

    def _flood(self, merge: Merge, without: tuple[PeerId, ...], now: float) -> None:
        onward, to = self._bridges.flood(merge, without, now)
        if not merge.wanted:  # a bridge is there: nobody needs another, and the rings become one
            for peer in self._detection:
                self._check_later(peer, self._bridges.quiet_until)
            self._tell(Subsystem.OVERLAY, MergeStarted(now + 2 * self._config.quiet))
        if to:
            self._effects.append(SendFrame(to, onward, urgent=True))

    def _seek_place(self, flood: str, now: float) -> None:
        """Ask for those next to us beyond the bridge that this flood tells of."""
        path = self._bridges.path_to(flood)
        if path is not None:
            self._counts.seeks += 1
            self._ask_beyond(Question("place", path[0], path), self._me, now)

    def _adopt(self, path: tuple[PeerId, ...], found: FoundBeyond) -> None:
        """These are next to us beyond the bridge: the overlay dials those that are nearer than our neighbours here."""
        peers = self._bridges.next_to_us(found)
        if peers:
            self._tell(Subsystem.SIGNALING, RouteHint(peers, path))
            self._tell(Subsystem.OVERLAY, PeersFound(peers, "beyond"))

    # --- recovery -----------------------------------------------------------------------------------------------------

    def _suspect_island(self, peer: PeerId, now: float, reason: str) -> None:
        if self._recovery.suspect(peer, now):
            self._timers.set(_Timer("watch", peer), now + WATCH_EVERY)
            self._effects.append(Emit(IslandSuspected(peer, reason)))

    def _watch(self, far: PeerId, now: float) -> None:
        """Look for the next witness, or ask for some."""
        watch = self._recovery.watch(far, now)
        if watch is None:
            return
        self._timers.set(_Timer("watch", far), now + WATCH_EVERY)
        if watch.ask_witnesses:
            self._ask_witnesses(far, now)
        witness, avoid = watch.look_for, (far,) if far in self._links else ()
        if witness is not None and not self._look_for(Lookup("witness", witness, far), now, avoid):
            self._recovery.looked(far, witness, found=False, now=now)

    def _ask_witnesses(self, far: PeerId, now: float) -> None:
        for key in self._recovery.draw_keys():
            self._ask_beyond(Question("witness", far, (far,)), key, now)

    def _healed(self, far: PeerId, duration: float | None) -> None:
        if duration is not None:
            self._timers.cancel(_Timer("watch", far))
            self._effects.append(Emit(IslandHealed(duration, far)))

    def _tell(self, subsystem: Subsystem, notice: Input) -> None:
        self._effects.append(Notify(subsystem, notice))
