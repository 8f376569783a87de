"""What must not happen in a simulation, and the exception that says that it did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import frozen

TRACE_LINES: Final = 60
"""Events of the trace in a failure's message: the last seconds of a small mesh."""


class InvariantViolated(AssertionError):
    """Something happened in a simulation that must not. The message says what it takes to see it again."""


@frozen
class Violation:
    """Which invariant was violated, when, and how."""

    time: float
    invariant: str
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.time:.3f} s: {self.what}"


def reproduction(seed: int, plan: object, trace: Iterable[str]) -> list[str]:
    """What it takes to see a run again, in lines: its seed, its fault plan if it has one, and the end of its trace."""
    return [f"seed: {seed}", *([] if plan is None else ["plan:", str(plan)]), "trace:", *trace]
