"""What is true of full meshes at every instant, watched as it happens: the cap on links, and at most once.

What happens goes into a `Trace`, one line per event, that a failure prints and whose hash tells two runs apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import trio

from p2pmesh.events import (
    Event,
    MessageDelivered,
    MessageFailed,
    MessageReceived,
    PeerConnected,
    PeerDisconnected,
    TransportDown,
    TransportUp,
)
from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh
from p2pmesh.simulation.full.network import SimDialer
from p2pmesh.simulation.model.bounds import LOOK_EVERY, bounds_of
from p2pmesh.simulation.model.reachability import Reachability
from p2pmesh.simulation.model.trace import Mark, Trace
from p2pmesh.simulation.model.violations import Violation

LOOK_AT = 4
"""Peers whose snapshots are checked at once, in turn: each costs as much as an idle peer's pings in a second."""
MOST_VIOLATIONS = 100
"""Violations that are kept: as many make the point."""


class LiveInvariants:
    """Hears of everything. What must not happen is in `violations`, whatever happens in `trace`."""

    def __init__(self, reachability: Reachability) -> None:
        self.trace: Trace = Trace([])
        self.violations: list[Violation] = []
        self._holders: dict[str, dict[int, float]] = {}
        self._origins: dict[str, int] = {}
        self.listeners: list[Callable[[int, Event], None]] = []
        self._reachability = reachability
        self._caps: dict[SimDialer, int] = {}
        self._open = Counter[SimDialer]()

    def violate(self, invariant: str, what: str) -> None:
        """Note that something happened that must not."""
        if len(self.violations) < MOST_VIOLATIONS:
            self.violations.append(Violation(trio.current_time(), invariant, what))

    def mark(self, kind: Mark, a: int = -1, b: int = -1, detail: str | float = 0) -> None:
        """Note an event in the trace."""
        number = self.trace.note(detail) if isinstance(detail, str) else detail
        self.trace.log((trio.current_time(), kind, a, b, number))
        self.trace.roll()

    async def look(self, peers: Callable[[], list[tuple[int, Mesh]]]) -> None:
        """Check now and then, for some peers in turn, that every structure is within the bound that its config sets."""
        turn = 0
        while True:
            await trio.sleep(LOOK_EVERY)
            there = peers()
            for offset in range(min(LOOK_AT, len(there))):
                self.check_bounds(*there[(turn + offset) % len(there)])
            turn += LOOK_AT

    def check_bounds(self, number: int, mesh: Mesh) -> None:
        """Check that no structure of this peer is beyond its bound."""
        snapshot = mesh.snapshot()
        for name, value, bound in bounds_of(snapshot["subsystems"], mesh._node.config):
            if value > bound:
                self.violate("bounds", f"n{number}: {name} is {value:g}, {bound:g} is allowed")
        taken = len(snapshot["links"]["attempting"]) + len(snapshot["links"]["open"])
        if taken > snapshot["max_peers"]:
            self.violate("link cap", f"n{number} has {taken} links and attempts, {snapshot['max_peers']} are allowed")

    # --- links --------------------------------------------------------------------------------------------------------

    def expect(self, dialer: SimDialer, cap: int) -> None:
        """A peer comes, with the most links that it may have."""
        self._caps[dialer] = cap

    def link_opened(self, owner: SimDialer, peer: PeerId) -> None:
        self._open[owner] += 1
        cap = self._caps.get(owner)
        if cap is not None and self._open[owner] > cap:
            self.violate("link cap", f"{self._name(owner.peer_id)} holds {self._open[owner]} links, {cap} are allowed")

    def link_closed(self, owner: SimDialer, peer: PeerId) -> None:
        self._open[owner] -= 1

    def gone(self, dialer: SimDialer) -> None:
        """A peer has left: nothing of it may be there any more."""
        self._caps.pop(dialer, None)
        attempts, carriers = dialer.network.owned_by(dialer)
        if attempts or carriers:
            self.violate(
                "nothing left",
                f"{self._name(dialer.peer_id)} left {len(carriers)} links and {len(attempts)} attempts behind",
            )
        del self._open[dialer]

    # --- what peers tell their applications ---------------------------------------------------------------------------

    def heard(self, number: int, event: Event) -> None:
        """A peer tells its application something."""
        for listener in self.listeners:
            listener(number, event)
        match event:
            case MessageReceived():
                self._delivered(number, event)
            case PeerConnected():
                self.mark(Mark.LINK_UP, number, self._reachability.number(event.peer_id))
            case PeerDisconnected():
                self.mark(Mark.LINK_DOWN, number, self._reachability.number(event.peer_id), event.reason)
            case MessageDelivered() | MessageFailed():
                self.mark(Mark.SETTLE, number, -1, event.reached)
            case TransportUp():
                self.mark(Mark.SERVICE, number, -1, "up")
            case TransportDown():
                self.mark(Mark.SERVICE, number, -1, event.reason)
            case _:
                pass

    def got(self, message_id: str) -> Mapping[int, float]:
        """The numbers of the peers whose application got this broadcast, and when."""
        return self._holders.get(message_id, {})

    def origin(self, message_id: str) -> int | None:
        """The number of the peer that sent this broadcast; None if no application has it yet."""
        return self._origins.get(message_id)

    def _delivered(self, number: int, event: MessageReceived) -> None:
        self.mark(Mark.DELIVER, number, self._reachability.number(event.origin), event.hops)
        holders = self._holders.setdefault(event.message_id, {})
        self._origins.setdefault(event.message_id, self._reachability.number(event.origin))
        if number in holders:
            self.violate("at most once", f"n{number} got message {event.message_id} a second time")
        holders[number] = trio.current_time()

    def _name(self, peer: PeerId) -> str:
        return f"n{self._reachability.number(peer)}"
