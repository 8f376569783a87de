"""Topology: which links this peer has.

Each peer wants the two peers next to it on the ring of ids (Stoica et al., Chord, 2001) among those that it knows, and
fills its other slots with peers taken at random. As long as of any two neighbours on the ring one knows the other, the
ring closes, so the mesh is one graph; and since a peer gives up a link only for one that is nearer on the ring, it comes
to rest.

Slots
=====
A *slot* is an attempt of ours (dialing), one of theirs (answering), an open link, or a link that is being closed. There
are never more than `max_peers`. So whoever lets a newcomer in while full first gives up a link, tells the loser of the
newcomer (`reconnection_data`), and hands the slot on to its *heir* when the link is really down. The loser, if it was
next to us on the ring, finds its new neighbour in the newcomer: an edge of the ring is spliced open.

Who is let in when all slots are taken: a peer that is nearer on the ring than those we have, always; one without any link,
if a link off the ring is old enough, and rarely. Links next to us on the ring and links that the application wants
(`Connect`) stay. Who is turned down is told of peers nearer to its place, so a newcomer that knows one peer gets there step
by step.

Offers that cross: the lower id's offer wins. A peer of the original drops ours, so its offer wins.

Takes: LinkUp, LinkDown, LinkLost, Received, ServiceUp and ServiceDown (from signaling: joined, and no more), PeersFound,
PeerGone, Offered, Rejected, Connect, Forget, Leave.
Gives: WantLink, AcceptOffer, DropLink, SendFrame(ReconnectionData | Goodbye), Reply,
Tell(SIGNALING, RejectOffer | AskForOffer | FindPeers),
Emit(PeerConnected | PeerDisconnected | PeerTimedOut | PeerFailed | PeerEvicted).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from p2pmesh.config import MeshConfig
from p2pmesh.errors import MeshClosed, MeshError, PeerUnreachable
from p2pmesh.events import PeerConnected, PeerDisconnected, PeerEvicted, PeerFailed, PeerTimedOut
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, ring_distance, short
from p2pmesh.protocols.core import (
    NO_SLOT,
    AcceptOffer,
    AskForOffer,
    Connect,
    DropLink,
    Effects,
    Emit,
    FindPeers,
    Forget,
    Input,
    Leave,
    LinkDown,
    LinkLost,
    LinkUp,
    Offered,
    PeerGone,
    PeersFound,
    Received,
    Rejected,
    RejectOffer,
    RemotePeer,
    Reply,
    SendFrame,
    ServiceDown,
    ServiceUp,
    Subsystem,
    Tell,
    WallClock,
    WantLink,
)
from p2pmesh.protocols.known import KnownPeers, ring_neighbours
from p2pmesh.protocols.slots import ATTEMPTS, Heir, Pace, Slot, Slots, State, heir_id
from p2pmesh.protocols.timers import Backoff, Timers
from p2pmesh.wire.messages import Goodbye, LinkRejected, ReconnectionData

FULL = "max_peers_reached"  # the original's word
TAKEN_BACK = frozenset({"cancelled", "no_attempt"})
"""Rejections that concern the other side's offer, not ours."""
NOT_A_FAILURE = frozenset({FULL, NO_SLOT, "already_linked", "closing", "initiator_conflict", "leaving", *TAKEN_BACK})
"""Reasons that belong to the ordinary course of things: the application does not hear of them."""
OFFER_COMES = 2.0
"""Seconds given to a peer of the original to make the offer that it wants to make itself; it takes 0.2 to 0.5 s."""


