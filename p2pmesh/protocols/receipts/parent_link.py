"""Upstream: whom a peer tells how many have a broadcast of somebody else's, and what becomes of that when it can't.

The *parent* is told, who gave us the broadcast. It stays the parent when the link to it ends, and is told by a route instead.
What was told and not noted then is in doubt, and is told again as it was, nothing more, until it is noted. Where no route
finds the parent, what comes later goes to the origin from then on, by a route; what is in doubt, the *debt*, goes on being
told to the parent now and then, for it may be beyond a partition. If it is dead, or has restarted and forgotten (its epoch
tells), that is lost, and what it had not yet passed on.
"""

from __future__ import annotations

from p2pmesh.config import ReceiptsConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.receipts.outbox import Outbox
from p2pmesh.protocols.receipts.tally import CountDue, Relayed, TallyTimer
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import GossipReceipts


class ParentLink:
    """What one peer tells of the broadcasts that it passes on, `relayed`."""

    def __init__(
        self, config: ReceiptsConfig, post: Outbox, relayed: dict[str, Relayed], timers: Timers[TallyTimer]
    ) -> None:
        self.most: int = config.most
        """As many peers as are told of."""
        self.lost: int = 0
        """Parents, since the start."""
        self.is_leaving: bool = False
        self._config = config
        self._post = post
        self._relayed = relayed
        self._timers = timers

    def consider(self, relayed: Relayed, now: float) -> None:
        """Tell upstream at once what is settled, and now and then what is not; one thing after the other."""
        interim = (CountDue.INTERIM, relayed.message_id)
        state = relayed.state(self.most)
        if not relayed.is_noted or state == relayed.sent or not state[0]:
            return
        held = state[0] - (relayed.sent[0] if relayed.sent else 0)
        if relayed.is_settled or self.is_leaving or held >= self._config.handful:
            self._timers.cancel(interim)
            self._post.tell(relayed.upstream, relayed.message_id, relayed.epoch, now)
        elif interim not in self._timers:
            self._timers.set(interim, now + self._config.interim)

    # --- what upstream says of it -------------------------------------------------------------------------------------

    def answered(self, peer: PeerId, message: GossipReceipts, now: float) -> None:
        """This peer has noted what we told it, but for what is unknown to it: there it is no parent any more."""
        for message_id in self._post.noted(peer, message.noted, now):
            relayed = self._relayed.get(message_id)
            if relayed is not None and relayed.debt is not None and relayed.debt.peer == peer:
                self.pay(relayed)
            if relayed is None or relayed.upstream != peer:
                continue
            relayed.is_noted = True
            if message_id in message.unknown:
                self._lose_parent(relayed, now)
            else:
                self.consider(relayed, now)

    def introduced(self, peer: PeerId, epoch: int, now: float) -> None:
        """Whether this neighbour is the process that it was."""
        for relayed in self._relayed.values():
            if relayed.debt is not None and relayed.debt.peer == peer and relayed.debt.epoch != epoch:
                self.pay(relayed)
            if relayed.upstream == peer and relayed.upstream != relayed.origin:
                if relayed.epoch is None:
                    relayed.epoch = epoch
                elif relayed.epoch != epoch:
                    self._lose_parent(relayed, now)
        self._post.introduced(peer, epoch)

    # --- the parent is lost -------------------------------------------------------------------------------------------

    def link_down(self, peer: PeerId, now: float, *, is_silent: bool) -> None:
        """A parent that went is told by a route, if it may be alive."""
        for relayed in self._relayed.values():
            if relayed.upstream == peer and (relayed.epoch is None or (is_silent and relayed.is_noted)):
                self._lose_parent(relayed, now)

    def unrouted(self, call: int, now: float) -> None:
        """A peer can't be reached. As a parent it is lost; as an origin it is tried again."""
        peer = self._post.unrouted(call, now)
        if peer is None or self._post.has_link(peer):
            return
        for relayed in self._relayed.values():
            if relayed.upstream == peer:
                self._lose_parent(relayed, now, keep_debt=True)

    def _lose_parent(self, relayed: Relayed, now: float, *, keep_debt: bool = False) -> None:
        """The parent can't be told any more; with `keep_debt`, it may be back one day."""
        if not relayed.has_lost_parent_for:
            return
        self.lost += 1
        parent = relayed.upstream
        relayed.turn_to_origin(keep_debt=keep_debt)
        if relayed.debt is None:
            self._post.forget(parent, relayed.message_id)
        self.consider(relayed, now)

    def pay(self, relayed: Relayed) -> None:
        """What was in doubt is noted, or whom it was told is no more."""
        if relayed.debt is not None:
            self._post.forget(relayed.debt.peer, relayed.message_id)
            relayed.debt = None
