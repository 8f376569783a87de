"""Whom the owner of a server keeps out: bans of ids and networks, kept in a file if there is one, and allow lists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

from p2pmesh.errors import ConfigError
from p2pmesh.keyspace import PeerId, is_peer_id
from p2pmesh.server.addresses import Address, Networks
from p2pmesh.server.config import ServerConfig


def ban_of(peer_id: str | None, address: str | None) -> str:
    """What a ban says: an id, or an address or network as `ipaddress` writes it.

    Raises:
      ConfigError: if it is not exactly one of the two, or is malformed.
    """
    if (peer_id is None) == (address is None):
        raise ConfigError("name a peer_id or an address, one of them")
    if peer_id is not None:
        if not is_peer_id(peer_id):
            raise ConfigError(f"peer_id must be 40 lower-case hexadecimal digits, not {peer_id!r:.60}")
        return peer_id
    try:
        return str(ip_network(address or "", strict=False))
    except ValueError:
        raise ConfigError(
            f"address must be an IP address or a network such as 10.0.0.0/8, not {address!r:.60}"
        ) from None


class Bans:
    """Who may not be here.

    Args:
      config: with `allow_ids` and `allow_networks`.
      path: of a file with a ban on each line, read now and written at each change; None keeps them in memory.

    Raises:
      ConfigError: if the file holds something else.
      OSError: if it can't be read.
    """

    def __init__(self, config: ServerConfig, path: str | os.PathLike[str] | None = None) -> None:
        self._allowed_ids = frozenset(config.allow_ids)
        self._allowed_networks = Networks(config.allow_networks) if config.allow_networks else None
        self._path = None if path is None else Path(path)
        self._bans: dict[str, None] = {}
        self.turned_away: int = 0
        if self._path is not None and self._path.exists():
            lines = [line.strip() for line in self._path.read_text("utf-8").splitlines()]
            for line in filter(None, lines):
                self._bans[ban_of(line, None) if is_peer_id(line) else ban_of(None, line)] = None
        self._networks = self._of_networks()

    def __iter__(self) -> Iterator[str]:
        return iter(self._bans)

    def add(self, ban: str) -> None:
        """Keep an id or a network out.

        Raises:
          OSError: if the file can't be written; the ban holds all the same.
        """
        self._bans[ban] = None
        self._changed()

    def remove(self, ban: str) -> bool:
        """Let it in again. Whether it was kept out.

        Raises:
          OSError: if the file can't be written; the ban is lifted all the same.
        """
        was_banned = ban in self._bans
        self._bans.pop(ban, None)
        self._changed()
        return was_banned

    def may_join(self, peer: PeerId) -> bool:
        """Whether this id may be in a room."""
        may = peer not in self._bans and (not self._allowed_ids or peer in self._allowed_ids)
        self.turned_away += not may
        return may

    def may_connect(self, address: Address | None) -> bool:
        """Whether somebody may connect from there."""
        allowed = self._allowed_networks is None or address in self._allowed_networks
        may = allowed and address not in self._networks
        self.turned_away += not may
        return may

    def _changed(self) -> None:
        self._networks = self._of_networks()
        if self._path is not None:
            new = self._path.with_name(f"{self._path.name}.new")
            new.write_text("".join(f"{ban}\n" for ban in self._bans), "utf-8")
            new.replace(self._path)

    def _of_networks(self) -> Networks:
        return Networks(ban for ban in self._bans if not is_peer_id(ban))
