"""Peers that are missing on our ring: suspected, looked for, asked of the signaling services, and then linked to.

A *suspect* fell silent, or was named by a service: it is looked for at its place on the ring, soon. Who is not there is
*missing*. For one of those after the other the services are asked, by a *probe*, and to those that answer a bridge is
wanted. On the other side, who was probed looks for the asker in the same way, and makes room for it.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.islands.context import CROWD, IslandContext, IslandLookup, IslandTimer
from p2pmesh.protocols.islands.recovery import CASES, IslandRecovery
from p2pmesh.protocols.islands.suspects import Suspect, Suspects
from p2pmesh.protocols.notices import FindPeers, OpenBridge, PingViaService, ServicePeers, ServicePong, Welcome
from p2pmesh.protocols.util.rate_limiter import RateLimiter

GREETING = 1.5
"""Seconds that a probed peer has to look for who asked, and to make room for it."""
BRIDGE_WANTED = 25.0
"""Seconds within which a link counts as the bridge that was wanted."""
MOST_VAIN = 3
"""Doublings of the least time between two probes of one peer while no bridge opens: to 40 s, in an island of a few."""
SHRUNK = 0.7
"""A mesh that has fewer of its peers left than this has lost more than the usual."""
SHRUNK_FOR = 120.0


class Detection:
    """Whom one peer misses, and what it does to find them."""

    def __init__(self, side: IslandContext, healing: IslandRecovery) -> None:
        self._side = side
        self._healing = healing
        self._me = side.me
        self._config = side.config
        self._rng = side.rng
        self.suspects: Suspects = Suspects(self._config.suspects, self._config.suspect_lasts)
        self._named: dict[str, tuple[PeerId, ...]] = {}
        """Whom each service named last."""
        self._wanted: OrderedDict[PeerId, float] = OrderedDict()
        """Those to which a bridge was wanted, and when."""
        self._vain = 0
        """Bridges in a row that did not open."""
        self._shrunk_until = -1.0
        self._greetings = RateLimiter(1, 1 / 10.0, 3.0)

    # --- links --------------------------------------------------------------------------------------------------------

    def link_up(self, peer: PeerId, now: float) -> None:
        """It is not missing any more; the link may be a bridge."""
        suspect = self.suspects.drop(peer)
        wanted = self._wanted.pop(peer, -BRIDGE_WANTED) > now - BRIDGE_WANTED
        if wanted:
            self._vain = 0
        if wanted or (suspect is not None and suspect.missing):
            # Several links may open in the same moment: the first to have looked is enough.
            self._side.timers.set(IslandTimer("confirm", peer), now + (0.0 if wanted else CROWD * self._rng.random()))

    def link_down(self, peer: PeerId) -> None:
        """A bridge that opens later is another."""
        self._wanted.pop(peer, None)

    # --- suspects -----------------------------------------------------------------------------------------------------

    def vanished(self, peer: PeerId, now: float, *, named: bool = False) -> None:
        """Its link broke without a word, or a service names it: perhaps it is not on our ring."""
        oldest = self.suspects.add(peer, now, named=named)
        if oldest is not None:
            self._side.timers.cancel(IslandTimer("check", oldest))
        self._check_later(peer, now + self._config.patience)

    def named(self, event: ServicePeers, now: float) -> None:
        """Peers of two services may be two meshes; and one that has been away may have come back to another."""
        again = event.transport in self._named
        self._named[event.transport] = event.peers
        for transport in self._named if len(self._named) > 1 else (event.transport,) if again else ():
            peer = self._rng.choice(self._named[transport])
            if peer not in self._side.links and peer not in self.suspects:
                self.vanished(peer, now, named=True)

    def _check_later(self, peer: PeerId, at: float) -> None:
        self._side.timers.set(IslandTimer("check", peer), at + self._config.patience * self._rng.uniform(0.0, 0.5))

    def put_off(self, until: float) -> None:
        """Look for all suspects again, afterwards."""
        for peer in self.suspects:
            self._check_later(peer, until)

    def check(self, peer: PeerId) -> None:
        """Look for a suspect, if it is still one."""
        if peer in self.suspects:
            self._side.look_for(IslandLookup("check", peer), peer)

    def looked(self, call: IslandLookup, *, found: bool, now: float) -> None:
        """A suspect was looked for, as one, or before the services are asked."""
        suspect = self.suspects.get(call.peer)
        if suspect is not None and not found:
            self._is_missing(call, suspect, now)
            return
        self.suspects.drop(call.peer)
        if found:
            self._healing.is_back(call.peer, now)
        if call.purpose == "probe":  # it is back, and so may be the others
            self._side.timers.set(IslandTimer("ask"), now + CROWD * self._rng.random())

    def _is_missing(self, call: IslandLookup, suspect: Suspect, now: float) -> None:
        suspect.missing = True
        if call.purpose == "probe":
            self._side.counts["probes"] += 1
            suspect.asked_at = now
            self._side.timers.set(IslandTimer("probed", call.peer), now + self._config.probe_timeout)
            self._side.tell(Subsystem.SIGNALING, PingViaService(call.peer))
        if suspect.named:
            suspect.named = False
            self._side.timers.set(IslandTimer("ask"), max(now, self._side.quiet_until) + CROWD * self._rng.random())
        else:
            self._ask_later(now)

    # --- the services are asked ---------------------------------------------------------------------------------------

    def _ask_later(self, now: float) -> None:
        """See when the services are asked next: an island of any size asks as often."""
        if IslandTimer("ask") not in self._side.timers:
            least = self._config.probe_least * 2.0 ** min(self._vain, MOST_VAIN)
            interval = max(least, self._side.size * self._config.probe_every)
            self._side.timers.set(
                IslandTimer("ask"), max(now, self._waits_until()) + interval * self._rng.uniform(0.0, 2.0)
            )

    def _waits_until(self) -> float:
        return max(self._side.quiet_until, self._side.others_try_until)

    def resized(self, peers: int, now: float) -> None:
        """The mesh is so large: an island that is much smaller asks sooner."""
        shrunk = peers < SHRUNK * self._side.size
        self._side.size = peers
        if shrunk:
            self._shrunk_until = now + SHRUNK_FOR
            if IslandTimer("ask") in self._side.timers:
                self._side.timers.cancel(IslandTimer("ask"))
                self._ask_later(now)

    def ask_services(self, now: float) -> None:
        """Probe somebody, unless it is at its place by now."""
        self.suspects.drop_old(now)
        missing = self.suspects.missing()
        if not missing:
            return
        if now < self._waits_until():
            self._ask_later(now)
        else:
            self._side.look_for(IslandLookup("probe", missing[0]), missing[0])

    def probed(self, event: ServicePong, now: float) -> None:
        """The services have answered."""
        suspect = self.suspects.get(event.peer)
        if suspect is None or IslandTimer("probed", event.peer) not in self._side.timers:
            return
        self._side.timers.cancel(IslandTimer("probed", event.peer))
        if event.alive:
            self._healing.suspect(event.peer, now, "a signaling service reaches it, and the mesh does not")
            self._side.timers.set(IslandTimer("bridge", event.peer), now + GREETING)
            return
        suspect.said_dead += 1
        if suspect.said_dead > 1 or self._side.size < self._config.suspects:
            self.suspects.drop(event.peer)
        if now < self._shrunk_until:
            self._side.tell(Subsystem.SIGNALING, FindPeers())

    def bridge_to(self, peer: PeerId, now: float) -> bool:
        """A link to this peer is wanted, unless another bridge has opened, or is tried."""
        if now < self._waits_until() or peer in self._side.links:
            return False
        self._side.counts["bridges"] += 1
        self._vain += 1
        self._wanted[peer] = now
        if len(self._wanted) > CASES:
            self._wanted.popitem(last=False)
        self._side.tell(Subsystem.OVERLAY, OpenBridge(peer))
        return True

    # --- others miss us -----------------------------------------------------------------------------------------------

    def hailed(self, peer: PeerId, now: float) -> None:
        """Somebody has asked a service for us."""
        if peer not in self._side.links and self._greetings.take(self._me, now):
            self._side.look_for(IslandLookup("greet", peer), peer)

    def greet(self, peer: PeerId) -> None:
        """It is not on our ring."""
        self._side.counts["greeted"] += 1
        self._side.tell(Subsystem.OVERLAY, Welcome(peer))
