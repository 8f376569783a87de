"""aiortc made robust and fast from outside: re-classes ICE (`ice_patch`), DTLS and SCTP (`sctp_patch`) of a link.

Each override does one thing, says why, and leaves the rest to aiortc's own method. What is overridden are internals of
aiortc 1.16 and aioice 0.13: `known()` checks that they are there; otherwise aiortc serves as it is.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Coroutine
from typing import Any, Final, cast

import aioice.ice
import aioice.turn
import aiortc
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcdtlstransport import State as DtlsState
from aiortc.rtcsctptransport import DataChunk, InboundStream, RTCSctpTransport
from OpenSSL import SSL

from p2pmesh.links.webrtc.event_loop import LinkLoop
from p2pmesh.links.webrtc.ice_patch import IceConnection
from p2pmesh.links.webrtc.sctp_patch import SctpTransport
from p2pmesh.links.webrtc.server_pool import Gathering

logger: Final = logging.getLogger(__name__)

LARGEST_PACKET = 1500
"""Bytes of a DTLS datagram, as in aiortc."""


class DtlsTransport(RTCDtlsTransport):
    """aiortc's DTLS, taking datagrams as they come: a task that waits for each costs as much as to decrypt it."""

    def decrypted(self, datagram: bytes) -> Coroutine[Any, Any, None] | None:
        """What is left to do for a datagram with the peer's data; None for any other, which is aiortc's to look at.

        It is not guarded against what a malformed packet makes of it: `start_guarded` is. Looking at it twice does no
        harm: DTLS drops what it has seen, and stays closed once it is.
        """
        receiver, ssl = self._data_receiver, self._ssl
        if receiver is None or ssl is None or not self._is_settled():
            return None
        ssl.bio_write(datagram)
        try:
            data = ssl.recv(LARGEST_PACKET)
        except SSL.Error:
            return None
        return RTCSctpTransport._handle_data(cast("RTCSctpTransport", receiver), data)

    def _is_settled(self) -> bool:
        """Connected, and with no flight of the handshake to send again."""
        is_done = self.encrypted and getattr(self, "_RTCDtlsTransport__handshake_done", True)
        return self._state is DtlsState.CONNECTED and is_done


def tune(
    connection: aiortc.RTCPeerConnection, loop: LinkLoop, gathering: Gathering, *, relay_only: bool = False
) -> IceConnection | None:
    """Re-class the parts of a connection that has its data channel transport but has not gathered candidates yet.

    Gives its ICE agent; None if aiortc serves as it is.
    """
    if not known() or connection.sctp is None:
        return None
    stock = cast("Any", connection.sctp.transport.transport)._connection
    if type(stock) is not aioice.ice.Connection or type(connection.sctp) is not RTCSctpTransport:
        return None
    stock.__class__ = IceConnection
    ice = cast("IceConnection", stock)
    ice.loop, ice.gathering = loop, gathering
    if relay_only:
        ice._transport_policy = aioice.ice.TransportPolicy.RELAY
    connection.sctp.__class__ = SctpTransport
    cast("SctpTransport", connection.sctp).tune(loop)
    if type(connection.sctp.transport) is RTCDtlsTransport:
        connection.sctp.transport.__class__ = DtlsTransport
        ice.dtls = cast("DtlsTransport", connection.sctp.transport)
    return ice


_ICE_METHODS = {
    "get_component_candidates": ["self", "component", "addresses", "timeout"],
    "connect": ["self"],
    "_pair_remote_candidate": ["self", "remote_candidate"],
    "sort_check_list": ["self"],
    "_unfreeze_initial": ["self"],
    "check_incoming": ["self", "message", "addr", "protocol"],
    "_check_periodic": ["self"],
    "check_start_task": ["self", "pair"],
    "check_start": ["self", "pair"],
    "_check_list_maybe_complete": ["self"],
    "_check_list_maybe_fail": ["self"],
    "_remote_candidates_expected": ["self"],
    "get_event": ["self"],
    "data_received": ["self", "data", "component"],
    "close": ["self"],
}
_ICE_STATE = (
    "_local_candidates",
    "_check_list",
    "_closing",
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
_TURN_METHODS = {"_connect": ["self", "protocol"], "__init__": ["self", "inner_protocol"]}
_TURN_CLIENT_METHODS = {
    "__init__": ["self", "server", "username", "password", "lifetime", "channel_refresh_time"],
    "datagram_received": ["self", "data", "addr"],
}
_TURN_STREAM_METHODS = {"data_received": ["self", "data"]}
_STUN_METHODS = {"request": ["self", "request", "addr", "integrity_key", "retransmissions"]}
_DTLS_METHODS = {"_recv_next": ["self"], "_send_data": ["self", "data"]}
_DTLS_STATE = ("_ssl", "_state", "_data_receiver", "encrypted")


def lacks() -> list[str]:
    """Internals that we rely on and that this aiortc does not have."""
    missing = []
    for cls, methods, state in (
        (aioice.ice.Connection, _ICE_METHODS, _ICE_STATE),
        (RTCSctpTransport, _SCTP_METHODS, _SCTP_STATE),
        (RTCDtlsTransport, _DTLS_METHODS, _DTLS_STATE),
        (aioice.turn.TurnTransport, _TURN_METHODS, ()),
        (aioice.turn.TurnClientMixin, _TURN_CLIENT_METHODS, ()),
        (aioice.turn.TurnStreamMixin, _TURN_STREAM_METHODS, ()),
        (aioice.ice.StunProtocol, _STUN_METHODS, ()),
    ):
        for name, parameters in methods.items():
            method = getattr(cls, name, None)
            if method is None or list(inspect.signature(method).parameters) != parameters:
                missing.append(f"{cls.__name__}.{name}")
        names = set(cls.__init__.__code__.co_names) if state else set()
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
            logger.warning(
                "this version of aiortc is not known, links will be slower and use no ICE servers: no %s",
                ", ".join(_missing),
            )
    return not _missing
