"""Chord: what the peers next to each other on the ring tell each other, and where long links should lead.

Each two neighbours that take part (verified, of our protocol) tell each other who they are linked to, who follows and goes
before them on the ring, and whether they have slots free: `neighbours`, on each new link and soon after something has
changed (Stoica et al., Chord, 2001, section 4: stabilise and notify). What is said goes on as hints: to routing, which
looks two links ahead, and to the topology, which dials whoever is nearer on the ring than those that it has.

- *Place.* While our neighbours on the ring don't take us for theirs, or the ring is torn beside us, we look for our place
  (`p2pmesh.protocols.overlay.ring_join`), ever more rarely. If that does not help, the services are asked.
- *Stabilise.* Every 15 s the neighbours on the ring compare the serial numbers of what they said last.
- *Fix fingers.* While slots for long links are free, keys are drawn and looked up (`p2pmesh.protocols.overlay.finger_keys`): ten times in a
  row if nothing comes of it, then again every 30 s and ever more rarely while more than a third of those wanted are
  missing. A long link that is open needs no fixing: it stays, wherever the ring has grown since, until it ends.
- *Superfluous.* A link to a neighbour on the ring is no more of use once a newcomer between the two is linked to both. It
  is given up by the one with the lower id, unless the mesh is so small that slots are left over anyway.

Takes: LinkUp, LinkDown, Received (Neighbours, Stabilise), RoutedReceived (FindSuccessor), RouteSucceeded (SuccessorFound), RouteFailed,
Vacancies, MergeStarted, EvictedBy, Leave.
Gives: SendFrame (Neighbours, Stabilise), Notify(ROUTING, Route | RouteReply | NeighbourLinks), Notify(SIGNALING, FindPeers),
Notify(ROUTING and BROADCAST and RECEIPTS and ISLANDS, MeshSize),
Notify(TOPOLOGY, PeersFound | Introduced | FarPeers | Welcome | RingStable | Superfluous).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import structs

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Effects, Notify, SendFrame
from p2pmesh.protocols.inputs import Leave, LinkDown, LinkUp, PeersFound, Received, RemotePeer, Source, Subsystem
from p2pmesh.protocols.notices import (
    EvictedBy,
    FarPeers,
    FindPeers,
    Input,
    Introduced,
    MergeStarted,
    MeshSize,
    NeighbourLinks,
    RingStable,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteReply,
    RouteSucceeded,
    Superfluous,
    Vacancies,
    Welcome,
)
from p2pmesh.protocols.overlay.find_successor import SuccessorLookup
from p2pmesh.protocols.overlay.fix_fingers import FingerSearch
from p2pmesh.protocols.overlay.ring_join import RingJoin
from p2pmesh.protocols.overlay.successor_list import Neighbour, SuccessorLists, sure_of
from p2pmesh.protocols.util.ring_geometry import bracket
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.overlay import FindSuccessor, Neighbours, Stabilise, SuccessorFound

SHUFFLED = 8
"""Ids told in a shuffle."""
NOTICEABLE = 1.25
"""Factor by which the mesh has to grow or shrink to be news."""

Timer = Literal["tell", "stabilise", "shuffle", "place", "seek"]


class ChordCore:
    """The ring, as one peer sees it: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        del wall
        self._me = identity.peer_id
        self._config = config.chord
        self._max_peers = config.max_peers
        self._rng = rng
        self._view = SuccessorLists(self._me, self._config.successors)
        self._answering = SuccessorLookup(config, self._view)
        self._placing = RingJoin(self._me, self._view, self._config.successors, is_leaf=self._max_peers < 2)
        self._seeking = FingerSearch(self._me, self._max_peers, self._config, rng)
        self._heard: deque[PeerId] = deque(maxlen=4 * SHUFFLED)
        self._timers = Timers[Timer]()
        self._free = self._max_peers
        self._said: Neighbours | None = None
        self._serial = 0
        self._sent: dict[PeerId, int] = {}
        self._size = 1
        self._last_call = 0
        self._counts = Counter[str]()
        self._leaving = False
        self._out: Effects = []

    # --- the contract of a core ---------------------------------------------------------------------------------------

    def handle(self, event: Input, now: float) -> Effects:
        if self._leaving:
            return []
        match event:
            case LinkUp():
                self._on_link_up(event.peer, now)
            case LinkDown():
                self._on_link_down(event.peer, now)
            case Received():
                self._on_received(event, now)
            case RoutedReceived():
                self._on_routed(event, now)
            case RouteSucceeded():
                self._on_arrived(event, now)
            case RouteFailed():
                self._on_unrouted(event.call, now)
            case Vacancies():
                self._free = event.free
                self._seeking.slots_changed(event.free, displaced=event.displaced, now=now)
                self._seek(now)
            case MergeStarted():
                self._seeking.settle_for_less(event.until)
                self._seek(now)
            case EvictedBy(peer) if peer in self._view.neighbours:
                self._view.neighbours[peer].gives_up = True
            case Leave():
                self._leaving = True
                self._timers = Timers()
            case _:
                return []
        return self._take()

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        for timer in self._timers.pop_due(now):
            match timer:
                case "tell":
                    self._tell_changes(now)
                case "stabilise":
                    self._stabilise(now)
                case "shuffle":
                    self._shuffle(now)
                case "place":
                    self._look_for_place()
                case "seek":
                    self._search(now)
        return self._take()

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "successors": list(self._view.successors),
            "predecessors": list(self._view.predecessors),
            "far": self._view.far(),
            "agreed": self._view.is_agreed(),
            "size": self._view.size(),
            "neighbours": len(self._view.neighbours),
            "board": len(self._answering.board),
            "seeks": self._seeking.is_on,
            **{name: self._counts[name] for name in sorted(self._counts)},
        }

    def _take(self) -> Effects:
        effects, self._out = self._out, []
        return effects

    def _tell(self, subsystem: Subsystem, event: Input) -> None:
        self._out.append(Notify(subsystem, event))

    # --- links --------------------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        speaks = remote.is_member
        self._view.neighbours[remote.peer_id] = Neighbour(now, speaks)
        if not speaks:
            return
        self._answering.board.strike(remote.peer_id)
        self._speak((remote.peer_id,), self._saying())
        self._tell_soon(now)
        if "stabilise" not in self._timers:
            self._timers.set("stabilise", now + self._config.stabilise_every * self._rng.uniform(0.5, 1.5))
        if "shuffle" not in self._timers:
            self._timers.set("shuffle", now + self._config.shuffle_every * self._rng.uniform(0.5, 1.5))

    def _on_link_down(self, peer: PeerId, now: float) -> None:
        self._sent.pop(peer, None)
        neighbour = self._view.neighbours.pop(peer, None)
        if neighbour is None:
            return
        lists = () if neighbour.gives_up else ((self._view.successors, True), (self._view.predecessors, False))
        self._refresh(now)
        for row, clockwise in lists:
            if row[:1] == (peer,):
                self._close_over(row, clockwise=clockwise)
        self._tell_soon(now)
        self._see_to_place(now)
        self._seeking.links_changed(self._view, now)
        self._seek(now)

    def _close_over(self, lost: tuple[PeerId, ...], *, clockwise: bool) -> None:
        """Who was next to us is gone: the next in the list takes its place, or, if that has gone as well, one of the others."""
        others = lost[2:] if self._placing.tear(lost, clockwise=clockwise) else ()
        self._found([peer for peer in lost[1:2] if peer not in self._view.neighbours], "ring")
        self._found([peer for peer in others if peer not in self._view.neighbours], "list")

    def _refresh(self, now: float) -> None:
        """See who is next to us. One that has just become so, since another has gone, is asked for its lists of today."""
        before = self._view.outdated()
        self._view.refresh(now)
        for peer in self._view.outdated():
            if peer not in before:
                self._out.append(SendFrame((peer,), Stabilise(), urgent=True))

    # --- what neighbours say ------------------------------------------------------------------------------------------

    def _on_received(self, event: Received, now: float) -> None:
        neighbour = self._view.neighbours.get(event.peer)
        if neighbour is None or not neighbour.speaks:
            self._counts["ignored"] += 1
            return
        match event.message:
            case Neighbours():
                self._on_neighbours(event.peer, neighbour, event.message, now)
            case Stabilise():
                self._on_stabilise(event.peer, neighbour, event.message)
            case _:
                self._counts["ignored"] += 1

    def _on_neighbours(self, peer: PeerId, neighbour: Neighbour, said: Neighbours, now: float) -> None:
        before, neighbour.told = neighbour.told, said
        neighbour.told_at = now
        self._refresh(now)
        if before is None or before.links != said.links:
            self._tell(Subsystem.ROUTING, NeighbourLinks(peer, said.links))
        if before is None or (before.leaf, before.free) != (said.leaf, said.free):
            self._tell(Subsystem.TOPOLOGY, Introduced(peer, said.leaf, said.free))
        self._pass_on(peer, before, said)
        self._give_up_spare(now)
        self._tell_soon(now)
        self._see_to_place(now)
        self._seeking.links_changed(self._view, now)
        self._seek(now)

    def _pass_on(self, peer: PeerId, before: Neighbours | None, said: Neighbours) -> None:
        """Tell the topology who is next to us, as `peer` sees it, and of whom it may be good to know."""
        near = [] if said.leaf else bracket(self._me, peer, said, self._config.successors)
        self._found([other for other in near if other not in self._view.neighbours], "ring")
        lists = (*said.successors, *said.predecessors) if peer in self._view.next or before is None else ()
        old = () if before is None else {*before.links, *before.successors, *before.predecessors}
        self._found([other for other in (*said.links, *lists) if other not in old and other not in near], "hearsay")

    def _found(self, peers: Iterable[PeerId], source: Source) -> None:
        others = tuple(dict.fromkeys(peer for peer in peers if peer != self._me))
        if others:
            self._tell(Subsystem.TOPOLOGY, PeersFound(others, source))

    def _give_up_spare(self, now: float) -> None:
        if self._view.size() <= 2 * self._max_peers:
            return
        for peer in self._view.superfluous(now):
            self._counts["superfluous"] += 1
            self._tell(Subsystem.TOPOLOGY, Superfluous(peer))

    def _on_stabilise(self, peer: PeerId, neighbour: Neighbour, said: Stabilise) -> None:
        self._heard.extend(said.peers)
        self._found(said.peers, "hearsay")
        if said.serial is None:
            if not said.peers:
                self._speak((peer,), self._saying())
        elif neighbour.told is None or neighbour.told.serial != said.serial:
            self._counts["missed"] += 1
            self._out.append(SendFrame((peer,), Stabilise(), urgent=True))

    # --- what we say --------------------------------------------------------------------------------------------------

    def _saying(self) -> Neighbours:
        """What we have to say, but for the serial number."""
        view, outdated = self._view, self._view.outdated()
        return Neighbours(
            serial=0,
            links=view.links(),
            free=max(0, min(self._max_peers - len(view.neighbours) - view.kept_free(), 0xFFFF)),
            leaf=self._max_peers < 2,
            successors=sure_of(view.successors, outdated),
            predecessors=sure_of(view.predecessors, outdated),
        )

    def _speak(self, peers: tuple[PeerId, ...], saying: Neighbours) -> None:
        self._serial = (self._serial + 1) % (1 << 32)
        for peer in peers:
            self._sent[peer] = self._serial
        self._out.append(SendFrame(peers, structs.replace(saying, serial=self._serial), urgent=True))

    def _tell_soon(self, now: float) -> None:
        if "tell" not in self._timers:
            self._timers.set("tell", now + self._config.tell_delay * self._rng.uniform(0.7, 1.3))

    def _tell_changes(self, now: float) -> None:
        """Say what is new: to the neighbours on the ring, and what is not about the ring to all."""
        view, before, saying = self._view, self._said, self._saying()
        self._said = saying
        self._tell_size(now)
        if saying == before:
            return
        for_all = before is None or (before.links, before.free) != (saying.links, saying.free)
        audience = [peer for peer, it in view.neighbours.items() if it.speaks and (for_all or peer in view.next)]
        if audience:
            self._speak(tuple(audience), saying)

    def _tell_size(self, now: float) -> None:
        size = self._view.size()
        if 1 / NOTICEABLE <= size / self._size <= NOTICEABLE and (size == 1) == (self._size == 1):
            return
        self._size = size
        for subsystem in (Subsystem.ROUTING, Subsystem.BROADCAST, Subsystem.RECEIPTS, Subsystem.ISLANDS):
            self._tell(subsystem, MeshSize(size))

    def _stabilise(self, now: float) -> None:
        for peer in self._view.next:
            if peer in self._sent:
                self._out.append(SendFrame((peer,), Stabilise(serial=self._sent[peer]), urgent=True))
        if self._view.neighbours:
            self._timers.set("stabilise", now + self._config.stabilise_every * self._rng.uniform(0.9, 1.1))

    def _shuffle(self, now: float) -> None:
        speaking = [peer for peer, it in self._view.neighbours.items() if it.speaks]
        if not speaking:
            return
        self._timers.set("shuffle", now + self._config.shuffle_every * self._rng.uniform(0.9, 1.1))
        peer = self._rng.choice(speaking)
        told = [it.told.links for other, it in self._view.neighbours.items() if it.told is not None and other != peer]
        heard = dict.fromkeys((*self._heard, *(other for links in told for other in links)))
        stock = [other for other in heard if other not in {peer, self._me}]
        picked = tuple(self._rng.sample(stock, k=min(SHUFFLED, len(stock))))
        if picked:
            self._out.append(SendFrame((peer,), Stabilise(peers=picked)))

    # --- our place ----------------------------------------------------------------------------------------------------

    def _see_to_place(self, now: float) -> None:
        """While our neighbours on the ring are not sure, our place is looked for."""
        if self._placing.is_placed():
            self._timers.cancel("place")
            agreed = self._placing.placed()
            if agreed is not None:
                self._tell(Subsystem.TOPOLOGY, agreed)
        elif "place" not in self._timers and self._placing.call is None:
            self._timers.set("place", now + self._placing.delay(self._rng))

    def _look_for_place(self) -> None:
        if self._placing.is_placed() or not any(it.speaks for it in self._view.neighbours.values()):
            return
        self._counts["places"] += 1
        self._placing.call = self._ask(self._placing.question())
        if self._placing.wants_services():
            self._tell(Subsystem.SIGNALING, FindPeers())

    def _on_place(self, answerer: PeerId, found: SuccessorFound, now: float) -> None:
        if self._max_peers < 2:
            if found.welcome and answerer not in self._view.neighbours:
                self._tell(Subsystem.TOPOLOGY, FarPeers((answerer,)))
        else:
            near = self._placing.next_to_us(answerer, found)
            if len(near) == 2 and not self._placing.is_adrift:
                self._tell(Subsystem.TOPOLOGY, RingStable(near[0], near[1]))
            self._found([peer for peer in near or [answerer] if peer not in self._view.neighbours], "ring")
        self._found((answerer, *found.successors, *found.predecessors), "hearsay")
        self._see_to_place(now)

    # --- look-ups -----------------------------------------------------------------------------------------------------

    def _ask(self, question: FindSuccessor) -> int:
        self._last_call += 1
        route = Route(
            Subsystem.CHORD,
            self._last_call,
            question.key,
            question,
            nearest=True,
            answered=True,
            timeout=self._config.search_timeout,
        )
        self._tell(Subsystem.ROUTING, route)
        return self._last_call

    def _on_arrived(self, event: RouteSucceeded, now: float) -> None:
        found = event.message
        if not isinstance(found, SuccessorFound):
            self._on_unrouted(event.call, now)
        elif event.call == self._placing.call:
            self._placing.call = None
            self._on_place(event.peer, found, now)
        elif event.call == self._seeking.call:
            self._on_search_done(event.peer, found, now)

    def _on_unrouted(self, call: int, now: float) -> None:
        if call == self._placing.call:
            self._placing.call = None
            self._see_to_place(now)
        elif call == self._seeking.call:
            self._seeking.nothing_found(now)
            self._seek(now)

    def _on_routed(self, event: RoutedReceived, now: float) -> None:
        if not isinstance(event.message, FindSuccessor):
            self._counts["ignored"] += 1
            return
        asker, question = event.peer.peer_id, event.message
        self._counts["asked"] += 1
        if question.key == asker and not question.leaf:
            self._found((asker,), "joined")  # it will make us an offer, if we are next to it
        answer = self._answering.answer(asker, question, self._free, now)
        if answer.welcome:
            self._tell(Subsystem.TOPOLOGY, Welcome(asker, question.leaf))
        self._tell(Subsystem.ROUTING, RouteReply(event.way, answer))

    # --- long links ---------------------------------------------------------------------------------------------------

    def _seek(self, now: float) -> None:
        """See when the next key is to be looked up, if any."""
        at = self._seeking.next_search(self._view, now)
        if at is None:
            self._timers.cancel("seek")
        else:
            self._timers.set("seek", at)

    def _search(self, now: float) -> None:
        question = self._seeking.question(self._view, now)
        if question is not None:
            self._counts["searches"] += 1
            self._seeking.call = self._ask(question)
        self._seek(now)

    def _on_search_done(self, answerer: PeerId, found: SuccessorFound, now: float) -> None:
        candidates = ((answerer,) if found.welcome else ()) + found.vacant
        peers = self._seeking.found(candidates, self._view, now)
        if peers:
            self._tell(Subsystem.TOPOLOGY, FarPeers(peers))
        self._found((answerer,), "hearsay")
        self._seek(now)
