"""ICE servers: every legal form is taken, and what can't work is refused where it is named."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from p2pmesh import open_mesh
from p2pmesh.config import IceServer, LinkConfig
from p2pmesh.errors import ConfigError
from p2pmesh.ice_servers import MAX_URLS, ice_urls_of

KEY = {"username": "ann", "credential": "secret"}


def urls(value: Any) -> list[str]:
    return [str(url) for url in ice_urls_of(LinkConfig(ice_servers=value).ice_servers)]


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("stun:example.org", "stun:example.org:3478"),
        ("stun:example.org:", "stun:example.org:3478"),
        ("STUN:Example.ORG:03479", "stun:example.org:3479"),
        ("stun:192.0.2.1:1", "stun:192.0.2.1:1"),
        ("stun:[2001:db8::1]", "stun:[2001:db8::1]:3478"),
        ("stun:[2001:DB8::1]:65535", "stun:[2001:db8::1]:65535"),
        ("stun:localhost:9", "stun:localhost:9"),
        ("stun:a_b-c.example.", "stun:a_b-c.example.:3478"),
        ("stun:bücher.example", "stun:xn--bcher-kva.example:3478"),
        ("turn:example.org", "turn:example.org:3478?transport=udp"),
        ("turn:example.org:9?transport=tcp", "turn:example.org:9?transport=tcp"),
        ("turn:example.org?transport=UDP", "turn:example.org:3478?transport=udp"),
        ("turn:[::1]:9?transport=tcp", "turn:[::1]:9?transport=tcp"),
        ("turns:example.org", "turns:example.org:5349?transport=tcp"),
        ("TURNS:example.org:443?transport=tcp", "turns:example.org:443?transport=tcp"),
    ],
)
def test_every_legal_form_of_an_address_is_taken(given: str, means: str) -> None:
    assert urls([{"urls": given, **KEY}]) == [means]


@pytest.mark.parametrize(
    "bad",
    [
        "", "example.org", "gopher:example.org", "stun", "stun:", "stun:/example.org", "stun://example.org", " stun:a",
        "stun:a b", "stun:a:b", "stun:a:0", "stun:a:65536", "stun:a:99999", "stun:a:-1", "stun:a:9:9", "stun:a..b",
        "stun:.a", "stun:-a", "stun:" + "a" * 64, "stun:" + "a" * 300, "stun:" + "a.b" * 90, "stun:1.2.3.400",
        "stun:[1.2.3.4]", "stun:[::1", "stun:::1", "stun:[fe80::1%25eth0]", "stun:0.0.0.0", "stun:[::]",
        "stun:224.0.0.1", "stun:user@a", "stun:a?transport=udp", "stun:a#b", "stun:a/b", "stun:a\n", "stuns:a",
        "turns:a?transport=udp",
        "turn:a?transport=tls", "turn:a?transport=", "turn:a?", "turn:a?transport=tcp&x=1", "turn://a", "turn:a:99999",
        "stun:\ud800", "stun:٣.example:٣",
    ],
)  # fmt: skip
def test_an_address_that_cant_work_is_refused_with_its_name(bad: str) -> None:
    with pytest.raises(ConfigError) as raised:
        LinkConfig(ice_servers=[{"urls": bad, **KEY}])
    assert repr(bad)[:60] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given",
    [
        "stun:a",
        ["stun:a"],
        ("stun:a",),
        {"urls": "stun:a"},
        {"urls": ["stun:a"]},
        {"url": "stun:a"},
        IceServer(urls="stun:a"),
        [IceServer(urls=["stun:a"])],  # type: ignore[arg-type]
        [{"urls": ("stun:a", "stun:a")}, "stun:a"],
        iter(["stun:a"]),
        {"urls": "stun:a", "username": None, "credential": "x", "credentialType": "password"},
    ],
)
def test_every_shape_is_taken(given: Any) -> None:
    assert urls(given) == ["stun:a:3478"]


def test_several_are_kept_in_their_order() -> None:
    assert urls(["stun:b", {"urls": ["turn:c", "stun:a"], **KEY}]) == [
        "stun:b:3478",
        "turn:c:3478?transport=udp",
        "stun:a:3478",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        None, 5, 1.5, True, object(), b"stun:a", ["stun:a", None], [5], [["stun:a"]], [b"stun:a"], [{}],
        [{"urls": None}], [{"urls": 5}], [{"urls": []}], [{"urls": [5]}], [{"urls": {"a": 1}}],
        [{"urls": b"stun:a"}], [{5: "stun:a"}],
        [{"urls": "stun:a", "user": "x"}], [{"urls": "stun:a", "credentialType": "oauth"}], [IceServer(urls=5)],  # type: ignore[arg-type]
        [IceServer(urls=())], "turn:a", {"urls": "turn:a"}, {"urls": "turn:a", "username": "x"},
        {"urls": "turn:a", "credential": "x"}, {"urls": "turn:a", "username": "", "credential": "x"},
        {"urls": "turn:a", "username": 5, "credential": 6}, {"urls": "turn:a", "username": "x",
         "credential": "y" * 513},
        {"urls": "turns:a", "username": "\ud800", "credential": "x"}, [f"stun:a{n}" for n in range(MAX_URLS + 1)],
    ],
)  # fmt: skip
async def test_what_is_no_server_is_refused_before_anything_starts(bad: Any) -> None:
    with pytest.raises(ConfigError):
        LinkConfig(ice_servers=bad)
    if bad is not None:  # the default
        with pytest.raises(ConfigError):
            async with open_mesh("memory://nobody", ice_servers=bad):
                raise AssertionError("it started")


def test_a_password_is_shown_nowhere() -> None:
    config = LinkConfig(ice_servers=[{"urls": "turn:a", **KEY}])
    assert "secret" not in repr(config) + repr(ice_urls_of(config.ice_servers))
    assert attrs.evolve(config, patience=0.1).ice_servers == config.ice_servers
