"""Peers that are missing on our ring: who is suspected, and which of them the signaling services are asked for next.

A *suspect* fell silent, or was named by a service. A suspect that a look-up does not find at its place on the ring is
*missing*. The services are asked for one missing peer after the other (a *ping*), the rarer the larger our island is,
so that an island of any size asks as often; to those that answer a bridge is wanted.

In: links, what the services name, what came of look-ups and pings, the size of the mesh. Out: whom to suspect, when to
look or to ask next, and whom. State: at most `IslandsConfig.suspects` suspects, and the peers that each of our
services named last.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping

from attrs import asdict, define

from p2pmesh.config import IslandsConfig
from p2pmesh.keyspace import PeerId

CROWD = 1.5
"""Seconds over which peers that all see the same begin to act, so that the first may be enough."""


@define
class Suspect:
    """A peer whose link broke without a word, or that a service named."""

    since: float
    named: bool = False
    """Whether a service has just named it: perhaps nobody else here knows of it."""
    missing: bool = False
    """Whether it was looked for, and is not at its place on our ring."""
    asked_at: float = -1.0
    """When the services were asked for it last."""
    unknown: int = 0
    """How often they knew nothing of it."""


@define
class DetectionCounts:
    """How often the services were asked for a peer, and bridges were wanted."""

    pings: int = 0
    bridges: int = 0


class Detection:
    """The suspects of one peer, in the order in which they fell silent, and the pace at which it asks for them."""

    def __init__(self, config: IslandsConfig, links: Mapping[PeerId, bool], rng: random.Random) -> None:
        self._config = config
        self._links = links
        self._rng = rng
        self._suspects: OrderedDict[PeerId, Suspect] = OrderedDict()
        self._named: dict[str, tuple[PeerId, ...]] = {}
        self.size: int = 1
        """About so many peers are on our island."""
        self.counts: DetectionCounts = DetectionCounts()

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._suspects

    def __iter__(self) -> Iterator[PeerId]:
        return iter(list(self._suspects))

    def snapshot(self) -> dict[str, int]:
        return {"suspects": len(self._suspects), "missing": len(self._missing()), **asdict(self.counts)}

    # --- suspects -----------------------------------------------------------------------------------------------------

    def suspect(self, peer: PeerId, now: float, *, named: bool = False) -> PeerId | None:
        """Suspect a peer whose link broke without a word, or that a service named. Returns one that makes room."""
        self._suspects.pop(peer, None)
        self._suspects[peer] = Suspect(now, named)
        return self._suspects.popitem(last=False)[0] if len(self._suspects) > self._config.suspects else None

    def named_by(self, transport: str, peers: tuple[PeerId, ...]) -> list[PeerId]:
        """Whom to suspect of those whom the services name.

        Peers of two services may be two meshes; and one that has been away may have come back to another.
        """
        again = transport in self._named
        self._named[transport] = peers
        services = list(self._named) if len(self._named) > 1 else [transport] if again else []
        chosen = dict.fromkeys(self._rng.choice(self._named[service]) for service in services)
        return [peer for peer in chosen if peer not in self._links and peer not in self._suspects]

    def check_at(self, earliest: float) -> float:
        """When a suspect is looked for."""
        return earliest + self._config.patience * self._rng.uniform(0.0, 0.5)

    def linked(self, peer: PeerId) -> float | None:
        """A link is open. Returns in how many seconds to see whether it is a bridge; None if nothing says so."""
        suspect = self._suspects.pop(peer, None)
        if suspect is None or not suspect.missing:
            return None
        # It may be the bridge that we wanted; else several may open in the same moment, and one that looks is enough.
        return 0.0 if suspect.asked_at >= 0 else self.crowd()

    def drop(self, peer: PeerId) -> None:
        """Suspect it no longer."""
        self._suspects.pop(peer, None)

    def miss(self, peer: PeerId, now: float, *, pinged: bool) -> bool:
        """A suspect is not at its place; the services may be asked for it now. Returns whether one just named it."""
        suspect = self._suspects[peer]
        suspect.missing = True
        if pinged:
            self.counts.pings += 1
            suspect.asked_at = now
        was_named, suspect.named = suspect.named, False
        return was_named

    def _missing(self) -> list[PeerId]:
        """Suspects that are not on our ring, the one first for which the services were asked the longest time ago."""
        found = [(suspect.asked_at, peer) for peer, suspect in self._suspects.items() if suspect.missing]
        return [peer for _, peer in sorted(found)]

    # --- asking the services ------------------------------------------------------------------------------------------

    @property
    def misses_any(self) -> bool:
        return any(suspect.missing for suspect in self._suspects.values())

    def crowd(self) -> float:
        """Seconds to wait before doing what others may do as well."""
        return CROWD * self._rng.random()

    def ping_pause(self) -> float:
        """Seconds until the services are asked next."""
        every = max(self._config.probe_least, self.size * self._config.probe_every)
        return every * self._rng.uniform(0.0, 2.0)

    def next_to_ping(self, now: float) -> PeerId | None:
        """For whom to ask the services. Forgets suspects that fell silent too long ago to come back."""
        for peer in [
            peer for peer, suspect in self._suspects.items() if suspect.since <= now - self._config.suspect_lasts
        ]:
            del self._suspects[peer]
        return next(iter(self._missing()), None)

    def was_asked_for(self, peer: PeerId) -> bool:
        """Whether this is a suspect that the services were asked for."""
        suspect = self._suspects.get(peer)
        return suspect is not None and suspect.asked_at >= 0

    def unknown_to_services(self, peer: PeerId) -> None:
        """No service knows a suspect."""
        suspect = self._suspects[peer]
        suspect.unknown += 1
        if suspect.unknown > 1 or self.size < self._config.suspects:
            del self._suspects[peer]
