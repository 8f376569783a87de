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


class Traffic:
    """Counters by kind of message: `frames` and `bytes` that were sent, `arrived` frames that came in."""

    __slots__ = ("arrived", "bytes", "frames")

    def __init__(self) -> None:
        self.frames: list[int] = [0] * len(KINDS)
        self.bytes: list[int] = [0] * len(KINDS)
        self.arrived: list[int] = [0] * len(KINDS)

    def sent(self, message: Message, copies: int) -> int:
        """A message goes to so many peers; its size as a frame."""
        size = len(encode(message))
        kind = KINDS[type(message)]
        self.frames[kind] += copies
        self.bytes[kind] += copies * size
        return size

    @staticmethod
    def parse(frame: bytes) -> Message | str | None:
        """What the link keeper makes of bytes: a message, the reason why it is none, or None for an unknown type."""
        try:
            message = decode(frame)
        except RemoteProtocolError as error:
            return str(error)
        return None if isinstance(message, Unknown) else message

    @property
    def control_bytes(self) -> int:
        """Bytes of all that is no broadcast."""
        return sum(self.bytes) - self.bytes[PAYLOAD]

    def by_name(self) -> dict[str, int]:
        """Frames sent, by the name of their kind."""
        return {name: count for name, count in zip(NAMES, self.frames, strict=True) if count}
