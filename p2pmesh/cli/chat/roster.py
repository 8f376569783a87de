"""Who is in the chat: what peers say about themselves, made into people with names.

Sans-IO: presence messages and times go in, changes to be shown come out. A name is only a claim, so two people with the
same name are always shown with digits of their ids, which can't be chosen.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeAlias

from attrs import define, evolve, frozen

from p2pmesh.cli.sanitize import printable
from p2pmesh.keyspace import PeerId, short

NAME_LENGTH = 24
MOST_PEOPLE = 1000
"""Most people listed; messages of others are shown all the same. Identities cost an attacker nothing."""
SILENCE = 60.0
"""Seconds of silence after which somebody is taken to be gone: three announcements missed."""
_TAG = 4
"""Digits of the id that tell namesakes apart."""


@frozen
class Joined:
    """Somebody new."""

    who: str


@frozen
class Left:
    """Somebody is gone."""

    who: str
    why: str


@frozen
class Renamed:
    """Somebody changed their name."""

    old: str
    who: str


Change: TypeAlias = Joined | Left | Renamed


class NoSuchPersonError(LookupError):
    """Nobody, or more than one, goes by that name; the text is for users."""


@define
class Person:
    """What is known of one peer."""

    peer_id: PeerId
    name: str
    said_at: float
    """When it last announced itself, by its own clock; what is older arrived late and is no news."""
    heard_at: float
    """When we heard that, by our clock."""


def clean_name(text: Any) -> str:
    """A name as we show it: one short word without control characters; empty if nothing is left of it."""
    if not isinstance(text, str):
        return ""
    return "-".join(printable(text.replace("#", ""), NAME_LENGTH).split())


class People:
    """The people in the chat, without ourselves."""

    def __init__(self, name: str) -> None:
        self.own_name = name
        self._people: dict[PeerId, Person] = {}
        self._gone: OrderedDict[PeerId, float] = OrderedDict()
        """When people that left said so, by their own clocks."""

    def __len__(self) -> int:
        return len(self._people)

    def all(self) -> tuple[Person, ...]:
        """Everybody, in the order in which they came."""
        return tuple(evolve(person) for person in self._people.values())

    def knows(self, peer: PeerId) -> bool:
        """Whether this peer is one of them."""
        return peer in self._people

    def heard(self, peer: PeerId, name: str, said_at: float, now: float) -> Change | None:
        """Note that this peer says it is here."""
        if said_at <= self._gone.get(peer, float("-inf")):
            return None
        person = self._people.get(peer)
        if person is None:
            return self._join(peer, name, said_at, now)
        person.heard_at = now
        if said_at < person.said_at:
            return None
        person.said_at = said_at
        if person.name == name:
            return None
        old, person.name = self.label(peer), name
        return Renamed(old, self.label(peer))

    def left(self, peer: PeerId, why: str, said_at: float | None = None) -> Change | None:
        """Note that this peer is gone: it said so, at that time of its clock, or it is unreachable."""
        person = self._people.get(peer)
        if said_at is not None:
            self._remember_gone(peer, said_at)
        if person is None or (said_at is not None and said_at < person.said_at):
            return None
        who = self.label(peer)
        del self._people[peer]
        return Left(who, why)

    def expire(self, now: float) -> list[Change]:
        """Drop people that have been silent for too long."""
        silent = [person.peer_id for person in self._people.values() if now - person.heard_at > SILENCE]
        return [change for peer in silent if (change := self.left(peer, "fell silent")) is not None]

    def label(self, peer: PeerId) -> str:
        """What to call this peer: its name, with digits of its id if somebody else has that name too."""
        person = self._people.get(peer)
        if person is None or not person.name:
            return f"#{short(peer)}"
        namesakes = [other for other in self._people.values() if _same(other.name, person.name)]
        if len(namesakes) == 1 and not _same(person.name, self.own_name):
            return person.name
        return f"{person.name}#{peer[:_TAG]}"

    def find(self, text: str) -> PeerId:
        """The peer that goes by this name, by `name#digits`, or by `#digits`, the first of its id.

        Raises:
          NoSuchPersonError: if nobody does, or more than one.
        """
        name, _, digits = text.partition("#")
        found = [
            person.peer_id
            for person in self._people.values()
            if (not name or _same(person.name, name)) and person.peer_id.startswith(digits.lower())
        ]
        if not found:
            raise NoSuchPersonError(f"nobody here is called {text}: /peers shows who is")
        if len(found) > 1:
            choices = ", ".join(f"{name}#{peer[: 2 * _TAG]}" for peer in found[:_TAG])
            raise NoSuchPersonError(f"{text} could be {len(found)} people: {choices}")
        return found[0]

    def _join(self, peer: PeerId, name: str, said_at: float, now: float) -> Change | None:
        if len(self._people) >= MOST_PEOPLE:
            return None
        self._people[peer] = Person(peer, name, said_at, now)
        return Joined(self.label(peer))

    def _remember_gone(self, peer: PeerId, said_at: float) -> None:
        self._gone[peer] = max(said_at, self._gone.pop(peer, said_at))
        while len(self._gone) > MOST_PEOPLE:
            self._gone.popitem(last=False)


def _same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()
