"""To which addresses ICE sends anything: what is taken of a peer's candidates, and how much goes unanswered.

Whoever makes an offer names addresses, and a check is sent to each: without bounds any peer could have others knock at
ports of third parties, or of services in their own network (RFC 8445, section 19.5.1, and RFC 8828).

State: the addresses that answered last (`REMEMBERED`), and one rate for as many that did not.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import aioice.ice
import ifaddr
import trio

from p2pmesh.config import IPAddress, LinkConfig
from p2pmesh.protocols.util.limits import LruTable, RateLimiter, TokenBucket
from p2pmesh.wire.messages import IceCandidate

MAX_TAKEN: Final = 8
"""Candidates of one peer that are taken, trickled ones included: its own of both families, servers' views, a relay."""
MAX_HOSTS: Final = 5
"""Of these, local addresses of the peer as long as it names others: a machine has many, and few lead anywhere."""
FIRST_PORT: Final = 1024
"""Below it there are services of the system, and no peers."""
CHECKS, CHECKS_PER_SECOND = 64, 4.0
"""Checks at once, and in the long run, of one process that went to addresses which never answered: a peer behind a
router has four of them for each attempt, and a mesh at rest makes none."""
CHECKS_OF_HOST, CHECKS_OF_HOST_PER_SECOND = 8, 0.1
"""Likewise to one host that never answered from any port."""
REMEMBERED: Final = 1024
"""Addresses that answered, and hosts that did not."""

Predicate: TypeAlias = Callable[[IPAddress], bool]

_RESERVED: Final = tuple(map(ipaddress.ip_network, ("0.0.0.0/8", "240.0.0.0/4", "::/128", "ff00::/8", "224.0.0.0/4")))


class AddressPolicy:
    """Which candidates of a peer are taken: as `LinkConfig.allow_addresses` says."""

    def __init__(self, config: LinkConfig, *, local: Iterable[str] = ()) -> None:
        """Make one for an attempt.

        Args:
          config: with `allow_addresses`.
          local: addresses of ours that lead to our services.
        """
        self._allow = config.allow_addresses
        self._own = _interfaces()
        leading = [ipaddress.ip_address(address.partition("%")[0]) for address in local]
        self._is_on_loopback = any(one.is_loopback for one in leading) or _has_loopback_only()

    def takes(self, candidate: IceCandidate) -> bool:
        """Whether anything is sent to this candidate; names of browsers are not looked up."""
        if len(candidate.address) not in {4, 16} or candidate.port < FIRST_PORT:
            return False
        address = ipaddress.ip_address(candidate.address)
        address = getattr(address, "ipv4_mapped", None) or address
        if any(address in network for network in _RESERVED) or self._is_broadcast(address):
            return False
        return self._is_near(address) if self._allow is None else self._is_allowed(address)

    def _is_allowed(self, address: IPAddress) -> bool:
        if callable(self._allow):
            return bool(self._allow(address))
        return any(address in network for network in self._allow or ())

    def _is_near(self, address: IPAddress) -> bool:
        if address.is_loopback:
            return self._is_on_loopback
        if address.is_link_local:
            return any(address in one.network for one in self._own)
        return True

    def _is_broadcast(self, address: IPAddress) -> bool:
        networks = (one.network for one in self._own if one.version == 4 and one.network.prefixlen < 31)
        return any(address == network.broadcast_address for network in networks)

    def choose(self, candidates: Iterable[IceCandidate], most: int = MAX_TAKEN) -> tuple[IceCandidate, ...]:
        """Those of a description that are taken, in their order."""
        usable = [one for one in dict.fromkeys(candidates) if self.takes(one)]
        others = sum(one.kind != "host" for one in usable)
        hosts = max(MAX_HOSTS, MAX_TAKEN - others)
        kept = [one for rank, one in enumerate(sorted(usable, key=_is_other)) if _is_other(one) or rank < hosts]
        return tuple(one for one in usable if one in kept[:most])


def _is_other(candidate: IceCandidate) -> bool:
    return candidate.kind != "host"


class CheckBudget:
    """How many checks go to addresses that never answered. One for all links of a Trio run."""

    def __init__(self, now: float) -> None:
        self._all = TokenBucket(CHECKS_PER_SECOND, CHECKS, now)
        self._hosts = RateLimiter(REMEMBERED, CHECKS_OF_HOST_PER_SECOND, CHECKS_OF_HOST)
        self._answered = LruTable[None](REMEMBERED)
        self._answered_hosts = LruTable[None](REMEMBERED)

    def take(self, host: str, port: int, now: float) -> bool:
        """Whether a check may go to this address now."""
        if f"{host} {port}" in self._answered:
            return True
        if not self._all.take_if_there(now):
            return False
        if host in self._answered_hosts or self._hosts.take(host, now):
            return True
        self._all.give(now)
        return False

    def has_answered(self, host: str, port: int) -> bool:
        """Whether this address has answered a check before."""
        return f"{host} {port}" in self._answered

    def answered(self, host: str, port: int, now: float) -> None:
        """A check was answered from there, by somebody that knows what only the peer and we know."""
        if f"{host} {port}" not in self._answered:
            self._all.give(now)
        self._answered.put(f"{host} {port}", None)
        self._answered_hosts.put(host, None)


_BUDGET: Final = trio.lowlevel.RunVar[CheckBudget]("p2pmesh check budget")


def check_budget() -> CheckBudget:
    """The budget of this Trio run."""
    try:
        return _BUDGET.get()
    except LookupError:
        budget = CheckBudget(trio.current_time())
        _BUDGET.set(budget)
        return budget


def _has_loopback_only() -> bool:
    """Whether this machine has no other address, as far as ICE is concerned."""
    try:
        addresses = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)
    except OSError:
        return False
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def _interfaces() -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    """Our own addresses, with their networks; none if they can't be listed."""
    found = []
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return []
    for adapter in adapters:
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            found.append(ipaddress.ip_interface(f"{host.partition('%')[0]}/{ip.network_prefix}"))
    return found
