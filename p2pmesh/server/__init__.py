"""The signaling server: how peers find each other and exchange their first messages."""

from __future__ import annotations

from p2pmesh.server.app import SignalingServer, open_signaling_server
from p2pmesh.server.config import ServerConfig

__all__ = ["ServerConfig", "SignalingServer", "open_signaling_server"]
