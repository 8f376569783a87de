"""Pins: links that the application wants to certain peers. Room is made for them, and they are not given up for others.

Who is full is asked again for a while; a peer of the original is given time to make the offer that it wants to make itself.
"""

from __future__ import annotations

from p2pmesh.errors import MeshClosed, PeerUnreachable
from p2pmesh.keyspace import PeerId, short
from p2pmesh.protocols.overlay.link_manager import LinkManager
from p2pmesh.protocols.overlay.passive_view import VOUCHED
from p2pmesh.protocols.overlay.slots import State

ROOM_COMES = 4.0
"""Seconds until a peer that was full is asked again."""
OFFER_COMES = 2.0
"""Seconds given to a peer of the original to make its offer; it takes 0.2 to 0.5 s."""


class PinnedLinks:
    """The pinned links of one peer, and what is done for those that are still to come."""

    def __init__(self, me: PeerId, held: LinkManager) -> None:
        self._me = me
        self._held = held
        self._slots, self._connects = held.slots, held.connects

    def connect(self, call: int, peer: PeerId, now: float) -> None:
        """The application wants a link to this peer."""
        if self._held.leaving:
            self._connects.reply(call, MeshClosed("the mesh is being left"))
            return
        if peer == self._me:
            self._connects.reply(call, PeerUnreachable("a peer has no link to itself"))
            return
        slot = self._slots.get(peer)
        if slot is not None and slot.state is State.OPEN:
            slot.pinned = True
            self._connects.reply(call)
            return
        self._connects.wait(call, peer, now)
        self._held.known.learn((peer,), vouched=now + VOUCHED)
        self._try(peer, now)

    def go_on(self, peer: PeerId, now: float) -> None:
        """A peer that the application wants was full, or has not made its offer."""
        if peer in self._slots.held():
            return
        if self._connects.may_go_on(peer, now):
            self._try(peer, now)
        else:
            self._connects.fail(peer, PeerUnreachable(f"no link to {short(peer)}: it does not let us in"))

    def forget(self, call: int) -> None:
        """Nobody waits for this call any more."""
        peer = self._connects.cancel(call)
        slot = None if peer is None else self._slots.get(peer)
        if slot is not None:
            slot.pinned = False

    def loser_to(self, peer: PeerId, now: float) -> PeerId | None:
        """Who is given up for it. The application may have a link of the ring for its own, if there is no other."""
        ring = self._slots.ring(peer)
        return next(iter((*self._slots.expendable(now, ring), *self._slots.expendable(now, ()))), None)

    def _try(self, peer: PeerId, now: float) -> None:
        slot = self._slots.get(peer)
        if slot is not None and slot.state is not State.CLOSING:
            slot.pinned = True
        elif slot is None and peer in self._slots.held():
            return  # it gets a slot as soon as one is closed
        elif not self._held.can_dial():
            self._connects.fail(peer, PeerUnreachable(f"no link to {short(peer)}: no signaling service is up"))
        elif self._held.has_to_offer(peer):
            self._connects.hold(peer, now + OFFER_COMES)
            self._held.ask(peer)
        elif slot is not None and slot.next_occupant is None:
            slot.next_occupant = peer
        elif self._slots.free() > 0 and slot is None:
            self._held.dial(peer, now)
        else:
            self._make_room(peer, now)

    def _make_room(self, peer: PeerId, now: float) -> None:
        loser = self.loser_to(peer, now)
        if loser is None or peer in self._slots:
            self._connects.fail(peer, PeerUnreachable(f"no link to {short(peer)}: none of ours can be given up"))
        else:
            self._held.give_way(loser, peer, now)
