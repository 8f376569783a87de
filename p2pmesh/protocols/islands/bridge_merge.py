"""Bridges: links that join two islands, confirmed and made known on both sides, and what is asked across them.

A link is *confirmed* by asking its far end who is next to us there, and looking for that peer on our ring: if it is not at
its place, there are two rings. Then `merge` floods each side, and so many of those who hear it, as *seeds*, ask the far end
who is next to them beyond the bridge, and link to those.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import assert_never

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import SendFrame
from p2pmesh.protocols.inputs import PeersFound, Subsystem
from p2pmesh.protocols.islands.context import CROWD, IslandCall, IslandContext, IslandLookup, IslandTimer, Question
from p2pmesh.protocols.islands.detection import Detection
from p2pmesh.protocols.islands.recovery import CASES, IslandRecovery
from p2pmesh.protocols.notices import MergeStarted, RoutedReceived, RouteFailed, RouteHint, RouteReply, RouteSucceeded
from p2pmesh.protocols.util.lru_table import LruTable
from p2pmesh.protocols.util.rate_limiter import RateLimiter
from p2pmesh.protocols.util.ring_geometry import bracket
from p2pmesh.wire.overlay import FindBeyond, FoundBeyond, Merge, Neighbours, SuccessorFound

MAX_PATH = 24
"""Links that `merge` goes: 10,000 peers with 3 links each are 15 from each other at most."""
TRIED_FOR = 25.0
"""Seconds for which one bridge at a time is tried on an island: an attempt lasts 15 s, and is confirmed in a few more."""
REMEMBERED = 64
"""Floods known by their ids, so that each is passed on once: far more than are let pass in the time that one takes."""
FLOODS, FLOOD_EVERY = 3.0, 4.0
"""Floods that a peer starts or passes on at once, and seconds for another: several bridges may open in the same moment."""
SPREAD = 1.5
"""Seconds over which those who heard of a bridge look for their places beyond it."""
STRANGE = 3.0
"""Seconds until a stranger's island is looked for: two newcomers may meet by a service, and both find their places first."""
BEYOND = 256
"""Questions of others that are being looked up at once."""


