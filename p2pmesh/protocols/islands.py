"""Islands: parts of the mesh that lost each other are found, linked by a bridge, and made one ring again.

An island is a part of the mesh that is whole in itself: its ring is closed, so nobody in it lacks anything. It shows only
to peers that remember others (after Shafaat, Ghodsi, Haridi: Dealing with network partitions in structured overlay
networks, 2009; ours differs in that each peer looks for its own place on the other side).

- *Suspect.* A peer whose link broke without a word is looked for at its place on the ring, soon (`FindSuccessor`, answered
  by itself, or by who is nearest instead). Who is not there is *missing*.
- *Probe.* For missing peers the signaling services are asked, so often that an island of any size asks every few seconds
  in all. Of a peer that answers there, a link is wanted: a *bridge*. The probed peer looks for the asker in the same
  way, and makes room for it. A peer of which the services know nothing is forgotten; if the mesh has shrunk by that,
  they are asked who is next to us, since after a mass failure the survivors may be many small islands.
- *Confirm.* A bridge, or a link that a service brought about where the mesh did not (`Stranger`), joins two islands only if
  who is nearest to us beyond it is not at its place on our side.
- *Merge.* Each end of the bridge then floods `merge` on its side. Some who hear it, so many on each side, ask the far end
  who is next to them beyond the bridge (`find_beyond`), and link to those, whom their offers reach by the bridge. In
  between the rings close by what new neighbours tell each other, in both directions from each of these seeds.
- *Healed.* Three peers from beyond are at their places by a way that avoids the bridge. The bridge stays as a long link.

Who has just heard `merge` asks no services for a while, and looks for its suspects again afterwards: so there are few
bridges, however many miss somebody. Events go to the applications of the peers at bridges, and of those who asked the
services and found somebody: each `IslandSuspected` is followed by one `IslandHealed`, unless that takes too long.

All that is heard here is taken for a hint: it makes us dial peers, and look for some; links prove who they lead to.

Takes: Vanished, Stranger, Hailed, Probed, LinkUp, LinkDown, Received (Merge), Routed (FindBeyond), Arrived, Unrouted,
MeshSize, Leave.
Gives: SendFrame (Merge), Tell(ROUTING, Route | Answer), Tell(SIGNALING, Probe | Acquainted | FindPeers),
Tell(TOPOLOGY, Bridge | Welcome | PeersFound), Emit(IslandSuspected | IslandHealed).
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, assert_never

from attrs import define, field, frozen

from p2pmesh.config import MeshConfig
from p2pmesh.events import IslandHealed, IslandSuspected
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import (
    Acquainted,
    Answer,
    Arrived,
    Bridge,
    Effects,
    Emit,
    FindPeers,
    Hailed,
    Input,
    Leave,
    LinkDown,
    LinkUp,
    MeshSize,
    PeersFound,
    Probe,
    Probed,
    Received,
    RemotePeer,
    Route,
    Routed,
    SendFrame,
    Stranger,
    Subsystem,
    Tell,
    Unrouted,
    Vanished,
    WallClock,
    Way,
    Welcome,
)
from p2pmesh.protocols.recent import Allowances, Recent
from p2pmesh.protocols.ring import bracket
from p2pmesh.protocols.suspects import Suspects
from p2pmesh.protocols.timers import Timers
from p2pmesh.wire.messages import FindBeyond, FindSuccessor, FoundBeyond, Merge, Message, Neighbours, SuccessorFound

MAX_PATH = 24
"""Links that `merge` goes: 10,000 peers with 3 links each are 15 from each other at most."""
REMEMBERED = 64
"""Floods known by their ids, so that each is passed on once: far more than are let pass in the time that one takes."""
FLOODS, FLOOD_EVERY = 3.0, 4.0
"""Floods that a peer starts or passes on at once, and seconds for another: several bridges may open in the same moment."""
SPREAD = 1.5
"""Seconds over which those who heard of a bridge look for their places beyond it."""
BEYOND = 256
"""Questions of others that are being looked up at once."""
WITNESSES = 3
WATCH_EVERY = 2.0
CASES = 8
"""Islands that are healed at once here."""
GREETING = 1.5
"""Seconds that a probed peer has to look for who asked, and to make room for it."""
CROWD = 1.5
"""Seconds over which those whose link to a missing peer opened again look whether it is a bridge."""
STRANGE = 3.0
"""Seconds until a stranger's island is looked for: two newcomers may meet by a service, and both find their places first."""
BRIDGE_WANTED = 25.0
"""Seconds within which a link counts as the bridge that was wanted."""
SHRUNK = 0.7
"""A mesh that has fewer of its peers left than this has lost more than the usual."""
SHRUNK_FOR = 120.0

