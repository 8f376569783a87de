"""Whom a proxy speaks for: headers and the PROXY protocol, and whom nobody believes."""

import contextlib
import math
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import h11
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.protocols.util.limits import RateLimiter
from p2pmesh.server.addresses import Networks, Places, counted_as, read_address
from p2pmesh.server.proxies import BadProxyHeader, customer, hosts, parse_v1, parse_v2, read_proxy_header

PROXY = ip_address("10.0.0.1")
TRUSTED = Networks(["10.0.0.0/8", "fd00::/8"])
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def request(*headers: tuple[str, str]) -> h11.Request:
    encoded = [(b"Host", b"x"), *((name.encode(), value.encode("latin-1")) for name, value in headers)]
    return h11.Request(method=b"GET", target=b"/", headers=encoded)


def behind(*headers: tuple[str, str]) -> str:
    return str(customer(PROXY, request(*headers), TRUSTED))


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("203.0.113.9, 198.51.100.1", "198.51.100.1"),
        ("198.51.100.1, 10.1.1.1", "198.51.100.1"),
        ("203.0.113.9,198.51.100.1 , fd00::5", "198.51.100.1"),
        ("198.51.100.1:5000", "198.51.100.1"),
        ("[2001:db8::1]:5000", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("10.2.2.2, 10.3.3.3", "10.2.2.2"),
        ("198.51.100.1, unknown", "10.0.0.1"),
        ("198.51.100.1, caf\xe9, 10.2.2.2", "10.2.2.2"),
        ("", "10.0.0.1"),
        (",".join(["10.0.0.2"] * 1000), "10.0.0.2"),
    ],
)
def test_the_customer_is_the_last_address_that_is_no_proxy_of_ours(value: str, address: str) -> None:
    assert behind(("X-Forwarded-For", value)) == address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ('For="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ("for=203.0.113.9, for=198.51.100.1;proto=https;by=10.0.0.1", "198.51.100.1"),
        ("by=203.0.113.9;for=198.51.100.1;host=x", "198.51.100.1"),
        ("for=198.51.100.1, for=10.4.4.4", "198.51.100.1"),
        ("for=_hidden", "10.0.0.1"),
        ('for="unknown"', "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
        ("xfor=198.51.100.1", "10.0.0.1"),
    ],
)
def test_forwarded_headers_are_read_as_rfc_7239_has_them(value: str, address: str) -> None:
    assert behind(("Forwarded", value)) == address


def test_headers_of_one_name_are_one_list() -> None:
    assert behind(("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "198.51.100.1")) == "198.51.100.1"


def test_where_both_headers_differ_a_customer_wrote_one_and_neither_is_believed() -> None:
    same = (("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=198.51.100.1:80"))
    assert behind(*same) == "198.51.100.1"
    assert behind(("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=203.0.113.9")) == "10.0.0.1"


def test_a_host_is_taken_from_headers_of_proxies_only() -> None:
    asked = request(("X-Forwarded-Host", "app.example"), ("Forwarded", 'for=1.2.3.4;host="app.example:443"'))
    assert hosts(asked, forwarded=False) == [b"x"]
    assert hosts(asked, forwarded=True) == [b"x", b"app.example", b"app.example:443"]


@pytest.mark.parametrize("text", ["", "x", "[", "1.2.3", "1.2.3.4.5", "%", "[::1%lo]:5", "::ffff:1.2.3.4", ":::"])
def test_anything_is_read_as_an_address_or_not_at_all(text: str) -> None:
    assert read_address(text) in {None, ip_address("::1"), ip_address("1.2.3.4")}


def test_an_ipv6_customer_counts_for_its_64() -> None:
    assert counted_as(ip_address("2001:db8::1")) == counted_as(ip_address("2001:db8::ffff:1")) == "2001:db8::/64"
    assert counted_as(ip_address("198.51.100.1")) == "198.51.100.1"
    assert counted_as(None) == "unknown"


# --- the PROXY protocol -----------------------------------------------------------------------------------------------


def v2(command: int, family: int, rest: bytes) -> bytes:
    return V2 + bytes((0x20 | command, family)) + len(rest).to_bytes(2, "big") + rest


GOOD = [
    (b"PROXY TCP4 198.51.100.1 198.51.100.2 1 2\r\n", "198.51.100.1"),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 65535\r\n", "2001:db8::1"),
    (b"PROXY UNKNOWN\r\n", "None"),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "None"),
    (v2(1, 0x11, bytes((198, 51, 100, 1, 10, 0, 0, 1, 0, 1, 0, 2))), "198.51.100.1"),
    (v2(1, 0x11, bytes((198, 51, 100, 1, 10, 0, 0, 1, 0, 1, 0, 2)) + b"\x04\0\x05extra"), "198.51.100.1"),
    (v2(1, 0x21, ip_address("2001:db8::1").packed + bytes(20)), "2001:db8::1"),
    (v2(1, 0x31, bytes(216)), "None"),
    (v2(1, 0x00, b""), "None"),
    (v2(0, 0x11, bytes(12)), "None"),
]
BAD = [
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PROXY TCP4 198.51.100.1 198.51.100.2 1\r\n",
    b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
    b"PROXY TCP6 198.51.100.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 caf\xe9 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
    V2 + b"\x11\x11\0\x0c" + bytes(12),
    V2 + b"\x22\x11\0\x0c" + bytes(12),
    V2 + b"\x21\x11\0\x04" + bytes(4),
    V2 + b"\x21\x11\xff\xff" + bytes(100),
    V2 + b"\x21\x11\0\x0c" + bytes(3),
]


def wire(data: bytes, size: int = 1 << 20) -> Callable[[int], Awaitable[bytes]]:
    """A connection that gives this out, at most so many bytes at once."""
    left = bytearray(data)

    async def receive(most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        chunk = bytes(left[: min(most, size)])
        del left[: len(chunk)]
        return chunk

    return receive


@pytest.mark.parametrize(("header", "address"), GOOD)
@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_header_is_taken_and_not_a_byte_more(header: bytes, address: str, size: int) -> None:
    receive = wire(header + b"GET", size)
    assert str(await read_proxy_header(receive)) == address
    assert await receive(1) == b"G"


@pytest.mark.parametrize("header", BAD)
async def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        await read_proxy_header(wire(header))


@given(st.binary(max_size=200), st.sampled_from([header for header, _ in GOOD]), st.integers(0, 60))
def test_garbage_is_refused_or_understood(garbage: bytes, header: bytes, at: int) -> None:
    damaged = header[:at] + garbage + header[at + len(garbage) // 2 :]

    async def read() -> None:
        with contextlib.suppress(BadProxyHeader):
            await read_proxy_header(wire(damaged))

    trio.run(read)
    for parse in (lambda: parse_v1(garbage), lambda: parse_v2(V2 + garbage[:4].ljust(4, b"x"), garbage)):
        with contextlib.suppress(BadProxyHeader):
            parse()


# --- places -----------------------------------------------------------------------------------------------------------


def test_places_are_bounded_in_all_for_an_address_and_by_rate_and_nothing_is_kept_of_who_is_gone() -> None:
    places = Places(3, 2, RateLimiter(10, 1.0, 2))
    assert [places.take("a", None) for _ in range(3)] == [True, True, False]
    assert [places.take(address, None) for address in ("b", "c")] == [True, False]
    for address in ("a", "a", "b"):
        places.free(address)
    assert places.taken == 0
    assert [places.take("a", now) for now in (0.0, 0.0)] == [True, True]
    places.free("a")
    places.free("a")
    assert [places.take("a", now) for now in (0.0, math.nextafter(1.0, 0), 1.0)] == [False, False, True]
