"""Why a WebSocket service can't be reached, in words that say what to do about it."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator

import trio_websocket

CLOSED_EARLY = "it closed the connection before it answered; is a signaling server at this port?"
NO_WEBSOCKET = "it does not speak WebSocket; is this the right port, and ws:// or wss:// the right scheme?"
TOO_MUCH = "it answers with more than a WebSocket handshake can have; is a signaling server at this port?"

_ADVICE = {
    errno.ECONNREFUSED: "connection refused; is the server running? start one with: p2pmesh serve",
    errno.ETIMEDOUT: "no answer; is the server running, and no firewall between?",
    errno.ENETUNREACH: "no network leads there; is this machine online?",
    errno.EHOSTUNREACH: "no route to that machine; is it online, and the address right?",
}
_STATUS_ADVICE = {
    401: "; it wants a user name and password, or a token",
    403: "; it does not let us in: is a token or header missing?",
    404: "; no signaling service has this path",
    426: "; it does not take WebSocket connections here",
    429: "; too many connections from here: try later",
    503: "; it is full or shutting down: try later",
}


def why_unreachable(error: OSError) -> str:
    """Of `trio.open_tcp_stream`, which hides the causes of each address it tried in the cause."""
    if isinstance(error, socket.gaierror):
        return "no such host; is the name right, and this machine online?"
    codes = {leaf.errno for leaf in _leaves(error) if isinstance(leaf, OSError)}
    for code, advice in _ADVICE.items():
        if code in codes:
            return advice
    known = sorted(code for code in codes if code is not None)
    return os.strerror(known[0]).lower() if known else "no connection"


def why_no_tls(error: BaseException) -> str:
    """Of a TLS handshake that failed."""
    cause = error.__cause__ or error.__context__
    match cause:
        case ssl.SSLCertVerificationError():
            return (
                f"its certificate is not trusted ({cause.verify_message.rstrip('.')}); "
                "pass an ssl_context that trusts it, or set SSL_CERT_FILE"
            )
        case ssl.SSLError(reason=str(reason)) if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
            return "it does not speak TLS; did you mean ws://?"
        case ssl.SSLError(reason=str(reason)):
            return f"the TLS handshake failed ({reason.lower().replace('_', ' ')})"
        case _:
            return "it closed the connection during the TLS handshake; did you mean ws://?"


def why_rejected(error: BaseException) -> str:
    """Of an answer to the WebSocket handshake."""
    for leaf in _leaves(error):
        if isinstance(leaf, trio_websocket.ConnectionRejected):
            status = leaf.status_code
            moved = "; it has moved: use its new address" if 300 <= status < 400 else ""
            return f"it answered HTTP {status}{_STATUS_ADVICE.get(status, moved)}"
    return NO_WEBSOCKET


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    match error:
        case None:
            return
        case BaseExceptionGroup():
            for inner in error.exceptions:
                yield from _leaves(inner)
        case _:
            yield error
            yield from _leaves(error.__cause__)
