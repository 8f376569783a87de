"""What goes over the links of a simulation, by kind of message: counted, and measured as the codec would write it."""

from __future__ import annotations

from typing import Final

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.protocols.wiring import OWNERS
from p2pmesh.wire.codec import decode, encode
from p2pmesh.wire.messages import Gossip, Message, Unknown

KINDS: Final[dict[type, int]] = {kind: number for number, kind in enumerate(OWNERS)}
NAMES: Final = [str(kind.__struct_config__.tag) for kind in OWNERS]
PAYLOAD: Final = KINDS[Gossip]
"""The kind that carries broadcasts; all others are control."""
MEASURED: Final = 256
"""Frames of a kind that are measured before samples stand for the others."""
SAMPLE: Final = 17
"""Of so many messages one is a sample: a prime, as requests and answers alternate."""


class Traffic:
    """Counters by kind of message: `frames` that were sent, their `bytes`, and `arrived` frames that came in.

    With `samples`, only the first messages of each kind and some of the later ones are measured, and stand for all:
    encoding a message takes as long as much else that happens to it.
    """

    __slots__ = ("_bytes", "_measured", "_samples", "_skips", "arrived", "frames")

    def __init__(self, *, samples: bool = False) -> None:
        self.frames: list[int] = [0] * len(KINDS)
        self.arrived: list[int] = [0] * len(KINDS)
        self._samples = samples
        self._measured = [0] * len(KINDS)
        self._bytes = [0] * len(KINDS)  # of so many frames of each kind, each sample for itself and those before it
        self._skips = [0] * len(KINDS)  # messages until the next that is

    def sent(self, message: Message, copies: int) -> None:
        """A message goes to so many peers."""
        kind = KINDS[type(message)]
        self.frames[kind] += copies
        if self._skips[kind]:
            self._skips[kind] -= 1
            return
        self._bytes[kind] += (self.frames[kind] - self._measured[kind]) * size_of(message)
        self._measured[kind] = self.frames[kind]
        if self._samples and self.frames[kind] >= MEASURED:
            self._skips[kind] = SAMPLE - 1

    @property
    def bytes(self) -> list[int]:
        """Bytes that were sent, by kind."""
        counts = zip(self._bytes, self.frames, self._measured, strict=True)
        return [size if frames == measured else round(size * frames / measured) for size, frames, measured in counts]

    @property
    def control_bytes(self) -> int:
        """Bytes of all that is no broadcast."""
        sizes = self.bytes
        return sum(sizes) - sizes[PAYLOAD]

    def by_name(self) -> dict[str, int]:
        """Frames sent, by the name of their kind."""
        return {name: count for name, count in zip(NAMES, self.frames, strict=True) if count}


def size_of(message: Message) -> int:
    """Bytes of a message as a frame."""
    return len(encode(message))


def parse(frame: bytes) -> Message | str | None:
    """What the link keeper makes of bytes: a message, the reason why it is none, or None for an unknown type."""
    try:
        message = decode(frame)
    except RemoteProtocolError as error:
        return str(error)
    return None if isinstance(message, Unknown) else message
