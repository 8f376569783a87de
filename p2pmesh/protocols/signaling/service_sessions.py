"""The signaling services as far as one peer knows them: joins, repeated if need be, and pings of peers through them.

A service is *down*, *joining* or *joined*. It is joined once it answers with `bootstrap_peers`, or has not refused for
`join_grace`: the original's server answers nothing to the first peer. While we have no link into the mesh, joins are
repeated, ever more rarely: each brings fresh peers and announces us again. A ping is an `ack` that a service relays,
and the pinged peer sends one back.

In: connections, answers, errors, whether links are wanted. Out: `Change`s of services, which the core tells of; joins
to send; whom to ping, and what came of it. State: one entry for each configured service, `MAX_PINGS` pings, `MAX_PINGS`
peers that ping us.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import Enum
from typing import Literal, NamedTuple, TypeAlias, assert_never

from attrs import define
from msgspec import Struct

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import WallClock
from p2pmesh.protocols.signaling.handshake import sign_join
from p2pmesh.protocols.util.limits import LruTable, RateLimiter
from p2pmesh.protocols.util.timers import Backoff, Stamps, Timers
from p2pmesh.wire.signaling import ERROR_CODES, JOIN_REFUSALS, Join

REJOIN_FIRST = 5.0
"""Seconds until a join is repeated while there is no link: longer than attempts usually take. The original's advice."""
MAX_PINGS = 64
"""Pings that are out, and peers whose pings are counted: one peer makes one every few seconds at most."""
PINGS, PING_EVERY = 3.0, 5.0
"""Pings of one peer that are answered at once, and seconds for another."""

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
    outdated: bool = False
    """Whether it had a later join of this id: of another run, or before our clock was set back."""


class _Timer(Struct, frozen=True):
    kind: Literal["grace", "again", "refresh", "rejoin", "doubt"]
    transport: str = ""


class Opened(NamedTuple):
    """A service has let us in, as far as we can tell."""

    transport: str
    is_news: bool
    """Whether the application has not heard of it yet."""


class Closed(NamedTuple):
    """A service is gone, or refuses us."""

    transport: str
    reason: str
    was_joined: bool
    is_news: bool


class SendJoin(NamedTuple):
    """Ask a service to let us in."""

    transport: str
    join: Join


class Unanswering(NamedTuple):
    """A service that was doubted does not answer."""

    transport: str


Change: TypeAlias = Opened | Closed | SendJoin | Unanswering


