"""Islands that we know of, until they are healed: peers from there are at their places, by a way that avoids the bridge.

Those are the *witnesses*, three of them. The far end of the bridge names them: who is next to keys that we draw. Where the
bridge is not ours, the one witness is the peer that was missing. Each `IslandSuspected` is followed by one `IslandHealed`, unless
that takes too long.
"""

from __future__ import annotations

from collections import OrderedDict

from attrs import define, field

from p2pmesh.events import IslandHealed, IslandSuspected
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Emit
from p2pmesh.protocols.islands.context import IslandContext, IslandLookup, IslandTimer, Question

CASES = 8
"""Islands that are healed at once here."""
WITNESSES = 3
WATCH_EVERY = 2.0


@define
class _Case:
    """An island that we know of."""

    since: float
    bridged: bool = False
    """Whether our link leads there."""
    witnesses: dict[PeerId, bool] = field(factory=dict)
    """Peers from there, and whether each was found at its place on our side."""
    looking: bool = False


class IslandRecovery:
    """The islands that one peer knows of."""

    def __init__(self, side: IslandContext) -> None:
        self._side = side
        self._me = side.me
        self._config = side.config
        self._rng = side.rng
        self._cases: OrderedDict[PeerId, _Case] = OrderedDict()

    def __len__(self) -> int:
        return len(self._cases)

    def suspect(self, peer: PeerId, now: float, reason: str) -> None:
        """This peer seems to be on another island."""
        if peer in self._cases:
            return
        self._cases[peer] = _Case(now, witnesses={peer: False})
        if len(self._cases) > CASES:
            self._cases.popitem(last=False)
        self._side.timers.set(IslandTimer("watch", peer), now + WATCH_EVERY)
        self._side.do(Emit(IslandSuspected(peer, reason)))

    def bridged(self, far: PeerId, now: float) -> bool:
        """A link leads to an island. Whether that is news."""
        self.suspect(far, now, "a link leads to peers that are not at their places here")
        case = self._cases[far]
        if case.bridged:
            return False
        case.bridged, case.witnesses = True, {}
        self._call_witnesses(far)
        return True

    def is_back(self, peer: PeerId, now: float) -> None:
        """A suspect is at its place on our ring."""
        case = self._cases.get(peer)
        if case is not None and not case.bridged:
            self._healed(peer, now)

    def watch(self, far: PeerId, now: float) -> None:
        """Look for the next witness, or give up."""
        case = self._cases.get(far)
        if case is None:
            return
        if now > case.since + self._config.suspect_lasts:
            del self._cases[far]
            return
        self._side.timers.set(IslandTimer("watch", far), now + WATCH_EVERY)
        if far in self._side.links and not case.witnesses.keys() - {far}:
            case.witnesses.clear()  # a neighbour is no witness: others from there are
            self._call_witnesses(far)
        elif not case.witnesses:
            case.witnesses[far] = False
        witness = next((peer for peer, found in case.witnesses.items() if not found), None)
        if witness is not None and not case.looking:
            case.looking = True
            self._side.look_for(
                IslandLookup("witness", witness, far), witness, avoid=(far,) if far in self._side.links else ()
            )

    def _call_witnesses(self, far: PeerId) -> None:
        for _ in range(WITNESSES):
            self._side.ask_beyond(Question("witness", far, (far,)), PeerId(self._rng.randbytes(20).hex()))

    def named(self, far: PeerId, witness: PeerId) -> None:
        """The far end has told of a peer from there."""
        case = self._cases.get(far)
        if case is not None and witness != self._me:
            case.witnesses[witness] = False

    def looked(self, call: IslandLookup, *, found: bool, now: float) -> None:
        """A witness was looked for."""
        case = None if call.far is None else self._cases.get(call.far)
        if case is None or call.far is None:
            return
        case.looking = False
        if found and call.peer in case.witnesses:
            case.witnesses[call.peer] = True
            if all(case.witnesses.values()):
                self._healed(call.far, now)

    def _healed(self, far: PeerId, now: float) -> None:
        case = self._cases.pop(far)
        self._side.timers.cancel(IslandTimer("watch", far))
        self._side.counts["healed"] += 1
        self._side.do(Emit(IslandHealed(now - case.since, far)))
