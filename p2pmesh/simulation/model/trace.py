"""What happened, as numbers: cheap enough to be always on, hashed as it grows, its end readable after a failure."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

CHUNK: Final = 4096
"""Events that are hashed at once: a call for each would cost more than the event."""
_WIDTH: Final = 5


class Mark(IntEnum):
    """Kinds of events, besides the messages, which follow with numbers of their own."""

    JOIN = 0
    STOP = 1
    LINK_UP = 2
    LINK_DOWN = 3
    SERVICE = 4
    FAULT = 5
    PUBLISH = 6
    DELIVER = 7
    SETTLE = 8
    EXPIRE = 9
    CALL = 10
    DIRECT = 11
    MESSAGE = 16
    """The first kind of message."""


class Trace:
    """The record of a run. `digest` depends on its events and on nothing else.

    Attributes:
      log: takes an event as five numbers: time, kind, from peer, to peer (-1 for nobody), and a detail.
      count: events that were hashed.
    """

    __slots__ = ("_chunk", "_hash", "_names", "_notes", "_older", "count", "log")

    def __init__(self, message_names: list[str], kept: int = CHUNK) -> None:
        """Begin.

        Args:
          message_names: how messages are called, by their kind less `Mark.MESSAGE`.
          kept: events that can be read afterwards, at least.
        """
        self._names = {mark.value: mark.name.lower().replace("_", "-") for mark in Mark if mark is not Mark.MESSAGE}
        self._names |= {Mark.MESSAGE + number: name for number, name in enumerate(message_names)}
        self._notes: dict[str, int] = {"": 0}
        self._hash = hashlib.blake2b(digest_size=16)
        self._chunk = array("d")
        self._older: deque[array[float]] = deque(maxlen=max(1, kept // CHUNK))
        self.count: int = 0
        self.log: Callable[[tuple[float, float, float, float, float]], None] = self._chunk.extend

    def roll(self) -> None:
        """Hash what has accumulated. To be called now and then."""
        if len(self._chunk) >= CHUNK * _WIDTH:
            self._flush()

    def note(self, text: str) -> int:
        """A number for a text, to be a `detail`. It depends only on the order of the texts."""
        return self._notes.setdefault(text, len(self._notes))

    def digest(self) -> str:
        """The hash of the whole run so far."""
        if self._chunk:
            self._flush()
        complete = self._hash.copy()
        for text in self._notes:
            complete.update(text.encode() + b"\0")
        return complete.hexdigest()

    def tail(self, events: int) -> list[str]:
        """The last events, one line each."""
        flat: list[float] = []
        for chunk in (*self._older, self._chunk):
            flat.extend(chunk)
        notes = list(self._notes)
        rows = [flat[at : at + _WIDTH] for at in range(0, len(flat), _WIDTH)]
        return [self._line(row, notes) for row in rows[-events:]] if events > 0 else []

    def _line(self, row: list[float], notes: list[str]) -> str:
        time, kind, a, b, detail = row
        who = " ".join(f"n{int(peer)}" for peer in (a, b) if peer >= 0)
        if kind in {Mark.LINK_DOWN, Mark.FAULT, Mark.SERVICE, Mark.STOP}:
            text = notes[int(detail)]
        else:
            text = f"{detail:g}" if detail else ""
        return f"{time:10.3f} {self._names.get(int(kind), '?'):<18} {who} {text}".rstrip()

    def _flush(self) -> None:
        self._hash.update(self._chunk.tobytes())
        self.count += len(self._chunk) // _WIDTH
        self._older.append(self._chunk[:])
        del self._chunk[:]
