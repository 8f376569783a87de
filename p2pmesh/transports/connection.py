"""What connections over every carrier of text have in common: typed messages in, typed messages out, one way to end.

A transport subclasses `TextConnection` and says how one text is sent and received.
"""

from __future__ import annotations

import abc
import logging
from typing import Final

import msgspec
import trio

from p2pmesh.errors import RemoteProtocolError, TransportError
from p2pmesh.wire.codec import decode_signaling, encode_signaling
from p2pmesh.wire.messages import Unknown
from p2pmesh.wire.signaling import SignalingMessage

logger: Final = logging.getLogger(__name__)

GRACEFUL_CODES = frozenset({1000, 1001, 1005})
"""Close codes (RFC 6455, section 7.4.1) of a service that closes in peace: done, going away, none given."""
NO_GOODBYE = 1006
"""The close code that stands for a connection which ended without one."""


class TextConnection(trio.abc.Channel[SignalingMessage]):
    """An open connection to the signaling service at `address`, which holds no secrets and may be shown."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.local_host: str | None = None
        """The address of this machine that leads to the service; None if that is not known."""
        self.skipped: int = 0
        """Messages that were not for us to understand: of unknown type, or malformed."""

    def abort(self) -> None:
        """Let a later `aclose` close at once: nobody is there to say goodbye to."""
        return

    async def send(self, value: SignalingMessage) -> None:
        """Send a message; waits while the carrier is behind.

        Raises:
          TransportError: if the connection has ended.
          trio.ClosedResourceError: if this side closed it.
        """
        await self._send_text(encode_signaling(value))

    async def receive(self) -> SignalingMessage:
        """The next message of a known type.

        Raises:
          trio.EndOfChannel: if the service closed the connection in peace.
          TransportError: if the connection failed, or the other side is no signaling service.
          trio.ClosedResourceError: if this side closed it.
        """
        while True:
            message = self._read(await self._receive_text())
            if message is not None:
                return message

    @abc.abstractmethod
    async def _send_text(self, text: str) -> None: ...

    @abc.abstractmethod
    async def _receive_text(self) -> str | bytes: ...

    def _read(self, text: str | bytes) -> SignalingMessage | None:
        try:
            message = decode_signaling(text)
        except RemoteProtocolError as error:
            # A service relays what it does not check, so one malformed message may be another peer's doing: that must
            # not cost us the service. What is no message at all comes from something that is no signaling service.
            if not _has_a_type(text):
                raise TransportError(f"{self.address} sends no signaling messages: is it the right address?") from error
            self._skip(str(error))
            return None
        if isinstance(message, Unknown):
            self._skip("a message of unknown type")
            return None
        return message

    def _skip(self, what: str) -> None:
        self.skipped += 1
        logger.debug("%s: skipped %s", self.address, what)


def ending(address: str, code: int, reason: str | None) -> TransportError | trio.EndOfChannel:
    """What `receive` raises once the connection has ended with a WebSocket close code."""
    if code in GRACEFUL_CODES:
        return trio.EndOfChannel(f"{address} closed the connection")
    if code == NO_GOODBYE:
        return TransportError(f"lost {address}: the connection ended without a word; is the server still running?")
    why = f": {reason!r:.150}" if reason else ""  # the other side's words, so quoted
    return TransportError(f"{address} closed the connection with code {code}{why}")


class _Tagged(msgspec.Struct):
    type: str


def _has_a_type(text: str | bytes) -> bool:
    try:
        msgspec.json.decode(text, type=_Tagged)
    except (msgspec.DecodeError, UnicodeError):
        return False
    except RecursionError:
        return True  # nested too deep to tell
    return True
