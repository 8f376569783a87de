"""What a signaling transport is: a way to bring messages to a signaling service and back. Nothing more.

Joining, re-joining, choosing among several transports and retrying a lost one is the work of the signaling core
(`p2pmesh.protocols.signaling.signaling`) and of the runtime, the same for every transport. So a transport only opens
connections: channels of typed signaling messages.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeAlias

import trio
from attrs import frozen

from p2pmesh.checks import checked, instance, text_field, unshown
from p2pmesh.wire.signaling import SignalingMessage

Connection: TypeAlias = trio.abc.Channel[SignalingMessage]
"""An open connection to a signaling service.

`receive` raises `trio.EndOfChannel` when the service closed it and `TransportError` when it failed or sent garbage;
`send` raises `TransportError` when it can't be sent. Messages of unknown type are skipped.
"""


class Transport(abc.ABC):
    """One signaling service, and how to reach it. Holds no connection itself, so it can be opened again and again."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Tells the transports of one mesh apart, in events, logs and snapshots."""

    @abc.abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Open a connection; leaving the block closes it. Has no time-out of its own.

        Raises:
          TransportError: if the service can't be reached; the text says why and what to do.
        """


@frozen
class TransportConfig:
    """Names a kind of transport and its options: `TransportConfig("websocket", options={"url": "ws://..."})`."""

    name: str = text_field()
    """A registered kind: `p2pmesh.transports.registry.names()`."""
    id: str | None = text_field(None)
    """Tells two of a kind apart; made from name and URL if left out."""
    options: Mapping[str, Any] = checked(partial(instance, kind=Mapping), factory=dict, repr=unshown)


TransportLike: TypeAlias = str | TransportConfig | Transport
"""What `open_mesh` takes: a URL, a config, or a transport object."""
