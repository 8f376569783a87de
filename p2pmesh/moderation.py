"""What an application says to a broadcast of others, before it is passed on. See `Mesh.validate`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TypeAlias

from p2pmesh.events import MessageReceived


class Verdict(Enum):
    """What becomes of a broadcast that came, as gossipsub's validators have it."""

    ACCEPT = "accept"
    """It is delivered here, and passed on."""
    IGNORE = "ignore"
    """It is neither, and nobody is to blame: the way to turn down what other peers may well want."""
    REJECT = "reject"
    """It is neither, and the scores of its origin and of the neighbour that passed it on fall: for what no peer of this
    application would pass on."""


Validator: TypeAlias = Callable[[MessageReceived], Verdict]
"""Looks at a broadcast that is as it should be, signature and all. It must not wait."""


def accept(message: MessageReceived) -> Verdict:
    """Accept everything."""
    return Verdict.ACCEPT