class ServiceSessions:
    """The services of one peer."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        self._identity = identity
        self._config = config
        self._rng = rng
        self._stamps = Stamps(wall)
        self._services: dict[str, Service] = {}
        self._joined: dict[str, None] = {}
        self._timers = Timers[_Timer]()
        self._seeking = True
        self._rejoins = 0
        self._refreshes = 0
        self._last_join = -REJOIN_FIRST
        self.joins: int = 0
        """Joins that were sent."""

    def phases(self) -> dict[str, str]:
        """Where we stand with each."""
        return {name: service.phase.value for name, service in self._services.items()}

    @property
    def joined_services(self) -> Mapping[str, None]:
        """A view of the services that have let us in, the longest ago first."""
        return self._joined

    def is_open(self, transport: str) -> bool:
        """Whether there is a connection to this service."""
        service = self._services.get(transport)
        return service is not None and service.phase is not Phase.DOWN

    def is_joined(self, transport: str) -> bool:
        """Whether this service has let us in, as far as we can tell."""
        return transport in self._joined

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        return self._timers.next_deadline()

    def expire(self, now: float) -> list[Change]:
        """Do what is due."""
        changes: list[Change] = []
        for timer in self._timers.pop_due(now):
            match timer.kind:
                case "grace":
                    changes += self.joined(timer.transport, now)
                case "again":
                    if not self._services[timer.transport].answered:
                        changes.append(self._join(timer.transport, now))
                case "doubt":
                    changes.append(Unanswering(timer.transport))
                case "refresh":
                    self._refreshes = min(self._refreshes + 1, 32)
                    changes += self._join_all(now)
                case "rejoin":
                    self._rejoins += 1
                    changes += self._join_all(now)
                    self._arm_rejoin(now)
                case _:
                    assert_never(timer.kind)
        return changes

    # --- services -----------------------------------------------------------------------------------------------------

    def up(self, transport: str, now: float) -> SendJoin:
        """A connection to the service is open."""
        service = self._services.setdefault(transport, Service())
        service.phase = Phase.JOINING
        service.answered = service.outdated = False
        self._timers.cancel(_Timer("again", transport))
        self._timers.set(_Timer("grace", transport), now + self._config.signaling.join_grace)
        return self._join(transport, now)

    def down(self, transport: str, reason: str) -> Closed:
        """It is closed, or could not be opened."""
        service = self._services.setdefault(transport, Service())
        closed = Closed(transport, reason, transport in self._joined, is_news=service.told_up is not False)
        service.phase, service.told_up = Phase.DOWN, False
        self._joined.pop(transport, None)
        for kind in ("grace", "again", "doubt"):
            self._timers.cancel(_Timer(kind, transport))
        return closed

    def heard(self, transport: str) -> None:
        """It has sent something: its connection works."""
        self._timers.cancel(_Timer("doubt", transport))

    def answered(self, transport: str, now: float) -> list[Change]:
        """It has answered our join."""
        self._services[transport].answered = True
        return self.joined(transport, now)

    def joined(self, transport: str, now: float) -> list[Change]:
        """It has let us in, as far as we can tell."""
        service = self._services[transport]
        if service.phase is not Phase.JOINING:
            return []
        service.phase = Phase.JOINED
        self._joined[transport] = None
        self._timers.cancel(_Timer("grace", transport))
        if not service.answered:
            # The first peer on the original's server hears nothing, and one whose older socket the server is about to
            # forget is forgotten with it. Once more, then, as its peers advise.
            self._timers.set(_Timer("again", transport), now + self._rng.uniform(0.5, 1.0))
        self._rejoins = 0
        self._arm_rejoin(now)
        is_news, service.told_up = not service.told_up, True
        return [Opened(transport, is_news)]

    def failed(self, transport: str, code: str | None, message: str) -> str | None:
        """It sent an error. Returns the reason if that means that it does not let us in."""
        joining = self._services[transport].phase is Phase.JOINING
        is_refusal = code in JOIN_REFUSALS or code not in {*ERROR_CODES, "other", None}  # one that is newer than we
        if code is None or not is_refusal or not (joining or code in {"replaced", "id_taken"}):
            return None
        if code == "clock_skew":
            self._stamps.forget()
        said = f" (it says {message!r:.200})" if message else ""
        why = ERROR_CODES.get(code, f"its reason is {code!r}")
        return f"{transport} refused us: {why}; {_ADVICE.get(code, 'see what it says')}{said}"

    def outdated(self, transport: str, later_than: int, now: float) -> SendJoin | None:
        """It has a later join of this id: one that is later still, unless that was one, or our clock can't be right."""
        service = self._services[transport]
        if service.phase is not Phase.JOINING or service.outdated or not self._stamps.exceed(later_than, now):
            return None
        service.outdated = True
        self._timers.set(_Timer("grace", transport), now + self._config.signaling.join_grace)
        return self._join(transport, now)

    # --- once more ----------------------------------------------------------------------------------------------------

    def refresh(self, now: float) -> None:
        """Ask the services for peers: soon, but ever later if that is wanted again and again."""
        if _Timer("refresh") in self._timers:
            return
        pause = min(REJOIN_FIRST * 2.0**self._refreshes, self._config.signaling.rejoin_every)
        if now > self._last_join + 2 * pause:
            self._refreshes, pause = 0, REJOIN_FIRST
        self._timers.set(_Timer("refresh"), max(now, self._last_join + pause))

    def doubt(self, now: float) -> list[SendJoin]:
        """What fell silent around us may be our own network: join again, and see who answers within `join_grace`."""
        self._timers.cancel(_Timer("refresh"))
        for transport in self._joined:
            self._timers.set(_Timer("doubt", transport), now + self._config.signaling.join_grace)
        return self._join_all(now)

    def seek(self, now: float, *, wanted: bool) -> None:
        """Whether a link by way of the services is wanted, since the mesh gives none: then joins are repeated."""
        self._seeking = wanted
        if not wanted:
            self._timers.cancel(_Timer("rejoin"))
        elif _Timer("rejoin") not in self._timers:
            self._rejoins = 0
            self._arm_rejoin(now)

    def _arm_rejoin(self, now: float) -> None:
        if self._seeking and self._joined:
            backoff = Backoff(REJOIN_FIRST, self._config.signaling.rejoin_every)
            self._timers.set(_Timer("rejoin"), now + backoff.delay(self._rejoins + 1, self._rng))

    def _join_all(self, now: float) -> list[SendJoin]:
        return [self._join(name, now) for name in self._joined]

    def _join(self, transport: str, now: float) -> SendJoin:
        self._last_join = now
        self.joins += 1
        timestamp = self._stamps.next(now)
        join = sign_join(self._identity, self._config.room, timestamp, token=self._config.join_token)
        return SendJoin(transport, join)


class ServicePings:
    """Pings of peers that the mesh does not find, through all services at once; and answers to pings of others."""

    def __init__(self) -> None:
        self._open = LruTable[tuple[str, ...]](MAX_PINGS)
        """Of each pinged peer the services that have not said that they don't know it."""
        self._answers = RateLimiter(MAX_PINGS, 1 / PING_EVERY, PINGS)
        self._sent = 0

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._open

    def snapshot(self) -> dict[str, int]:
        return {"open": len(self._open), "sent": self._sent}

    def ping(self, peer: PeerId, services: tuple[str, ...]) -> None:
        """These services are asked for it, if there are any."""
        if services:
            self._sent += 1
            self._open.put(peer, services)

    def answers(self, peer: PeerId, now: float) -> bool:
        """Whether this peer's ping is answered."""
        return self._answers.take(peer, now)

    def pong(self, peer: PeerId) -> bool:
        """It has answered. Returns whether it was asked, and has not answered yet."""
        return self._open.pop(peer) is not None

    def not_found(self, peer: PeerId, transport: str) -> bool:
        """It is not on this service. Returns whether that was the last one."""
        left = tuple(name for name in self._open.pop(peer) or () if name != transport)
        if left:
            self._open.put(peer, left)
        return not left
