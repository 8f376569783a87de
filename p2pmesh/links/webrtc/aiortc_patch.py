"""aiortc made robust and fast from outside: re-classes the ICE connection, DTLS and SCTP (`sctp_patch`) of a link.

Each override does one thing, says why, and leaves the rest to aiortc's own method. What is overridden are internals of
aiortc 1.14 to 1.16 and aioice 0.10: `known()` checks that they are there; otherwise aiortc serves as it is.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, Final, cast

import aioice.ice
import aiortc
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcdtlstransport import State as DtlsState
from aiortc.rtcsctptransport import DataChunk, InboundStream, RTCSctpTransport
from OpenSSL import SSL

from p2pmesh.links.webrtc.eager_coroutine import start_now
from p2pmesh.links.webrtc.event_loop import RECEIVE_BUFFER, DatagramTransport
from p2pmesh.links.webrtc.sctp_patch import SctpTransport

logger: Final = logging.getLogger(__name__)

LARGEST_PACKET = 1500
"""Bytes of a DTLS datagram, as in aiortc."""
PACE = 0.02
"""Seconds between ICE checks, as in aioice; RFC 8445's Ta is 50 ms, and at least 5."""
LOOPBACK = "127.0.0.1"
MAX_WAITING_DATAGRAMS = 4096
"""Datagrams that may wait for DTLS. It is quick: more than this is a flood, and from anybody at all."""


class IceConnection(aioice.ice.Connection):
    """aioice's connection, which also works without a network, and goes on as soon as it is connected."""

    dtls: DtlsTransport | None = None
    """Takes datagrams as they come, while none waits."""

    async def get_component_candidates(
        self, component: int, addresses: list[str], *args: Any, **kwargs: Any
    ) -> list[aioice.Candidate]:
        """Gather; on a machine with no address but loopback, gather that, so that its processes can connect."""
        if not addresses and not self._is_relay_only():
            addresses = [LOOPBACK]
        candidates = await super().get_component_candidates(component, addresses, *args, **kwargs)
        for protocol in self._protocols:
            self._divert(protocol)
        return candidates

    def _is_relay_only(self) -> bool:
        return self._transport_policy is not aioice.TransportPolicy.ALL

    def _divert(self, protocol: aioice.ice.StunProtocol) -> None:
        """Take DTLS past the STUN parser, which fails on it by an exception; and no more than we can hold."""
        transport = cast("object", protocol.transport)
        if not isinstance(transport, DatagramTransport):
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        queue, component = self._queue, protocol.local_candidate.component
        context = copy_context()  # that of the connection, which owns what is started there

        def received(data: bytes, address: tuple[Any, ...]) -> None:
            if not 19 < data[0] < 64:  # RFC 7983
                protocol.datagram_received(data, address)
                return
            packet = self.dtls.decrypted(data) if self.dtls is not None and queue.empty() else None
            if packet is not None:
                start_now(packet, context)
            elif queue.qsize() < MAX_WAITING_DATAGRAMS:
                queue.put_nowait((data, component))

        transport.divert(received)

    _is_nominated: asyncio.Future[None] | None = None

    async def connect(self) -> None:
        """Connect; aioice would sleep out 20 ms after each check, also when it has succeeded long before."""
        if self._local_candidates_end and self.remote_username is not None and self.remote_password is not None:
            await self._check_pairs()
        await super().connect()

    async def _check_pairs(self) -> None:
        """What `connect` begins with, in a pace that success interrupts. It finds all that done and returns at once."""
        for remote_candidate in self._remote_candidates:
            self._pair_remote_candidate(remote_candidate)
        self.sort_check_list()
        self._unfreeze_initial()
        self._early_checks_done = True
        while self._early_checks:
            self.check_incoming(*self._early_checks.popleft())
        self._is_nominated = asyncio.get_running_loop().create_future()
        while self._check_periodic():
            await asyncio.wait([self._is_nominated], timeout=PACE)

    def _check_list_maybe_complete(self) -> bool:
        is_complete = super()._check_list_maybe_complete()
        if is_complete and self._is_nominated is not None and not self._is_nominated.done():
            self._is_nominated.set_result(None)
        return is_complete

    async def get_event(self) -> aioice.ice.ConnectionEvent | None:
        """As aioice's; but aiortc asks again for ever, without a pause, when the answer is that all is over already."""
        return aioice.ice.ConnectionClosed() if self._closed else await super().get_event()


