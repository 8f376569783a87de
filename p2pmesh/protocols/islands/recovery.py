"""Islands that we know of, until they are healed: peers from there are at their places on our ring.

Those peers are the *witnesses* of a case, three of them, named by the far end of the bridge: the peers next to
keys that we draw. Where the bridge is not ours, the one witness is the peer that was missing. Each is looked for by a
way that avoids the bridge. Every `IslandSuspected` is followed by one `IslandHealed`, unless that takes longer than
`suspect_lasts`.

In: peers that seem to be on another island, and what came of the look-ups. Out: whether that is news, which witness to
look for next, and how long an island that is healed was known. State: at most `MAX_CASES` islands, with some peers of
each.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping

from attrs import define, field
from msgspec import Struct

from p2pmesh.config import IslandsConfig
from p2pmesh.keyspace import PeerId

MAX_CASES = 8
"""Islands that are healed at once here; of more, the one that has been known longest is forgotten."""
WITNESSES = 3
"""Peers that must be found: one could be at its place by chance, and each costs a look-up."""
WATCH_EVERY = 2.0
"""Seconds between two look-ups for one island: rings merge within seconds, and a look-up takes one."""


@define
class _Case:
    """An island that we know of."""

    since: float
    bridged: bool = False
    """Whether our link leads there."""
    witnesses: dict[PeerId, bool] = field(factory=dict)
    """Peers from there, and whether each was found at its place on our side."""
    looking: bool = False
    """Whether a look-up is under way."""


class Watch(Struct, frozen=True):
    """What is to be done about an island now."""

    ask_witnesses: bool = False
    """Ask the far end of the bridge for witnesses."""
    look_for: PeerId | None = None
    """A witness to look for."""


class IslandRecovery:
    """The islands that one peer knows of, each by a peer from there: the far end of a bridge, or a missing peer."""

    def __init__(self, me: PeerId, config: IslandsConfig, links: Mapping[PeerId, bool], rng: random.Random) -> None:
        self._me = me
        self._lasts = config.suspect_lasts
        self._links = links
        self._rng = rng
        self._cases: OrderedDict[PeerId, _Case] = OrderedDict()
        self._healed = 0

    def snapshot(self) -> dict[str, int]:
        return {"healing": len(self._cases), "healed": self._healed}

    def suspect(self, peer: PeerId, now: float) -> bool:
        """Take this peer for one from another island. Returns whether that is news."""
        if peer in self._cases:
            return False
        self._cases[peer] = _Case(now, witnesses={peer: False})
        if len(self._cases) > MAX_CASES:
            self._cases.popitem(last=False)
        return True

    def bridge(self, far: PeerId) -> bool:
        """A link of ours leads to the island of `far`, which is suspected. Returns whether that is news."""
        case = self._cases[far]
        if case.bridged:
            return False
        case.bridged, case.witnesses = True, {}
        return True

    def draw_keys(self) -> list[PeerId]:
        """Places on the ring whose peers, beyond the bridge, shall be the witnesses."""
        return [PeerId(self._rng.randbytes(20).hex()) for _ in range(WITNESSES)]

    def watch(self, far: PeerId, now: float) -> Watch | None:
        """What to do about this island; None if it is no longer watched."""
        case = self._cases.get(far)
        if case is None:
            return None
        if now > case.since + self._lasts:
            del self._cases[far]
            return None
        if far in self._links and not case.witnesses.keys() - {far}:
            case.witnesses.clear()  # a neighbour is no witness: others from there are
            return Watch(ask_witnesses=True)
        if not case.witnesses:
            case.witnesses[far] = False
        witness = next((peer for peer, found in case.witnesses.items() if not found), None)
        if case.looking or witness is None:
            return Watch()
        case.looking = True
        return Watch(look_for=witness)

    def add_witness(self, far: PeerId, witness: PeerId) -> None:
        """The far end has named a peer from there."""
        case = self._cases.get(far)
        if case is not None and witness != self._me:
            case.witnesses[witness] = False

    def looked(self, far: PeerId, witness: PeerId, *, found: bool, now: float) -> float | None:
        """The look-up of a witness has ended. Returns for how long the island was known, if that was the last one."""
        case = self._cases.get(far)
        if case is None:
            return None
        case.looking = False
        if not found or witness not in case.witnesses:
            return None
        case.witnesses[witness] = True
        return self._heal(far, now) if all(case.witnesses.values()) else None

    def came_back(self, peer: PeerId, now: float) -> float | None:
        """A missing peer is at its place on our ring. Returns for how long its island was known, if there was one."""
        case = self._cases.get(peer)
        return None if case is None or case.bridged else self._heal(peer, now)

    def _heal(self, far: PeerId, now: float) -> float:
        self._healed += 1
        return now - self._cases.pop(far).since