class TopologyCore:
    """The topology of one peer: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._me = identity.peer_id
        self._max_peers = config.max_peers
        self._config = config.topology
        self._rng = rng
        self._wall = wall
        self._slots = Slots(self._me, config.max_peers)
        self._known = KnownPeers(self._me, self._config, rng)
        self._calls: dict[int, PeerId] = {}
        self._services: dict[str, None] = {}
        self._timers = Timers[Literal["check"]]()
        backoff = Backoff(self._config.retry_first, self._config.retry_cap)
        self._filling = Pace(backoff, rng)
        self._room_making = Pace(backoff, rng)
        self._let_in_at = -math.inf
        self._counts = Counter[str]()
        self._leaving = False
        self._out: Effects = []

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        match event:
            case LinkUp():
                self._on_link_up(event.peer, now)
            case LinkDown():
                self._on_link_down(event, now)
            case LinkLost():
                self._attempt_failed(event.peer, event.reason, now)
            case Received():
                self._on_received(event, now)
            case ServiceUp():
                self._services[event.transport] = None
            case ServiceDown():
                self._services.pop(event.transport, None)
            case PeersFound():
                grace = self._config.announced_grace * self._rng.uniform(0.5, 1.0) if event.source == "joined" else 0.0
                if self._known.learn(event.peers, now + grace):
                    self._filling.reset()
            case PeerGone():
                self._on_peer_gone(event.peer)
            case Offered():
                self._on_offered(event, now)
            case Rejected():
                self._on_rejected(event, now)
            case Connect():
                self._on_connect(event.call, event.peer, now)
            case Forget():
                self._on_forget(event.call)
            case Leave():
                self._on_leave(now)
            case _:
                return []
        return self._finish(now)

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        return self._finish(now) if self._timers.pop_due(now) else []

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "links": self._slots.are(State.OPEN),
            "attempts": self._slots.are(*ATTEMPTS),
            "closing": self._slots.are(State.CLOSING),
            "pinned": [peer for peer, slot in self._slots.items() if slot.pinned],
            "ring": list(ring_neighbours(self._me, self._slots.are(State.OPEN))),
            "known": len(self._known),
            **{name: self._counts[name] for name in sorted(self._counts)},
        }

    def _finish(self, now: float) -> Effects:
        if not self._leaving:
            self._balance(now)
        effects, self._out = self._out, []
        return effects

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        peer = remote.peer_id
        self._counts["opened"] += 1
        self._out.append(Emit(PeerConnected(peer, remote.verified)))
        self._known.linked(peer, remote.version)
        slot = self._slots.get(peer)
        if slot is None:  # it opened while we gave it up
            self._counts["surplus"] += 1
            room = self._slots.free() > 0 and not self._leaving
            slot = self._slots[peer] = Slot(State.OPEN if room else State.CLOSING, now, version=remote.version)
            if not room:
                self._close(peer, slot, NO_SLOT)
            return
        slot.state, slot.since, slot.version = State.OPEN, now, remote.version
        if slot.made_room:
            self._room_making.reset()
        for call in self._calls_for(peer):
            del self._calls[call]
            self._out.append(Reply(call))

    def _on_link_down(self, event: LinkDown, now: float) -> None:
        slot = self._slots.pop(event.peer)
        if slot is None:
            return
        on_ring = event.peer in ring_neighbours(self._me, [event.peer, *self._slots.are(State.OPEN)])
        self._counts["closed"] += 1
        if event.timed_out is None:
            self._out.append(Emit(PeerDisconnected(event.peer, slot.farewell or event.reason)))
        else:
            self._out.append(Emit(PeerTimedOut(event.peer, event.timed_out)))
        if slot.said_goodbye:
            self._known.forget(event.peer)
        else:
            pause = self._config.min_link_age if slot.evicted_us else self._config.retry_first
            self._known.pause(event.peer, now + pause * self._rng.uniform(0.5, 1.0))
        if slot.heir is not None and not self._leaving:
            self._hand_over(slot.heir, now)
        elif not slot.given_up:
            self._filling.reset()
            if on_ring and self._max_peers > 1 and not self._leaving:
                self._out.append(Tell(Subsystem.SIGNALING, FindPeers()))

    def _attempt_failed(self, peer: PeerId, reason: str, now: float) -> None:
        slot = self._slots.get(peer)
        if slot is None or slot.state not in ATTEMPTS:
            return
        self._slots.pop(peer)
        self._counts["failed"] += 1
        self._known.missed(peer, now)
        self._filling.failed(now)
        if slot.made_room:
            self._room_making.failed(now)
        if slot.pinned or reason not in NOT_A_FAILURE:
            self._out.append(Emit(PeerFailed(peer, reason)))
        self._fail_calls(peer, PeerUnreachable(f"no link to {short(peer)}: {reason}"))

    def _dial(self, peer: PeerId, now: float, *, made_room: bool = False) -> None:
        pinned = bool(self._calls_for(peer))
        self._slots[peer] = Slot(State.DIALING, now, pinned, made_room)
        self._counts["dialed"] += 1
        self._out.append(WantLink(peer))

    def _accept(self, offer: Offered, now: float) -> None:
        peer = offer.peer.peer_id
        self._slots[peer] = Slot(State.ANSWERING, now, pinned=bool(self._calls_for(peer)))
        self._counts["accepted"] += 1
        self._out.append(AcceptOffer(offer.peer, offer.signal))

    def _close(self, peer: PeerId, slot: Slot, reason: str) -> None:
        slot.state, slot.given_up = State.CLOSING, True
        slot.farewell = slot.farewell or reason
        self._out.append(DropLink(peer, reason))

    def _reject(self, remote: RemotePeer, reason: str) -> None:
        self._counts["rejected"] += 1
        alternatives = self._alternatives(remote.peer_id, only_links=remote.version == 0)
        self._out.append(Tell(Subsystem.SIGNALING, RejectOffer(remote.peer_id, reason, alternatives)))

    # --- making room --------------------------------------------------------------------------------------------------

    def _give_way(self, loser: PeerId, heir: Heir, now: float) -> None:
        """Let `heir` have the slot of `loser`: at once if that is an attempt, else when its link is down."""
        slot = self._slots.get(loser)
        if slot is None:
            return
        if slot.state in ATTEMPTS:
            self._slots.pop(loser)
            self._counts["cancelled"] += 1
            self._known.pause(loser, now + self._config.retry_first)
            self._out.append(DropLink(loser, "given up for another peer"))
            reason = "cancelled" if slot.state is State.DIALING else FULL
            self._out.append(Tell(Subsystem.SIGNALING, RejectOffer(loser, reason)))
            self._hand_over(heir, now)
            return
        self._counts["evicted"] += 1
        slot.heir = heir
        peers = tuple(dict.fromkeys((heir_id(heir), *self._alternatives(loser, only_links=True))))
        self._say_evicted(loser, "make_room", peers[: max(1, self._config.alternatives)], now)
        self._close(loser, slot, "given up for another peer")

    def _say_evicted(self, peer: PeerId, reason: str, alternatives: tuple[PeerId, ...], now: float) -> None:
        notice = ReconnectionData(reason=reason, peers=alternatives, timestamp=int(self._wall(now) * 1000))
        self._out.append(SendFrame((peer,), notice, urgent=True))

    def _hand_over(self, heir: Heir, now: float) -> None:
        if isinstance(heir, Offered):
            self._accept(heir, now)
        elif self._services:
            self._dial(heir, now, made_room=True)
        else:
            self._fail_calls(heir, PeerUnreachable("no signaling service is up"))

    def _loser_to(self, peer: PeerId, now: float, *, links: int | None) -> PeerId | None:
        """Who has to make room for an offer of `peer`, which has so many links."""
        ring = self._slots.ring(peer)
        expendable = self._slots.expendable(ring)
        if peer in ring:
            return next(iter(expendable), None)
        dials = [other for other in expendable if self._in(other, State.DIALING)]
        if dials and (links == 0 or peer < self._me):  # an offer in hand is worth two dials; by id, lest all give way
            return dials[0]
        if links != 0 or now < self._let_in_at + self._config.min_link_age:
            return None
        settled = now - self._config.min_link_age
        old = [other for other in expendable if self._in(other, State.OPEN, settled)]
        if old:
            self._let_in_at = now
        return next(iter(old), None)

    def _in(self, peer: PeerId, state: State, since: float = math.inf) -> bool:
        slot = self._slots.get(peer)
        return slot is not None and slot.state is state and slot.since <= since

    # --- what others say ----------------------------------------------------------------------------------------------

    def _on_offered(self, event: Offered, now: float) -> None:
        remote, peer = event.peer, event.peer.peer_id
        self._known.heard(peer, remote.version)
        if self._leaving:
            self._reject(remote, "leaving")
            return
        slot = self._slots.get(peer)
        if slot is not None:
            self._on_offered_again(event, slot, now)
            return
        closing = self._slots.due_to(peer)
        if closing is not None:
            closing.heir = event
            return
        if self._slots.free() > 0:
            self._accept(event, now)
            return
        proof = event.signal.p2pmesh
        loser = self._loser_to(peer, now, links=None if proof is None else proof.links)
        if loser is None:
            self._reject(remote, FULL)
            return
        self._give_way(loser, event, now)

    def _on_offered_again(self, event: Offered, slot: Slot, now: float) -> None:
        match slot.state:
            case State.OPEN:
                self._reject(event.peer, "already_linked")
            case State.CLOSING:
                self._reject(event.peer, "closing")
            case State.DIALING if event.peer.version > 0 and self._me < event.peer.peer_id:
                self._counts["glare"] += 1  # it will answer ours
            case State.DIALING | State.ANSWERING:
                self._accept(event, now)

    def _on_rejected(self, event: Rejected, now: float) -> None:
        peer = event.peer
        self._known.learn(event.alternatives)
        closing = self._slots.due_to(peer)
        if closing is not None and isinstance(closing.heir, Offered):
            closing.heir = None
        slot = self._slots.get(peer)
        attempting = slot is not None and slot.state in ATTEMPTS
        if slot is not None and event.reason in TAKEN_BACK and slot.state is not State.ANSWERING:
            return
        if attempting:
            self._counts["turned_down"] += 1
            self._out.append(DropLink(peer, event.reason))
            self._attempt_failed(peer, event.reason, now)
        if event.offer_instead:
            self._known.pause(peer, now)
        elif event.reason == "initiator_conflict":
            self._known.heard(peer, 0)
            self._known.pause(peer, now + OFFER_COMES)
        elif event.reason == "not found" and (slot is None or attempting):
            self._known.forget(peer)

    def _on_peer_gone(self, peer: PeerId) -> None:
        if peer in self._slots:
            self._known.mark_gone(peer)
        else:
            self._known.forget(peer)

    def _on_received(self, event: Received, now: float) -> None:
        slot = self._slots.get(event.peer)
        if slot is None:
            return
        match event.message:
            case ReconnectionData():
                self._known.learn(event.message.peers)
                if slot.evicted_us:
                    return
                slot.evicted_us = True
                slot.farewell = slot.farewell or f"gave us up: {event.message.reason}"
                others = tuple(peer for peer in event.message.peers if peer != self._me)
                self._out.append(Emit(PeerEvicted(event.peer, event.message.reason, others)))
            case Goodbye():
                self._known.learn(event.message.peers)
                slot.said_goodbye = True
                if slot.state is State.OPEN:
                    self._close(event.peer, slot, event.message.reason)
                    slot.given_up = False
            case LinkRejected():
                self._known.learn(event.message.alternative_peers)
            case _:
                self._counts["ignored"] += 1

    # --- what the application wants -----------------------------------------------------------------------------------

    def _on_connect(self, call: int, peer: PeerId, now: float) -> None:
        if self._leaving:
            self._out.append(Reply(call, error=MeshClosed("the mesh is being left")))
            return
        if peer == self._me:
            self._out.append(Reply(call, error=PeerUnreachable("a peer has no link to itself")))
            return
        slot = self._slots.get(peer)
        if slot is not None and slot.state is State.OPEN:
            slot.pinned = True
            self._out.append(Reply(call))
            return
        self._calls[call] = peer
        self._known.learn((peer,))
        if slot is not None and slot.state is not State.CLOSING:
            slot.pinned = True
        elif slot is None and peer in self._slots.held():
            return  # it gets a slot as soon as one is closed
        elif not self._services:
            self._fail_calls(peer, PeerUnreachable(f"no link to {short(peer)}: no signaling service is up"))
        elif slot is not None and slot.heir is None:
            slot.heir = peer
        elif self._slots.free() > 0 and slot is None:
            self._dial(peer, now)
        else:
            self._connect_when_full(peer, now)

    def _connect_when_full(self, peer: PeerId, now: float) -> None:
        ring = self._slots.ring(peer)
        loser = next(iter((*self._slots.expendable(ring), *self._slots.expendable(()))), None)
        if loser is None or peer in self._slots:
            self._fail_calls(peer, PeerUnreachable(f"no link to {short(peer)}: none of ours can be given up"))
        else:
            self._give_way(loser, peer, now)

    def _on_forget(self, call: int) -> None:
        peer = self._calls.pop(call, None)
        if peer is None or self._calls_for(peer):
            return
        slot = self._slots.get(peer)
        if slot is not None:
            slot.pinned = False

    def _calls_for(self, peer: PeerId) -> list[int]:
        return [call for call, wanted in self._calls.items() if wanted == peer]

    def _fail_calls(self, peer: PeerId, error: MeshError) -> None:
        for call in self._calls_for(peer):
            del self._calls[call]
            self._out.append(Reply(call, error=error))

    def _on_leave(self, now: float) -> None:
        self._leaving = True
        self._timers.cancel("check")
        for call in list(self._calls):
            del self._calls[call]
            self._out.append(Reply(call, error=MeshClosed("the mesh is being left")))
        for peer, slot in list(self._slots.items()):
            slot.heir = None
            if slot.state is State.OPEN:
                self._say_goodbye(peer, slot, now)
                self._close(peer, slot, "we left the mesh")
            elif slot.state in ATTEMPTS:
                self._slots.pop(peer)
                self._out.append(DropLink(peer, "we leave the mesh"))

    def _say_goodbye(self, peer: PeerId, slot: Slot, now: float) -> None:
        alternatives = self._alternatives(peer, only_links=True)
        if slot.version == 0:
            self._say_evicted(peer, "leaving", alternatives, now)
        else:
            self._out.append(SendFrame((peer,), Goodbye(reason="left the mesh", peers=alternatives), urgent=True))

    # --- what is missing ----------------------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        """Dial what is missing, and come back when there may be more to do."""
        if self._services:
            for peer in self._missing_on_ring(now):
                self._dial_on_ring(peer, now)
            while (peer_to_fill := self._one_more(now)) is not None:
                self._dial(peer_to_fill, now)
        moments = (self._filling.not_before, self._room_making.not_before, self._known.next_ready(now))
        self._timers.set("check", min((now + self._config.check_every, *(at for at in moments if at > now))))

    def _missing_on_ring(self, now: float) -> list[PeerId]:
        """Known peers that are nearer on the ring than all that we have or attempt."""
        if self._max_peers < 2:
            return []
        held = self._slots.held()
        ready = self._known.ready(now, without={*held, *self._slots})
        wanted = ring_neighbours(self._me, [*held, *ready])
        return [peer for peer in wanted if peer not in held]

    def _dial_on_ring(self, peer: PeerId, now: float) -> None:
        if self._ask_original(peer, now) or len(self._slots.are(State.DIALING)) >= self._config.dials_at_once:
            return
        if self._slots.free() > 0:
            self._dial(peer, now)
            return
        if now < self._room_making.not_before or not self._known.worth_a_link(peer, now):
            return
        loser = next(iter(self._slots.expendable(self._slots.ring(peer))), None)
        if loser is not None:
            self._give_way(loser, peer, now)

    def _one_more(self, now: float) -> PeerId | None:
        """A peer to fill a free slot with; not too many at once, so that there is room for those who dial us."""
        free = self._slots.free()
        enough = len(self._slots.are(State.OPEN)) >= min(2, self._max_peers)
        if free <= 0 or len(self._slots.are(State.DIALING)) >= min(self._config.dials_at_once, max(1, free // 2)):
            return None
        if enough and now < self._filling.not_before:
            return None
        ready = self._known.ready(now, without={*self._slots.held(), *self._slots})
        fewest = min(map(self._known.misses, ready), default=0)
        best = [peer for peer in ready if self._known.misses(peer) == fewest]
        if not best:
            return None
        peer = self._rng.choice(best)
        return None if self._ask_original(peer, now) else peer

    def _ask_original(self, peer: PeerId, now: float) -> bool:
        """A peer of the original with the smaller id must make the offer itself."""
        if self._known.version(peer) != 0 or self._me < peer:
            return False
        self._known.missed(peer, now)
        self._out.append(Tell(Subsystem.SIGNALING, AskForOffer(peer)))
        return True

    # --- views --------------------------------------------------------------------------------------------------------

    def _alternatives(self, peer: PeerId, *, only_links: bool) -> tuple[PeerId, ...]:
        """Peers that may have room for `peer`: those next to its place on the ring first, then our nearest neighbours."""
        links = [other for other in self._slots.are(State.OPEN) if other != peer]
        known = [] if only_links else [other for other in self._known.in_good_standing() if other != peer]
        near = sorted(links, key=lambda other: min(ring_distance(other, peer), ring_distance(peer, other)))
        ranked = dict.fromkeys((*ring_neighbours(peer, [*links, *known]), *near))
        return tuple(ranked)[: self._config.alternatives]