class DtlsTransport(RTCDtlsTransport):
    """aiortc's DTLS, taking datagrams as they come: a task that waits for each costs as much as to decrypt it."""

    def decrypted(self, datagram: bytes) -> Coroutine[Any, Any, None] | None:
        """What is left to do for a datagram with the peer's data; None for any other, which is aiortc's to look at.

        Looking at it twice does no harm: DTLS drops what it has seen, and stays closed once it is.
        """
        receiver, ssl = self._data_receiver, self._ssl
        if receiver is None or ssl is None or not self._is_settled():
            return None
        ssl.bio_write(datagram)
        try:
            data = ssl.recv(LARGEST_PACKET)
        except SSL.Error:
            return None
        return receiver._handle_data(data)

    def _is_settled(self) -> bool:
        """Connected, and with no flight of the handshake to send again."""
        is_done = self.encrypted and getattr(self, "_RTCDtlsTransport__handshake_done", True)
        return self._state is DtlsState.CONNECTED and is_done


def tune(connection: aiortc.RTCPeerConnection) -> None:
    """Re-class the parts of a connection that has its data channel transport but has not gathered candidates yet."""
    if not known() or connection.sctp is None:
        return
    ice = cast("Any", connection.sctp.transport.transport)._connection
    if type(ice) is aioice.ice.Connection and type(connection.sctp) is RTCSctpTransport:
        ice.__class__ = IceConnection
        connection.sctp.__class__ = SctpTransport
        cast("SctpTransport", connection.sctp).tune()
    if type(connection.sctp.transport) is RTCDtlsTransport:
        connection.sctp.transport.__class__ = DtlsTransport
        ice.dtls = connection.sctp.transport


_ICE_METHODS = {
    "get_component_candidates": ["self", "component", "addresses", "timeout"],
    "connect": ["self"],
    "_pair_remote_candidate": ["self", "remote_candidate"],
    "sort_check_list": ["self"],
    "_unfreeze_initial": ["self"],
    "check_incoming": ["self", "message", "addr", "protocol"],
    "_check_periodic": ["self"],
    "_check_list_maybe_complete": ["self"],
    "get_event": ["self"],
}
_ICE_STATE = (
    "_local_candidates_end",
    "_remote_candidates",
    "_early_checks",
    "_early_checks_done",
    "_check_list_done",
    "_queue",
    "_protocols",
    "_closed",
    "_transport_policy",
)
_SCTP_METHODS = {
    "_receive_data_chunk": ["self", "chunk"],
    "_mark_received": ["self", "tsn"],
    "_send_sack": ["self"],
    "_flight_size_increase": ["self", "chunk"],
    "_update_rto": ["self", "R"],
    "_receive_sack_chunk": ["self", "chunk"],
    "_abort": ["self"],
    "_send_chunk": ["self", "chunk"],
    "_set_state": ["self", "state"],
    "_data_channel_flush": ["self"],
    "_data_channel_send": ["self", "channel", "data"],
    "_transmit": ["self"],
    "_t3_start": ["self"],
    "_t3_restart": ["self"],
    "_t3_cancel": ["self"],
    "_t3_expired": ["self"],
    "_handle_data": ["self", "data"],
}
_SCTP_STATE = (
    "_last_received_tsn",
    "_advertised_rwnd",
    "_sack_misordered",
    "_sack_duplicates",
    "_sack_needed",
    "_cwnd",
    "_flight_size",
    "_fast_recovery_exit",
    "_sent_queue",
    "_outbound_queue",
    "_data_channel_queue",
    "_association_state",
    "_forward_tsn_chunk",
    "_t3_handle",
    "_rto",
)
_DTLS_METHODS = {"_recv_next": ["self"], "_send_data": ["self", "data"]}
_DTLS_STATE = ("_ssl", "_state", "_data_receiver", "encrypted")


def lacks() -> list[str]:
    """Internals that we rely on and that this aiortc does not have."""
    missing = []
    for cls, methods, state in (
        (aioice.ice.Connection, _ICE_METHODS, _ICE_STATE),
        (RTCSctpTransport, _SCTP_METHODS, _SCTP_STATE),
        (RTCDtlsTransport, _DTLS_METHODS, _DTLS_STATE),
    ):
        for name, parameters in methods.items():
            method = getattr(cls, name, None)
            if method is None or list(inspect.signature(method).parameters) != parameters:
                missing.append(f"{cls.__name__}.{name}")
        names = set(cls.__init__.__code__.co_names)
        missing += [f"{cls.__name__}.{name}" for name in state if name not in names]
    if not hasattr(InboundStream, "pop_messages") or not hasattr(DataChunk, "__bytes__"):
        missing.append("InboundStream")
    return missing


_missing: list[str] | None = None


def known() -> bool:
    """Whether this aiortc is one that we know; said once if it is not."""
    global _missing
    if _missing is None:
        _missing = lacks()
        if _missing:
            logger.warning("this version of aiortc is not known, links will be slower: no %s", ", ".join(_missing))
    return not _missing
