"""Joining: the signaling services as far as one peer knows them, and when it joins them, again and again if need be."""

from __future__ import annotations

import random
from collections import Counter
from enum import Enum
from typing import Literal, assert_never

from attrs import define, frozen

from p2pmesh.config import MeshConfig
from p2pmesh.events import TransportDown, TransportUp
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.effects import Effects, Emit, Notify, SendSignaling, ServiceRefused
from p2pmesh.protocols.inputs import ServiceDown, ServiceUp, Subsystem
from p2pmesh.protocols.signaling.delivery import SignalDelivery
from p2pmesh.protocols.signaling.handshake import sign_join
from p2pmesh.protocols.util.timers import Backoff, Timers
from p2pmesh.wire.signaling import ERROR_CODES, JOIN_REFUSALS

REJOIN_FIRST = 5.0
"""Seconds until a join is repeated while there is no link: longer than attempts usually take. The original's advice."""

_ADVICE = {
    "bad_join": "is its version of the protocol ours?",
    "bad_token": "set MeshConfig.join_token to the token that it wants",
    "clock_skew": "set this machine's clock",
    "id_taken": "use another identity, or the one that this id belongs to",
    "replaced": "give each running peer an identity of its own",
    "full": "try again later, or another service",
}
"""What to do about a refusal, by its code."""


class Phase(Enum):
    """Where we stand with a service."""

    DOWN = "down"
    JOINING = "joining"
    JOINED = "joined"


@define
class Service:
    """A signaling service, as far as we know."""

    phase: Phase = Phase.DOWN
    told_up: bool | None = None
    """What the application heard of it last."""
    answered: bool = False
    """Whether it answered our first join: the original's server may not."""


@frozen
class _Timer:
    kind: Literal["grace", "again", "refresh", "rejoin"]
    transport: str = ""


