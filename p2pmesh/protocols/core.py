"""The contract of the sans-IO cores: inputs go in with a time, effects come out.

A core is plain synchronous code that owns its state and its timers. It never waits, never looks at a clock, never draws
from global randomness: time comes with each call, `random.Random`, identity and config with the constructor. So a core's
run is a function of its seed, and the same core is driven by Trio over WebRTC links, by the simulator in virtual time,
and bare by a property test.

What goes in and out has a file for each direction (`inputs`, `tellings`, `effects`); all of it is got from here.

Who drives a core promises to call `handle` for each input and `expire` once `next_deadline` has come, with times that
never go backwards, and to carry out the effects of one call in their order before it makes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from p2pmesh.protocols.effects import Effects
from p2pmesh.protocols.notices import Input

WallClock: TypeAlias = Callable[[float], float]
"""Gives the wall time (seconds since 1970) of a monotonic instant; passed in where a message carries a timestamp."""


class Core(Protocol):
    """What every protocol core is."""

    def handle(self, event: Input, now: float) -> Effects:
        """Take an input. Never raises on what a peer may have sent."""

    def next_deadline(self) -> float:
        """When `expire` wants to be called next, in monotonic seconds; `math.inf` for never."""

    def expire(self, now: float) -> Effects:
        """Do what is due at `now`. Calling it early is harmless."""

    def snapshot(self) -> Mapping[str, Any]:
        """Statistics that JSON can carry."""
