"""Everything the library raises: one tree under `MeshError`.

Each message names the cause and the way out in one line. Ordinary calls raise these plainly, never in a group.
"""

from __future__ import annotations

__all__ = [
    "BlockListError",
    "ConfigError",
    "IdentityError",
    "InvalidPayload",
    "InvalidPeerId",
    "JoinRefused",
    "KeyFull",
    "LocalProtocolError",
    "MeshClosed",
    "MeshError",
    "PayloadTooLarge",
    "PeerBusy",
    "PeerRefused",
    "PeerUnreachable",
    "RemoteProtocolError",
    "TransportError",
    "TransportUnavailable",
]


class MeshError(Exception):
    """Base of all errors of this library."""


class ConfigError(MeshError, ValueError):
    """An option or a combination of options makes no sense; the message names the option and its range."""


class InvalidPeerId(MeshError, ValueError):
    """A peer id is not 40 lower-case hexadecimal digits."""


class IdentityError(MeshError):
    """An identity file can't be read, is not an Ed25519 key, or may be read by others."""


class BlockListError(MeshError):
    """A block list is full, damaged, or can't be read or written."""


class InvalidPayload(MeshError, TypeError):
    """A payload is neither bytes nor something JSON can carry."""


class PayloadTooLarge(MeshError, ValueError):
    """A payload is larger than `MeshConfig.max_payload`; nothing was sent."""


class PeerUnreachable(MeshError):
    """No route leads to a peer, it does not answer, or it does not take what was sent."""


class PeerBusy(PeerUnreachable):
    """The peer is there, but its application did not make room for a message in time: try again later."""


class PeerRefused(PeerUnreachable):
    """The peer does not take what was sent, now or later: trying again is of no use. The message says what and why."""


class KeyFull(PeerRefused):
    """As many publishers as may share a key of the DHT have a value under it: take another key, or one of your own."""


class MeshClosed(MeshError):
    """The mesh was left; open a new one."""


class TransportError(MeshError):
    """One signaling transport failed: it is retried, with back-off, for as long as the mesh lives."""


class TransportUnavailable(MeshError):
    """None of the signaling services could be joined when the mesh was opened."""


class JoinRefused(TransportUnavailable):
    """They answered, and each refused us: bad token, id taken, room or server full."""


class RemoteProtocolError(MeshError):
    """A peer or a server sent what the protocol forbids; its link is closed, the mesh goes on."""


class LocalProtocolError(MeshError):
    """This process asked for what the protocol forbids: a bug in the caller, or in this library."""
