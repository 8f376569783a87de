"""The signaling server: how peers find each other and exchange their first messages.

Modules, in reading order: `presence` (sans-IO: who is where, and what to tell whom), `rooms`, `requests` (the parser of
what clients send), `config`, `app` (connections, from the first byte to the last), `listening`, `http`, `proxies` and
`addresses` (whom a connection is from), `bans` (whom the owner keeps out), `websocket`,
`metrics`. In: a client's JSON messages. Out: bootstrap peers, relayed messages, errors, `/healthz`, `/metrics`.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from p2pmesh.server.app import SignalingServer, open_signaling_server
    from p2pmesh.server.config import ServerConfig

__all__ = ["ServerConfig", "SignalingServer", "open_signaling_server"]

if not _typing.TYPE_CHECKING:  # ruff: ignore[non-empty-init-module] - `presence` is used without the server, too
    _MODULES = {"ServerConfig": "config", "SignalingServer": "app", "open_signaling_server": "app"}

    def __getattr__(name: str) -> object:
        """Public names of the server, which takes long to import."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
