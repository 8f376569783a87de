"""Addresses of clients: as text, as what limits count, as the networks that an owner trusts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from p2pmesh.errors import ConfigError
from p2pmesh.protocols.util.limits import RateLimiter

Address: TypeAlias = IPv4Address | IPv6Address

UNKNOWN: Final = "unknown"
"""What clients count for whose address can't be told."""


class Networks:
    """Addresses and networks, as their owner wrote them down.

    Raises:
      ConfigError: if one is neither an address nor a network.
    """

    def __init__(self, names: Iterable[str], what: str = "networks") -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        for name in names:
            try:
                self._networks.append(ip_network(name.strip()))
            except ValueError:
                raise ConfigError(f"{what} are IP addresses or networks such as 10.0.0.0/8, not {name!r:.60}") from None

    def __contains__(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def read_address(text: str) -> Address | None:
    """An IP address as sockets and proxies write it: maybe in brackets, with a port, with a scope. None for others."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def counted_as(address: Address | None) -> str:
    """What a client counts for where addresses have limits: an IPv6 customer has at least a /64 to choose from."""
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return UNKNOWN if address is None else str(address)


def network_of(counted: str) -> str:
    """The network that a client is from, of what it counts for: of IPv4 its /24, which one customer may have all of."""
    address = read_address(counted)
    return str(ip_network((address, 24), strict=False)) if isinstance(address, IPv4Address) else counted


class Places:
    """How many connections there are, in all and from each address, and how fast new ones come from each."""

    def __init__(self, limit: int, per_address: int, rates: RateLimiter) -> None:
        self._limit = limit
        self._per_address = per_address
        self._rates = rates
        self._addresses: Counter[str] = Counter()
        self.taken: int = 0

    def take(self, address: str, now: float | None) -> bool:
        """Let a connection from this address have a place. One that comes `now` counts where they come too fast."""
        if self.taken >= self._limit or self._addresses[address] >= self._per_address:
            self._tidy(address)
            return False
        if now is not None and not self._rates.take(address, now):
            self._tidy(address)
            return False
        self.taken += 1
        self._addresses[address] += 1
        return True

    def free(self, address: str) -> None:
        """A connection that had a place is gone."""
        self.taken -= 1
        self._addresses[address] -= 1
        self._tidy(address)

    def _tidy(self, address: str) -> None:
        if not self._addresses[address]:
            del self._addresses[address]
