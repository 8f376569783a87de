"""Admission: which peers are let in when all slots are taken, and which link is given up for that.

In: offers, and promises made to peers that asked. Out: the peer that has to make room, if any.

State: 32 promises, and when 32 peers of the original asked last.
"""

from __future__ import annotations

import math

from msgspec import Struct

from p2pmesh.config import TopologyConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.notices import Offered
from p2pmesh.protocols.overlay.slots import Slots, State
from p2pmesh.protocols.util.limits import LruTable
from p2pmesh.wire.messages import BRIDGE, PINNED

PROMISED = 15.0
"""Seconds for which a promise holds: as long as an attempt at a link."""
CALLS = frozenset({BRIDGE, PINNED})
"""Purposes for which a full peer gives up a long link. One that lies about that gets a link that goes before others."""
SETTLED_LINKS = 2
"""Links of a peer that is no newcomer: those next to us on the ring now are next to it then, or soon will be."""
FOUND_A_PLACE = 60.0
"""Seconds for which a peer that had no link keeps the one that it got, whoever comes next and has none."""
MOST_PROMISES = 32
"""Kept at once: more than are made in that time. As many peers of the original are remembered that have asked."""
ASKS_AGAIN = 9.0
"""Seconds between two offers of a peer of the original that lacks links: turned down, it asks others at once, and goes
round those that it knows every 2.5 s while it has no link, every 10 s then."""


def purpose_of(offer: Offered) -> str | None:
    """What the maker of this offer wants the link for, if it says so and has proved its id."""
    return offer.purpose if offer.peer.verified else None


class _Promise(Struct, frozen=True):
    until: float
    leaf: bool


class Admission:
    """Which peers are let in by one peer."""

    def __init__(self, me: PeerId, max_peers: int, slots: Slots, config: TopologyConfig) -> None:
        self._me = me
        self._most_callers = max(1, (max_peers - 2) // 2)
        self._slots = slots
        self._config = config
        self._promises = LruTable[_Promise](MOST_PROMISES)
        self._asked = LruTable[float](MOST_PROMISES)
        self._let_in_at = -math.inf
        self._called_at = -math.inf

    def promise(self, peer: PeerId, now: float, *, leaf: bool) -> None:
        """Its offer will be let in."""
        self._promises.put(peer, _Promise(now + PROMISED, leaf))

    def is_leaf(self, peer: PeerId) -> bool:
        """Whether it said that it is one, when it asked to be let in."""
        promise = self._promises.get(peer)
        return promise is not None and promise.leaf

    def _links_of_original(self, peer: PeerId, now: float) -> int | None:
        """It does not say how many it has, but that it asks again and again tells that it has none, or hardly any.

        To others each of us gives up one long link at most.
        """
        before = self._asked.get(peer)
        self._asked.put(peer, now)
        is_urgent = before is not None and now - before < ASKS_AGAIN
        return 0 if is_urgent or not self._slots.guests() else None

    def loser_to(self, offer: Offered, now: float, *, leaf: bool) -> PeerId | None:
        """Which peer has to make room for this offer, if any.

        A peer that is nearer on the ring than those we have is let in always; one that was promised a link, for a
        settled long link; one that calls for it, as a bridge or for its application, likewise; one without any link
        too, but rarely.
        """
        peer = offer.peer.peer_id
        links = self._links_of_original(peer, now) if offer.peer.version == 0 else offer.links
        ring = self._slots.ring_at_hand(now) if leaf else self._slots.ring_at_hand(now, peer)
        if peer in ring:  # and finds its other neighbour through us, as long as we keep the link to that
            newcomer = links is not None and links < SETTLED_LINKS and now > self._slots.merging_until
            return next(iter(self._slots.expendable(now, ring, uncertain=newcomer)), None)
        dials = [other for other in self._slots.expendable(now, ring) if self._slots.state(other) is State.DIALING]
        promise = self._promises.pop(peer)
        promised = promise is not None and promise.until > now
        # An offer in hand is worth two dials; by id, lest all give way.
        if dials and (promised or links == 0 or peer < self._me):
            return dials[0]
        settled = now - self._config.min_link_age
        if promised:
            return next(iter(self._slots.far(now, settled)), None)
        if purpose_of(offer) in CALLS:
            return self._loser_to_caller(now)
        if links != 0 or self._let_in_at > settled:
            return None
        # In a mesh that has just come up no link is settled, and one of the original's waits no 10 s for its only one.
        young = now if offer.peer.version == 0 else settled
        losers = [
            other
            for other in self._slots.expendable(now, ring)
            if (slot := self._slots[other]).state is State.OPEN
            and slot.since <= (settled if slot.leaf else young)
            and not (slot.had_none and not slot.leaf and slot.since > now - FOUND_A_PLACE)
        ]
        if losers:
            self._let_in_at = now
        return next(iter(losers), None)

    def _loser_to_caller(self, now: float) -> PeerId | None:
        """A settled long link, but rarely; and once callers have half of them, only that of another caller."""
        settled = now - self._config.min_link_age
        if self._called_at > settled:
            return None
        callers = [peer for peer, slot in self._slots.items() if slot.called is not None]
        far = self._slots.far(now, settled)
        enough = len(callers) >= self._most_callers
        losers = [peer for peer in far if (peer in callers) == enough]
        if losers:
            self._called_at = now
        return next(iter(losers), None)
