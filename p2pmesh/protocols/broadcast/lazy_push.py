"""Announcements of broadcasts to neighbours that the trees send no copies to: `gossip_ihave`, several ids in a frame.

They wait for company for `announce_delay`, jittered: who is announced to has the broadcast from its parent by then, nearly
always. Of two neighbours the slower one then knows that the other has it, and says nothing. While links fail, somebody may be
waiting to hear of it, so they wait for half a round-trip only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from p2pmesh.config import BroadcastConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.broadcast.message_store import MessageStore, StoredMessage
from p2pmesh.protocols.broadcast.send_window import SendWindow
from p2pmesh.protocols.broadcast.trees import FailurePressure
from p2pmesh.protocols.effects import Effect, SendFrame
from p2pmesh.wire.fields import MAX_IDS_IN_LIST
from p2pmesh.wire.messages import GossipIHave

UNKNOWN_TRIP = 0.2
"""Seconds that a round-trip is taken for before one was measured: the far end of a continent and back."""

UNRESTFUL = 0.25
"""Unrest above which announcements hurry: a link was lost within the last 14 s, say."""


class LazyPush:
    """What is to be announced to each neighbour."""

    def __init__(
        self,
        config: BroadcastConfig,
        rng: random.Random,
        history: MessageStore,
        unrest: FailurePressure,
        do: Callable[[Effect], None],
    ) -> None:
        self.sent: int = 0
        """Ids announced."""
        self.due: float = math.inf
        """When `flush` wants to be called."""
        self._config = config
        self._rng = rng
        self._history = history
        self._unrest = unrest
        self._do = do
        self._waiting: dict[PeerId, list[str]] = {}

    def add(self, kept: StoredMessage, links: Sequence[SendWindow], now: float) -> None:
        """Announce it to these neighbours, soon."""
        if not self._waiting:
            delay = self._config.announce_delay
            if self._unrest.level(now) >= UNRESTFUL:
                delay = min(delay, max(link.round_trip.mean(UNKNOWN_TRIP) for link in links) / 2)
            self.due = now + delay * self._rng.uniform(0.5, 1.0)
        for link in links:
            ids = self._waiting.setdefault(link.peer.peer_id, [])
            ids.append(kept.data.id)
            if len(ids) >= MAX_IDS_IN_LIST:
                self.due = now

    def down(self, peer: PeerId) -> None:
        """The link has ended."""
        self._waiting.pop(peer, None)
        if not self._waiting:
            self.due = math.inf

    def flush(self, now: float) -> None:
        """Send what waits, if it is due, to those who are not known to have it by now."""
        if self.due > now:
            return
        waiting, self._waiting, self.due = self._waiting, {}, math.inf
        alike: dict[tuple[str, ...], list[PeerId]] = {}
        for peer, ids in waiting.items():
            lacked = tuple([message_id for message_id in ids if self._lacks(peer, message_id)])
            if lacked:
                alike.setdefault(lacked, []).append(peer)
        for lacked, peers in alike.items():
            for start in range(0, len(lacked), MAX_IDS_IN_LIST):
                self._send(tuple(peers), [self._history[one] for one in lacked[start : start + MAX_IDS_IN_LIST]])

    def _lacks(self, peer: PeerId, message_id: str) -> bool:
        kept = self._history.get(message_id)
        return kept is not None and not kept.is_held_by(peer)

    def _send(self, peers: tuple[PeerId, ...], some: list[StoredMessage]) -> None:
        self.sent += len(peers) * len(some)
        ids, hops = tuple([kept.data.id for kept in some]), tuple([kept.hops for kept in some])
        heard = GossipIHave(ids=ids, hops=hops, size=max(kept.size for kept in some))
        self._do(SendFrame(peers, heard, urgent=True, patient=True))