Purpose: TypeAlias = Literal["check", "probe", "greet", "confirm", "witness"]


@frozen
class _Lookup:
    """We look for a peer at its place on our ring."""

    purpose: Purpose
    peer: PeerId
    far: PeerId | None = None
    """The far end of the bridge that it is about."""


@frozen
class _Question:
    """We asked the far end of a bridge who is next to a key beyond it."""

    purpose: Literal["confirm", "place", "witness"]
    far: PeerId
    path: tuple[PeerId, ...]
    """From the far end to the last peer before us."""


@frozen
class _Errand:
    """We look a key up for somebody beyond a bridge."""

    way: Way


_Call: TypeAlias = _Lookup | _Question | _Errand


@frozen
class _Timer:
    kind: Literal["check", "ask", "bridge", "confirm", "seek", "watch", "probed"]
    of: str = ""


@define
class _Case:
    """An island that we know of."""

    since: float
    bridged: bool = False
    """Whether our link leads there."""
    witnesses: dict[PeerId, bool] = field(factory=dict)
    """Peers from there, and whether each was found at its place on our side."""
    looking: bool = False


class IslandsCore:
    """What one peer does about islands: see the module."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        del wall
        self._me = identity.peer_id
        self._config = config.islands
        self._ring_list = config.chord.successors
        self._rng = rng
        self._links: dict[PeerId, bool] = {}
        """Neighbours, and whether each takes part: verified, and of our protocol."""
        self._suspects = Suspects(self._config.suspects, self._config.suspect_lasts)
        self._wanted: OrderedDict[PeerId, float] = OrderedDict()
        self._strangers = Recent[None](CASES)
        self._cases: OrderedDict[PeerId, _Case] = OrderedDict()
        self._floods: OrderedDict[str, Merge] = OrderedDict()
        self._allowance = Allowances(1, 1 / FLOOD_EVERY, FLOODS)
        self._greetings = Allowances(1, 1 / 10.0, 3.0)
        self._timers = Timers[_Timer]()
        self._calls: dict[int, _Call] = {}
        self._last_call = 0
        self._size = 1
        self._quiet_until = -1.0
        self._shrunk_until = -1.0
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
                self._links.pop(event.peer, None)
                self._wanted.pop(event.peer, None)
            case Vanished():
                self._on_vanished(event.peer, now)
            case Stranger():
                self._on_stranger(event.peer, now)
            case Hailed():
                if event.peer not in self._links and self._greetings.take(self._me, now):
                    self._look_for(_Lookup("greet", event.peer), event.peer)
            case Probed():
                self._on_probed(event, now)
            case Received(peer, Merge() as merge):
                self._on_merge(peer, merge, now)
            case Routed():
                self._on_routed(event)
            case Arrived() | Unrouted():
                self._on_outcome(event, now)
            case MeshSize():
                self._on_size(event.peers, now)
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
            match timer.kind:
                case "check":
                    self._check(PeerId(timer.of))
                case "ask":
                    self._ask_services(now)
                case "bridge":
                    self._bridge_to(PeerId(timer.of), now)
                case "confirm":
                    self._confirm(PeerId(timer.of), now)
                case "seek":
                    self._seek_place(timer.of)
                case "watch":
                    self._watch(PeerId(timer.of), now)
                case "probed":
                    self._counts["unanswered"] += 1
                case _:
                    assert_never(timer.kind)
        return self._take()

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "suspects": len(self._suspects),
            "missing": len(self._suspects.missing()),
            "healing": len(self._cases),
            "floods": len(self._floods),
            "calls": len(self._calls),
            **{name: self._counts[name] for name in sorted(self._counts)},
        }

    def _take(self) -> Effects:
        effects, self._out = self._out, []
        return effects

    def _tell(self, subsystem: Subsystem, event: Input) -> None:
        self._out.append(Tell(subsystem, event))

    # --- calls --------------------------------------------------------------------------------------------------------

    def _route(
        self,
        call: _Call,
        to: PeerId,
        message: Message,
        *,
        nearest: bool = False,
        way: Way | None = None,
        avoid: tuple[PeerId, ...] = (),
    ) -> None:
        self._last_call += 1
        self._calls[self._last_call] = call
        route = Route(
            Subsystem.ISLANDS,
            self._last_call,
            to,
            message,
            nearest=nearest,
            answered=True,
            way=way,
            avoid=avoid,
            timeout=self._config.lookup_timeout,
        )
        self._tell(Subsystem.ROUTING, route)

    def _look_for(self, call: _Lookup | _Errand, key: PeerId, avoid: tuple[PeerId, ...] = ()) -> None:
        """See who is at this place of the ring."""
        self._counts["lookups"] += 1
        self._route(call, key, FindSuccessor(key=key), nearest=True, avoid=avoid)

    def _ask_beyond(self, question: _Question, key: PeerId) -> None:
        """Ask the far end of a bridge who is next to a key on its side."""
        way = Way(question.far, "", question.path) if len(question.path) > 1 else None
        self._route(question, question.far, FindBeyond(key=key), way=way)

    def _on_outcome(self, event: Arrived | Unrouted, now: float) -> None:
        call = self._calls.pop(event.call, None)
        answer = event.message if isinstance(event, Arrived) else None
        answerer = event.peer if isinstance(event, Arrived) else None
        match call:
            case _Lookup():
                self._looked(call, found=answerer == call.peer, now=now)
            case _Question() if isinstance(answer, FoundBeyond):
                self._on_beyond(call, answer, now)
            case _Errand() if isinstance(answer, SuccessorFound) and answerer is not None:
                found = FoundBeyond(peer=answerer, successors=answer.successors, predecessors=answer.predecessors)
                self._tell(Subsystem.ROUTING, Answer(call.way, found))
            case _Errand():
                self._counts["vain_errands"] += 1
            case _Question():
                self._counts["vain_questions"] += 1
            case _:
                pass

    def _looked(self, call: _Lookup, *, found: bool, now: float) -> None:
        match call.purpose:
            case "check" | "probe" if found:
                self._suspects.drop(call.peer)
                self._is_back(call.peer, now)
            case "check" | "probe":
                self._is_missing(call, now)
            case "greet":
                if not found:
                    self._counts["greeted"] += 1
                    self._tell(Subsystem.TOPOLOGY, Welcome(call.peer))
            case "confirm":
                if not found and call.far in self._links and now >= self._quiet_until:
                    self._on_confirmed(call.far, now)
            case "witness":
                self._on_witness(call, found=found, now=now)
            case _:
                assert_never(call.purpose)

    # --- suspects -----------------------------------------------------------------------------------------------------

    def _on_link_up(self, remote: RemotePeer, now: float) -> None:
        peer = remote.peer_id
        self._links[peer] = remote.verified and remote.version > 0
        suspect = self._suspects.drop(peer)
        wanted = self._wanted.pop(peer, -BRIDGE_WANTED) > now - BRIDGE_WANTED
        if wanted or (suspect is not None and suspect.missing):
            # Several links may open in the same moment: the first to have looked is enough.
            self._timers.set(_Timer("confirm", peer), now + (0.0 if wanted else CROWD * self._rng.random()))

    def _on_stranger(self, peer: PeerId, now: float) -> None:
        """It may be another island's. Who misses nobody rather takes it for a newcomer, and looks twice."""
        if self._suspects.missing():
            self._timers.set(_Timer("confirm", peer), now + CROWD * self._rng.random())
        else:
            self._strangers.put(peer, None)
            self._timers.set(_Timer("confirm", peer), now + STRANGE * self._rng.uniform(0.7, 1.3))

    def _on_vanished(self, peer: PeerId, now: float) -> None:
        oldest = self._suspects.add(peer, now)
        if oldest is not None:
            self._timers.cancel(_Timer("check", oldest))
        self._check_later(peer, now + self._config.patience)

    def _check_later(self, peer: PeerId, at: float) -> None:
        self._timers.set(_Timer("check", peer), at + self._config.patience * self._rng.uniform(0.0, 0.5))

    def _check(self, peer: PeerId) -> None:
        if peer in self._suspects:
            self._look_for(_Lookup("check", peer), peer)

    def _is_missing(self, call: _Lookup, now: float) -> None:
        suspect = self._suspects.get(call.peer)
        if suspect is None:
            return
        suspect.missing = True
        if call.purpose == "probe":
            self._counts["probes"] += 1
            suspect.asked_at = now
            self._timers.set(_Timer("probed", call.peer), now + self._config.probe_timeout)
            self._tell(Subsystem.SIGNALING, Probe(call.peer))
        self._ask_later(now)

    def _ask_later(self, now: float) -> None:
        """See when the services are asked next: an island of any size asks as often."""
        if _Timer("ask") not in self._timers:
            interval = max(self._config.probe_least, self._size * self._config.probe_every)
            self._timers.set(_Timer("ask"), max(now, self._quiet_until) + interval * self._rng.uniform(0.0, 2.0))

    def _on_size(self, peers: int, now: float) -> None:
        shrunk = peers < SHRUNK * self._size
        self._size = peers
        if shrunk:
            self._shrunk_until = now + SHRUNK_FOR
            if _Timer("ask") in self._timers:
                self._timers.cancel(_Timer("ask"))
                self._ask_later(now)

    def _ask_services(self, now: float) -> None:
        self._suspects.drop_old(now)
        missing = self._suspects.missing()
        if not missing:
            return
        if now < self._quiet_until:
            self._ask_later(now)
        else:
            self._look_for(_Lookup("probe", missing[0]), missing[0])

    def _on_probed(self, event: Probed, now: float) -> None:
        suspect = self._suspects.get(event.peer)
        if suspect is None or _Timer("probed", event.peer) not in self._timers:
            return
        self._timers.cancel(_Timer("probed", event.peer))
        if event.alive:
            self._suspect_island(event.peer, now, "a signaling service reaches it, and the mesh does not")
            self._timers.set(_Timer("bridge", event.peer), now + GREETING)
            return
        suspect.said_dead += 1
        if suspect.said_dead > 1 or self._size < self._config.suspects:
            self._suspects.drop(event.peer)
        if now < self._shrunk_until:
            self._tell(Subsystem.SIGNALING, FindPeers())

    # --- bridges ------------------------------------------------------------------------------------------------------

    def _bridge_to(self, peer: PeerId, now: float) -> None:
        if now < self._quiet_until or peer in self._links:
            return
        self._counts["bridges"] += 1
        self._wanted[peer] = now
        if len(self._wanted) > CASES:
            self._wanted.popitem(last=False)
        self._tell(Subsystem.TOPOLOGY, Bridge(peer))

    def _confirm(self, far: PeerId, now: float) -> None:
        """See whether this link joins two islands."""
        if self._links.get(far) and now >= self._quiet_until:
            self._counts["confirms"] += 1
            self._ask_beyond(_Question("confirm", far, (far,)), self._me)

    def _on_confirmed(self, far: PeerId, now: float) -> None:
        """Who is next to us beyond that link is not at its place here: of a stranger, that may be as it has just come."""
        if far in self._strangers:
            self._strangers.pop(far)
            self._timers.set(_Timer("confirm", far), now + STRANGE * self._rng.uniform(0.5, 1.0))
        else:
            self._start_merge(far, now)

    def _start_merge(self, far: PeerId, now: float) -> None:
        self._suspect_island(far, now, "a link leads to peers that are not at their places here")
        case = self._cases[far]
        if case.bridged:
            return
        case.bridged, case.witnesses = True, {}
        self._call_witnesses(far)
        merge = Merge(id=self._rng.randbytes(16).hex(), bridge=far)
        self._out.append(SendFrame((far,), merge, urgent=True))
        if self._allowance.take(self._me, now):
            self._counts["merges"] += 1
            self._flood(merge, (far,), now)
            self._seek_place(merge.id)

    def _on_merge(self, sender: PeerId, merge: Merge, now: float) -> None:
        if not self._links.get(sender):
            return
        if merge.bridge == self._me and not merge.path:
            self._confirm(sender, now)
            return
        sound = merge.path[-1:] == (sender,) and self._me not in merge.path and len(merge.path) <= MAX_PATH
        if merge.id in self._floods or merge.bridge == self._me or not sound:
            return
        if not self._allowance.take(self._me, now):
            self._counts["floods_dropped"] += 1
            return
        self._flood(merge, merge.path, now)
        if self._rng.random() * self._size < self._config.seeds:
            self._timers.set(_Timer("seek", merge.id), now + SPREAD * self._rng.random())

    def _flood(self, merge: Merge, without: tuple[PeerId, ...], now: float) -> None:
        """Pass it on, and leave the rest to those at the bridge."""
        self._floods[merge.id] = merge
        if len(self._floods) > REMEMBERED:
            self._floods.popitem(last=False)
        self._quiet_until = now + self._config.quiet
        for peer in self._suspects:
            self._check_later(peer, self._quiet_until)
        others = tuple(peer for peer, speaks in self._links.items() if speaks and peer not in (*without, merge.bridge))
        if others and len(merge.path) < MAX_PATH:
            onward = Merge(id=merge.id, bridge=merge.bridge, path=(*merge.path, self._me))
            self._out.append(SendFrame(others, onward, urgent=True))

    # --- beyond the bridge --------------------------------------------------------------------------------------------

    def _seek_place(self, flood: str) -> None:
        merge = self._floods.get(flood)
        if merge is not None:
            self._counts["seeks"] += 1
            self._ask_beyond(_Question("place", merge.bridge, (merge.bridge, *merge.path)), self._me)

    def _on_routed(self, event: Routed) -> None:
        """Somebody asks who is next to a key, as seen from here but not by the link that the question came over."""
        if not isinstance(event.message, FindBeyond):
            return
        asked = [call.way.packet_id for call in self._calls.values() if isinstance(call, _Errand)]
        if event.way.packet_id in asked or len(asked) >= BEYOND:
            self._counts["not_looked_up"] += 1
            return
        self._look_for(_Errand(event.way), event.message.key, avoid=event.way.path[-1:])

    def _on_beyond(self, question: _Question, found: FoundBeyond, now: float) -> None:
        match question.purpose:
            case "place":
                self._adopt(question, found)
            case "confirm" if self._me in (found.peer, *found.successors, *found.predecessors):
                pass
            case "confirm":
                self._look_for(_Lookup("confirm", found.peer, question.far), found.peer, avoid=(question.far,))
            case "witness":
                case = self._cases.get(question.far)
                if case is not None and found.peer != self._me:
                    case.witnesses[found.peer] = False
            case _:
                assert_never(question.purpose)

    def _adopt(self, question: _Question, found: FoundBeyond) -> None:
        """These are next to us beyond the bridge: the topology dials those that are nearer than whom we have here."""
        said = Neighbours(serial=0, successors=found.successors, predecessors=found.predecessors)
        near = bracket(self._me, found.peer, said, self._ring_list) or [found.peer]
        peers = tuple(peer for peer in near if peer != self._me and peer not in self._links)
        if peers:
            self._counts["adopted"] += len(peers)
            self._tell(Subsystem.SIGNALING, Acquainted(peers, question.path))
            self._tell(Subsystem.TOPOLOGY, PeersFound(peers, "beyond"))

    # --- healed -------------------------------------------------------------------------------------------------------

    def _suspect_island(self, peer: PeerId, now: float, reason: str) -> None:
        if peer in self._cases:
            return
        self._cases[peer] = _Case(now, witnesses={peer: False})
        if len(self._cases) > CASES:
            self._cases.popitem(last=False)
        self._timers.set(_Timer("watch", peer), now + WATCH_EVERY)
        self._out.append(Emit(IslandSuspected(peer, reason)))

    def _call_witnesses(self, far: PeerId) -> None:
        for _ in range(WITNESSES):
            self._ask_beyond(_Question("witness", far, (far,)), PeerId(self._rng.randbytes(20).hex()))

    def _watch(self, far: PeerId, now: float) -> None:
        case = self._cases.get(far)
        if case is None:
            return
        if now > case.since + self._config.suspect_lasts:
            del self._cases[far]
            return
        self._timers.set(_Timer("watch", far), now + WATCH_EVERY)
        if far in self._links and not case.witnesses.keys() - {far}:
            case.witnesses.clear()  # a neighbour is no witness: others from there are
            self._call_witnesses(far)
        elif not case.witnesses:
            case.witnesses[far] = False
        witness = next((peer for peer, found in case.witnesses.items() if not found), None)
        if witness is not None and not case.looking:
            case.looking = True
            self._look_for(_Lookup("witness", witness, far), witness, avoid=(far,) if far in self._links else ())

    def _on_witness(self, call: _Lookup, *, found: bool, now: float) -> None:
        case = None if call.far is None else self._cases.get(call.far)
        if case is None or call.far is None:
            return
        case.looking = False
        if found and call.peer in case.witnesses:
            case.witnesses[call.peer] = True
            if all(case.witnesses.values()):
                self._healed(call.far, now)

    def _is_back(self, peer: PeerId, now: float) -> None:
        """A suspect is at its place on our ring."""
        case = self._cases.get(peer)
        if case is not None and not case.bridged:
            self._healed(peer, now)

    def _healed(self, far: PeerId, now: float) -> None:
        case = self._cases.pop(far)
        self._timers.cancel(_Timer("watch", far))
        self._counts["healed"] += 1
        self._out.append(Emit(IslandHealed(now - case.since, far)))
