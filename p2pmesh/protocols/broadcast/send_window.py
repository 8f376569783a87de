"""The broadcasts on their way over one link: a window of unacknowledged ones, and a backlog of those that wait for it.

Each is on its way as a copy, or as an offer: an announcement that has to be answered, by a graft or an ack.
"""

from __future__ import annotations

from attrs import define

from p2pmesh.config import BroadcastConfig
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.util.rtt import RoundTripTime

STALLED_AFTER = 3
"""Attempts at one broadcast, while no other is acknowledged either: about 2 s, so that `Publish` does not hang on a
neighbour that has died in silence or never answers."""
SLUGGISH_AFTER = 0.5
"""Seconds that acks take longer than the shortest ever seen, because so much is before them."""
SLUGGISH_WITH = 8
"""Unacknowledged broadcasts at least, else it may be a lost frame."""
ANSWER = 0.1
"""Seconds that an ack takes, before one was measured."""


@define(eq=False)
class InFlight:
    """One broadcast on one link, sent and not acknowledged."""

    size: int
    acks_before: int
    """Acks that its link had brought when it was sent."""
    sent_at: float
    offered: bool = False
    attempts: int = 1
    repeated_at: float = 0.0
    was_put_off: bool = False
    """Whether its repetition was, because it is us who lag."""


class SendWindow:
    """One link's window and backlog. A broadcast is in at most one of them."""

    def __init__(self, peer: RemotePeer, config: BroadcastConfig, bit: int = 1) -> None:
        self.peer = peer
        self.bit: int = bit
        """Stands for this link in sets of links that are numbers: a power of two, unlike all other links' of now."""
        self.round_trip: RoundTripTime = RoundTripTime()
        self.is_stalled: bool = False
        """Whether it lets broadcasts lie unacknowledged, all of them."""
        self.behind_since: float | None = None
        """Since when it is so far behind other links that it gets offers only."""
        self.is_given_up: bool = False
        """Whether it is to be closed."""
        self.heard_at: float | None = None
        """When the last ack came; before the first, when the first broadcast was sent."""
        self._acks = 0
        self._config = config
        self._flight: dict[str, InFlight] = {}
        self._flight_bytes = 0
        self._backlog: dict[str, int] = {}
        self._backlog_bytes = 0

    @property
    def flight(self) -> int:
        return len(self._flight)

    @property
    def backlog(self) -> int:
        return len(self._backlog)

    @property
    def is_full(self) -> bool:
        """Whether more wait for its window than should."""
        return len(self._backlog) >= self._config.publish_room or self._backlog_bytes >= self._config.window_bytes

    def is_sluggish(self, now: float) -> bool:
        """Whether its acks take so long that more would only make them take longer."""
        if len(self._flight) < SLUGGISH_WITH:
            return False
        shortest = min(self.round_trip.shortest, SLUGGISH_AFTER)
        return now - next(iter(self._flight.values())).sent_at > SLUGGISH_AFTER + 2 * shortest

    def patience(self) -> float:
        """Seconds that an ack may take because the link is slow or its peer busy, on top of the usual wait for one."""
        return self._flight_bytes / self._config.slowest_link + self.round_trip.expected()

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._flight or message_id in self._backlog

    def ids(self) -> tuple[str, ...]:
        return (*self._flight, *self._backlog)

    def hop(self, message_id: str) -> InFlight | None:
        """The hop of a message, if it is in the window."""
        return self._flight.get(message_id)

    def launch(self, message_id: str, size: int, now: float, *, offered: bool = False) -> bool:
        """Take it into the window, if there is room and nothing waits before it."""
        if self._backlog or not self._has_room(size):
            return False
        self._start(message_id, size, now, offered=offered)
        return True

    def park(self, message_id: str, size: int) -> str | None:
        """Let it wait for the window. Gives the oldest one that waits if that has to go for it."""
        dropped = None
        if len(self._backlog) >= self._config.backlog:
            dropped = next(iter(self._backlog))
            self._backlog_bytes -= self._backlog.pop(dropped)
        self._backlog[message_id] = size
        self._backlog_bytes += size
        return dropped

    def relaunch(self, now: float) -> str | None:
        """Move the oldest that waits into the window, if there is room, and give it: as an offer if the link is behind."""
        if not self._backlog:
            return None
        message_id, size = next(iter(self._backlog.items()))
        if self.behind_since is not None:
            size = 0
        if not self._has_room(size):
            return None
        self.unpark(message_id)
        self._start(message_id, size, now, offered=self.behind_since is not None)
        return message_id

    def unpark(self, message_id: str) -> bool:
        """Take it out of the backlog; False if it is not there."""
        size = self._backlog.pop(message_id, None)
        if size is None:
            return False
        self._backlog_bytes -= size
        return True

    def settle(self, message_id: str) -> None:
        """Done with it, wherever it is."""
        hop = self._flight.pop(message_id, None)
        if hop is None:
            self.unpark(message_id)
        else:
            self._flight_bytes -= hop.size

    def repeat(self, hop: InFlight, now: float) -> int:
        """Count one attempt more, and see whether anything else was acknowledged meanwhile."""
        hop.attempts += 1
        hop.repeated_at = now
        if hop.attempts >= STALLED_AFTER and hop.acks_before == self._acks:
            self.is_stalled = True
        return hop.attempts

    def heard(self, message_id: str, now: float) -> None:
        """An ack for something that is on its way.

        Which attempt an ack is for is only sure if there was but one (Karn), or if it comes sooner after the last than
        any answer could: then it was merely late (as Eifel finds out, RFC 3522), and how late must be learned.
        """
        self.lives(now)
        hop = self._flight.get(message_id)
        if hop is None:
            return
        if hop.attempts == 1 or (hop.attempts == 2 and now - hop.repeated_at < self.round_trip.mean(ANSWER) / 2):
            self.round_trip.sample(now - hop.sent_at)

    def lives(self, now: float) -> None:
        """The neighbour takes part."""
        self._acks += 1
        self.is_stalled = False
        self.heard_at = now

    def _has_room(self, size: int) -> bool:
        if len(self._flight) >= self._config.window:
            return False
        return not self._flight_bytes or self._flight_bytes + size <= self._config.window_bytes

    def _start(self, message_id: str, size: int, now: float, *, offered: bool) -> None:
        if not self._flight:
            self.heard_at = now
        self._flight[message_id] = InFlight(size, self._acks, now, offered)
        self._flight_bytes += size
