"""To which addresses ICE sends anything."""

from __future__ import annotations

import ipaddress
from typing import Any

import aioice.ice
import pytest

from p2pmesh import ConfigError, LinkConfig
from p2pmesh.links.webrtc import address_policy
from p2pmesh.links.webrtc.address_policy import (
    CHECKS,
    CHECKS_OF_HOST,
    CHECKS_PER_SECOND,
    MAX_HOSTS,
    MAX_TAKEN,
    AddressPolicy,
    CheckBudget,
)
from p2pmesh.wire.messages import IceCandidate


def candidate(host: str, port: int = 40_000, kind: Any = "host") -> IceCandidate:
    return IceCandidate(address=ipaddress.ip_address(host).packed, port=port, kind=kind)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ["192.168.1.9/24", "169.254.3.4/16", "fd00::9/64", "127.0.0.1/8"]
    monkeypatch.setattr(address_policy, "_interfaces", lambda: [ipaddress.ip_interface(one) for one in own])
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: [one.partition("/")[0] for one in own[:3]])


def takes(host: str, *, local: str = "192.168.1.9", port: int = 40_000, **options: Any) -> bool:
    return AddressPolicy(LinkConfig(**options), local=[local]).takes(candidate(host, port))


@pytest.mark.parametrize("host", ["192.168.1.7", "10.0.0.1", "198.51.100.7", "2001:db8::1", "fd00::7", "169.254.9.9"])
def test_addresses_that_may_be_a_peers_are_taken(host: str) -> None:
    assert takes(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "0.0.0.0",
        "0.1.2.3",
        "255.255.255.255",
        "240.0.0.1",
        "192.168.1.255",
        "169.254.255.255",
        "224.0.0.251",
        "239.1.1.1",
        "ff02::1",
        "::",
        "::ffff:224.0.0.1",
    ],
)
def test_others_are_not(host: str) -> None:
    assert not takes(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_is_where_the_service_or_nothing_else_is_there(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert takes(host, local="127.0.0.1")
    assert takes(host, local="::1")
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: [])
    assert takes(host)


@pytest.mark.parametrize("port", [1, 53, 443, 1023])
def test_ports_of_the_system_are_not_knocked_at(port: int) -> None:
    assert not takes("198.51.100.7", port=port)
    assert takes("198.51.100.7", port=1024)


def test_the_application_may_name_networks_or_decide_itself() -> None:
    assert takes("10.1.2.3", allow_addresses=("10.0.0.0/8",))
    assert not takes("192.168.1.7", allow_addresses=("10.0.0.0/8",))
    assert takes("127.0.0.1", allow_addresses=("127.0.0.0/8",))
    assert not takes("224.0.0.1", allow_addresses=("0.0.0.0/0",))
    assert takes("::1", allow_addresses=lambda address: address.version == 6)
    assert not takes("10.1.2.3", allow_addresses=lambda address: address.version == 6)
    assert not takes("10.1.2.3", allow_addresses=())


@pytest.mark.parametrize("bad", ["10.0.0.0/99", ["here"], 5, [None]])
def test_what_is_no_network_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"LinkConfig\.allow_addresses"):
        LinkConfig(allow_addresses=bad)


def test_of_many_candidates_a_few_of_each_kind_are_taken() -> None:
    hosts = [candidate(f"10.0.0.{number}") for number in range(1, 31)]
    others = [candidate("198.51.100.7", kind="srflx"), candidate("198.51.100.8", kind="relay")]
    policy = AddressPolicy(LinkConfig())
    chosen = policy.choose([*hosts, *others])
    assert chosen == (*hosts[: MAX_TAKEN - 2], *others)
    assert policy.choose(hosts) == tuple(hosts[:MAX_TAKEN])
    many = [candidate("198.51.100.7", 40_000 + number, "srflx") for number in range(30)]
    assert policy.choose([*hosts, *many]) == (*hosts[:MAX_HOSTS], *many[: MAX_TAKEN - MAX_HOSTS])
    assert policy.choose([candidate("127.0.0.1"), *hosts[:2], hosts[0]]) == tuple(hosts[:2])


def test_few_checks_go_to_a_host_that_does_not_answer_and_not_many_to_all() -> None:
    budget = CheckBudget(0.0)
    assert sum(budget.take("198.51.100.7", port, 0.0) for port in range(100)) == CHECKS_OF_HOST
    taken = sum(budget.take(f"10.0.{number}.1", 5000, 0.0) for number in range(100))
    assert 0 < taken <= CHECKS - CHECKS_OF_HOST
    assert not budget.take("203.0.113.1", 5000, 0.0)
    assert sum(budget.take(f"10.1.{number}.1", 5000, 10.0) for number in range(100)) == 10 * CHECKS_PER_SECOND


def test_whoever_answers_costs_nothing() -> None:
    budget = CheckBudget(0.0)
    for number in range(20 * CHECKS):
        host = f"10.{number // 250}.{number % 250}.1"
        assert budget.take(host, 5000, 0.0)
        budget.answered(host, 5000, 0.0)
        assert budget.take(host, 5000, 0.0)
    budget = CheckBudget(0.0)
    for port in range(4 * CHECKS_OF_HOST):  # peers of one machine
        assert budget.take("10.0.0.1", port, 0.0)
        budget.answered("10.0.0.1", port, 0.0)


def test_relay_only_needs_a_relay() -> None:
    for servers in ((), ("stun:stun.example:3478",)):
        with pytest.raises(ConfigError, match=r"relay_only needs a TURN server"):
            LinkConfig(relay_only=True, ice_servers=servers)
    turn = {"urls": "turn:turn.example", "username": "me", "credential": "secret"}
    assert LinkConfig(relay_only=True, ice_servers=[turn]).relay_only