class BridgeMerge:
    """What one peer does about links that may join two islands."""

    def __init__(self, side: IslandContext, healing: IslandRecovery, missing: Detection, ring_list: int) -> None:
        self._side = side
        self._healing = healing
        self._missing = missing
        self._ring_list = ring_list
        self._me = side.me
        self._config = side.config
        self._rng = side.rng
        self._strangers = LruTable[None](CASES)
        self.floods: OrderedDict[str, Merge] = OrderedDict()
        self._allowance = RateLimiter(1, 1 / FLOOD_EVERY, FLOODS)

    # --- confirm ------------------------------------------------------------------------------------------------------

    def stranger(self, peer: PeerId, now: float) -> None:
        """It may be another island's. Who misses nobody rather takes it for a newcomer, and looks twice."""
        if self._missing.suspects.missing():
            self._side.timers.set(IslandTimer("confirm", peer), now + CROWD * self._rng.random())
        else:
            self._strangers.put(peer, None)
            self._side.timers.set(IslandTimer("confirm", peer), now + STRANGE * self._rng.uniform(0.7, 1.3))

    def confirm(self, far: PeerId, now: float) -> None:
        """See whether this link joins two islands."""
        if self._side.links.get(far) and now >= self._side.quiet_until:
            self._side.counts["confirms"] += 1
            self._side.ask_beyond(Question("confirm", far, (far,)), self._me)

    def looked(self, call: IslandLookup, *, found: bool, now: float) -> None:
        """Who is next to us beyond a link was looked for on our ring."""
        if not found and call.far in self._side.links and now >= self._side.quiet_until:
            self._on_confirmed(call.far, now)

    def _on_confirmed(self, far: PeerId, now: float) -> None:
        """Who is next to us beyond that link is not at its place here: of a stranger, that may be as it has just come."""
        if far in self._strangers:
            self._strangers.pop(far)
            self._side.timers.set(IslandTimer("confirm", far), now + STRANGE * self._rng.uniform(0.5, 1.0))
        else:
            self._start_merge(far, now)

    # --- merge --------------------------------------------------------------------------------------------------------

    def _start_merge(self, far: PeerId, now: float) -> None:
        if not self._healing.bridged(far, now):
            return
        merge = Merge(id=self._rng.randbytes(16).hex(), bridge=far)
        self._side.do(SendFrame((far,), merge, urgent=True))
        if self._allowance.take(self._me, now):
            self._side.counts["merges"] += 1
            self._flood(merge, (far,), now)
            self.seek_place(merge.id)

    def merge(self, sender: PeerId, merge: Merge, now: float) -> None:
        """A neighbour tells of a bridge; if it is our link to it, see for ourselves."""
        if not self._side.links.get(sender):
            return
        if merge.bridge == self._me and not merge.path:
            self.confirm(sender, now)
            return
        sound = merge.path[-1:] == (sender,) and self._me not in merge.path and len(merge.path) <= MAX_PATH
        if merge.id in self.floods or merge.bridge == self._me or not sound:
            return
        if not self._allowance.take(self._me, now):
            self._side.counts["floods_dropped"] += 1
            return
        self._flood(merge, merge.path, now)
        if not merge.wanted and self._rng.random() * self._side.size < self._config.seeds:
            self._side.timers.set(IslandTimer("seek", merge.id), now + SPREAD * self._rng.random())

    def tell_wanted(self, far: PeerId, now: float) -> None:
        """We try to open a bridge; that will do for this island."""
        if self._allowance.take(self._me, now):
            self._flood(Merge(id=self._rng.randbytes(16).hex(), bridge=far, wanted=True), (), now)

    def _flood(self, merge: Merge, without: tuple[PeerId, ...], now: float) -> None:
        """Pass it on, and leave the rest to those at the bridge."""
        self.floods[merge.id] = merge
        if len(self.floods) > REMEMBERED:
            self.floods.popitem(last=False)
        if merge.wanted:
            self._side.others_try_until = now + TRIED_FOR
        else:
            self._settle(now)
        others = tuple(
            peer for peer, speaks in self._side.links.items() if speaks and peer not in (*without, merge.bridge)
        )
        if others and len(merge.path) < MAX_PATH:
            onward = Merge(id=merge.id, bridge=merge.bridge, path=(*merge.path, self._me), wanted=merge.wanted)
            self._side.do(SendFrame(others, onward, urgent=True))

    def _settle(self, now: float) -> None:
        """A bridge is there: nobody needs another, and the rings become one."""
        self._side.quiet_until = now + self._config.quiet
        self._missing.put_off(self._side.quiet_until)
        self._side.tell(Subsystem.OVERLAY, MergeStarted(now + 2 * self._config.quiet))

    # --- beyond the bridge --------------------------------------------------------------------------------------------

    def seek_place(self, flood: str) -> None:
        """Ask who is next to us beyond the bridge that this flood tells of."""
        merge = self.floods.get(flood)
        if merge is not None:
            self._side.counts["seeks"] += 1
            self._side.ask_beyond(Question("place", merge.bridge, (merge.bridge, *merge.path)), self._me)

    def beyond(self, question: Question, found: FoundBeyond) -> None:
        """The far end has told who is next to a key on its side."""
        match question.purpose:
            case "place":
                self._adopt(question, found)
            case "confirm" if self._me in (found.peer, *found.successors, *found.predecessors):
                pass
            case "confirm":
                self._side.look_for(
                    IslandLookup("confirm", found.peer, question.far), found.peer, avoid=(question.far,)
                )
            case "witness":
                self._healing.named(question.far, found.peer)
            case _:
                assert_never(question.purpose)

    def _adopt(self, question: Question, found: FoundBeyond) -> None:
        """These are next to us beyond the bridge: the overlay dials those that are nearer than whom we have here."""
        said = Neighbours(serial=0, successors=found.successors, predecessors=found.predecessors)
        near = bracket(self._me, found.peer, said, self._ring_list) or [found.peer]
        peers = tuple(peer for peer in near if peer != self._me and peer not in self._side.links)
        if peers:
            self._side.counts["adopted"] += len(peers)
            self._side.tell(Subsystem.SIGNALING, RouteHint(peers, question.path))
            self._side.tell(Subsystem.OVERLAY, PeersFound(peers, "beyond"))

    # --- for those beyond the bridge ----------------------------------------------------------------------------------

    def asked(self, event: RoutedReceived) -> None:
        """Somebody asks who is next to a key, as seen from here but not by the link that the question came over."""
        if not isinstance(event.message, FindBeyond):
            return
        asked = [call.way.packet_id for call in self._side.calls.values() if isinstance(call, IslandCall)]
        if event.way.packet_id in asked or len(asked) >= BEYOND:
            self._side.counts["not_looked_up"] += 1
            return
        self._side.look_for(IslandCall(event.way), event.message.key, avoid=event.way.path[-1:])

    def looked_up(self, errand: IslandCall, event: RouteSucceeded | RouteFailed) -> None:
        """This is what we were asked for."""
        if not isinstance(event, RouteSucceeded) or not isinstance(event.message, SuccessorFound):
            self._side.counts["vain_errands"] += 1
            return
        answer = event.message
        found = FoundBeyond(peer=event.peer, successors=answer.successors, predecessors=answer.predecessors)
        self._side.tell(Subsystem.ROUTING, RouteReply(errand.way, found))
