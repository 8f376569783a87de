"""This side, for the parts of `islands`: what we know of our own island, and whom we ask about peers and places.

A *lookup* goes to a place on our ring, and finds who is there. A *question* goes to the far end of a bridge: who is next to
a key on its side. It looks that up as an *errand* of ours.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal, TypeAlias

from attrs import define, field, frozen

from p2pmesh.config import IslandsConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Effect, Effects, Notify
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.notices import Input, ReturnPath, Route
from p2pmesh.protocols.util.timers import Timers
from p2pmesh.wire.messages import Message
from p2pmesh.wire.overlay import FindBeyond, FindSuccessor

CROWD = 1.5
"""Seconds over which those who all see the same begin to act, so that the first may be enough."""

Purpose: TypeAlias = Literal["check", "probe", "greet", "confirm", "witness"]


@frozen
class IslandLookup:
    """We look for a peer at its place on our ring."""

    purpose: Purpose
    peer: PeerId
    far: PeerId | None = None
    """The far end of the bridge that it is about."""


@frozen
class Question:
    """We asked the far end of a bridge who is next to a key beyond it."""

    purpose: Literal["confirm", "place", "witness"]
    far: PeerId
    path: tuple[PeerId, ...]
    """From the far end to the last peer before us."""


@frozen
class IslandCall:
    """We look a key up for somebody beyond a bridge."""

    way: ReturnPath


Call: TypeAlias = IslandLookup | Question | IslandCall


@frozen
class IslandTimer:
    """What is due, and of whom, or of which flood."""

    kind: Literal["check", "ask", "bridge", "confirm", "seek", "watch", "probed"]
    of: str = ""


@define(eq=False)
class IslandContext:
    """Our own island as we see it, and what goes out from here."""

    me: PeerId
    config: IslandsConfig
    rng: random.Random
    links: dict[PeerId, bool] = field(factory=dict)
    """Neighbours, and whether each takes part: verified, and of our protocol."""
    size: int = 1
    quiet_until: float = -1.0
    """Who has just heard `merge` asks nobody before."""
    others_try_until: float = -1.0
    """Somebody on this island tries to open a bridge: nobody else asks the services before."""
    timers: Timers[IslandTimer] = field(factory=Timers)
    calls: dict[int, Call] = field(factory=dict)
    """What is asked, and not answered yet."""
    counts: Counter[str] = field(factory=Counter)
    _last_call: int = 0
    _effects: Effects = field(factory=list)

    def do(self, effect: Effect) -> None:
        """Have this done."""
        self._effects.append(effect)

    def tell(self, subsystem: Subsystem, event: Input) -> None:
        """Have another core told."""
        self.do(Notify(subsystem, event))

    def take(self) -> Effects:
        """What is to be done, once."""
        effects, self._effects = self._effects, []
        return effects

    def look_for(self, call: IslandLookup | IslandCall, key: PeerId, avoid: tuple[PeerId, ...] = ()) -> None:
        """See who is at this place of the ring."""
        self.counts["lookups"] += 1
        self._route(call, key, FindSuccessor(key=key), nearest=True, avoid=avoid)

    def ask_beyond(self, question: Question, key: PeerId) -> None:
        """Ask the far end of a bridge who is next to a key on its side."""
        way = ReturnPath(question.far, "", question.path) if len(question.path) > 1 else None
        self._route(question, question.far, FindBeyond(key=key), way=way)

    def _route(
        self,
        call: Call,
        to: PeerId,
        message: Message,
        *,
        nearest: bool = False,
        way: ReturnPath | None = None,
        avoid: tuple[PeerId, ...] = (),
    ) -> None:
        self._last_call += 1
        self.calls[self._last_call] = call
        route = Route(
            Subsystem.ISLANDS,
            self._last_call,
            to,
            message,
            nearest=nearest,
            answered=True,
            way=way,
            avoid=avoid,
            timeout=self.config.lookup_timeout,
        )
        self.tell(Subsystem.ROUTING, route)