class ServiceSessions:
    """The services of one peer."""

    def __init__(
        self,
        identity: Identity,
        config: MeshConfig,
        rng: random.Random,
        wall: WallClock,
        ways: SignalDelivery,
        counts: Counter[str],
    ) -> None:
        self._identity = identity
        self._config = config
        self._rng = rng
        self._wall = wall
        self._ways = ways
        self._counts = counts
        self._services: dict[str, Service] = {}
        self._timers = Timers[_Timer]()
        self._seeking = True
        self._rejoins = 0
        self._refreshes = 0
        self._last_join = -REJOIN_FIRST

    def phases(self) -> dict[str, str]:
        """Where we stand with each."""
        return {name: service.phase.value for name, service in self._services.items()}

    def is_open(self, transport: str) -> bool:
        """Whether there is a connection to this service."""
        service = self._services.get(transport)
        return service is not None and service.phase is not Phase.DOWN

    def is_joined(self, transport: str) -> bool:
        """Whether this service has let us in, as far as we can tell."""
        service = self._services.get(transport)
        return service is not None and service.phase is Phase.JOINED

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> Effects:
        """Do what is due."""
        effects: Effects = []
        for timer in self._timers.pop_due(now):
            match timer.kind:
                case "grace":
                    effects += self.joined(timer.transport, now)
                case "again":
                    if not self._services[timer.transport].answered:
                        effects += self._join(timer.transport, now)
                case "refresh":
                    self._refreshes = min(self._refreshes + 1, 32)
                    effects += self._join_all(now)
                case "rejoin":
                    self._rejoins += 1
                    effects += self._join_all(now)
                    self._arm_rejoin(now)
                case _:
                    assert_never(timer.kind)
        return effects

    def end(self) -> None:
        """Nothing is joined any more."""
        self._timers = Timers()

    # --- services -----------------------------------------------------------------------------------------------------

    def up(self, transport: str, now: float) -> Effects:
        """A connection to the service is open."""
        service = self._services.setdefault(transport, Service())
        service.phase = Phase.JOINING
        service.answered = False
        self._timers.cancel(_Timer("again", transport))
        self._timers.set(_Timer("grace", transport), now + self._config.signaling.join_grace)
        return self._join(transport, now)

    def down(self, transport: str, reason: str) -> Effects:
        """It is closed, or could not be opened."""
        service = self._services.setdefault(transport, Service())
        effects: Effects = []
        if service.phase is Phase.JOINED:
            effects.append(Notify(Subsystem.OVERLAY, ServiceDown(transport, reason)))
        if service.told_up is not False:
            effects.append(Emit(TransportDown(transport, reason)))
        service.phase, service.told_up = Phase.DOWN, False
        self._timers.cancel(_Timer("grace", transport))
        self._timers.cancel(_Timer("again", transport))
        return effects + self._ways.service_down(transport)

    def answered(self, transport: str, now: float) -> Effects:
        """It has answered our join."""
        self._services[transport].answered = True
        return self.joined(transport, now)

    def joined(self, transport: str, now: float) -> Effects:
        """It has let us in, as far as we can tell."""
        service = self._services[transport]
        if service.phase is not Phase.JOINING:
            return []
        service.phase = Phase.JOINED
        self._ways.service_up(transport)
        self._timers.cancel(_Timer("grace", transport))
        if not service.answered:
            # The first peer on the original's server hears nothing, and one whose older socket the server is about to
            # forget is forgotten with it. Once more, then, as its peers advise.
            self._timers.set(_Timer("again", transport), now + self._rng.uniform(0.5, 1.0))
        self._rejoins = 0
        self._arm_rejoin(now)
        effects: Effects = [Notify(Subsystem.OVERLAY, ServiceUp(transport))]
        if not service.told_up:
            service.told_up = True
            effects.append(Emit(TransportUp(transport)))
        return effects

    def failed(self, transport: str, code: str | None, message: str) -> Effects:
        """It sent an error, which may mean that it does not let us in."""
        joining = self._services[transport].phase is Phase.JOINING
        if code not in JOIN_REFUSALS or not (joining or code in {"replaced", "id_taken"}):
            return []
        said = f" (it says {message!r:.200})" if message else ""
        reason = f"{transport} refused us: {ERROR_CODES[code]}; {_ADVICE[code]}{said}"
        return [ServiceRefused(transport, reason), *self.down(transport, reason)]

    # --- once more ----------------------------------------------------------------------------------------------------

    def refresh(self, now: float) -> None:
        """Ask the services for peers: soon, but ever later if that is wanted again and again."""
        if _Timer("refresh") in self._timers:
            return
        pause = min(REJOIN_FIRST * 2.0**self._refreshes, self._config.signaling.rejoin_every)
        if now > self._last_join + 2 * pause:
            self._refreshes, pause = 0, REJOIN_FIRST
        self._timers.set(_Timer("refresh"), max(now, self._last_join + pause))

    def seek(self, now: float, *, wanted: bool) -> None:
        """Whether a link by way of the services is wanted, since the mesh gives none: then joins are repeated."""
        self._seeking = wanted
        if not wanted:
            self._timers.cancel(_Timer("rejoin"))
        elif _Timer("rejoin") not in self._timers:
            self._rejoins = 0
            self._arm_rejoin(now)

    def _arm_rejoin(self, now: float) -> None:
        if self._seeking and self._ways.services:
            backoff = Backoff(REJOIN_FIRST, self._config.signaling.rejoin_every)
            self._timers.set(_Timer("rejoin"), now + backoff.delay(self._rejoins + 1, self._rng))

    def _join_all(self, now: float) -> Effects:
        return [effect for name in self._ways.services for effect in self._join(name, now)]

    def _join(self, transport: str, now: float) -> Effects:
        self._last_join = now
        self._counts["joins"] += 1
        wall_ms = int(self._wall(now) * 1000)
        join = sign_join(self._identity, self._config.room, wall_ms, token=self._config.join_token)
        return [SendSignaling(transport, join)]
