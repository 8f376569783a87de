"""ICE over real sockets on loopback: servers that help, fail, lie or come late; many addresses; no addresses."""

from __future__ import annotations

import errno
import logging
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aioice.ice
import pytest
import trio
from aioice import stun
from aioice.candidate import Candidate, candidate_priority
from msgspec import structs

from p2pmesh.config import LinkConfig
from p2pmesh.keyspace import PeerId
from p2pmesh.links.link import AttemptFailed
from p2pmesh.links.webrtc import event_loop, ice_patch
from p2pmesh.links.webrtc.address_policy import CHECKS_OF_HOST, MAX_TAKEN
from p2pmesh.links.webrtc.dialer import WebRTCDialer
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.wire.messages import PROTOCOL_VERSION, IceCandidate
from p2pmesh.wire.sdp import read_candidate

pytestmark = pytest.mark.webrtc

ALICE, BOB = PeerId("a" * 40), PeerId("b" * 40)
SEEN = ("192.0.2.7", 4242)
OTHER = ("192.0.2.8", 4243)
LOOPBACK = b"\x7f\0\0\1"
DEAD = "stun:127.0.0.1:9"
KEY = {"username": "ann", "credential": "secret"}

Reply = Callable[[stun.Message], bytes | None]


def remote(peer_id: PeerId) -> RemotePeer:
    return RemotePeer(peer_id, verified=True, version=PROTOCOL_VERSION)


def answer(request: stun.Message, kind: stun.Class = stun.Class.RESPONSE, **attributes: Any) -> bytes:
    named = {name.replace("_", "-"): value for name, value in attributes.items()}
    return bytes(stun.Message(request.message_method, kind, request.transaction_id, named))


def seen(request: stun.Message) -> bytes:
    return answer(request, XOR_MAPPED_ADDRESS=SEEN)


@asynccontextmanager
async def server(
    reply: Reply, after: Callable[[], Awaitable[None]] | None = None
) -> AsyncGenerator[tuple[str, list[Any]]]:
    """A STUN or TURN server on loopback; gives its address and the requests that it got."""
    requests: list[stun.Message] = []
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))

        async def respond(data: bytes, address: Any) -> None:
            request = stun.parse_message(data)
            requests.append(request)
            if after is not None:
                await after()
            said = reply(request)
            if said is not None:
                await sock.sendto(said, address)

        async def serve() -> None:
            async with trio.open_nursery() as responding:
                while True:
                    responding.start_soon(respond, *await sock.recvfrom(2048))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield f"127.0.0.1:{sock.getsockname()[1]}", requests
            finally:
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def offered(*urls: str, within: float = 0.3) -> AsyncGenerator[tuple[WebRTCDialer, Any]]:
    servers = [{"urls": url, **KEY} for url in urls]
    with trio.fail_after(20):
        async with WebRTCDialer(LinkConfig(ice_servers=servers, gathering_timeout=within)) as dialer:
            attempt = await dialer.offer(BOB)
            try:
                yield dialer, attempt
            finally:
                await attempt.aclose()


def addresses(attempt: Any, kind: str) -> list[tuple[str, int]]:
    found = [one for one in attempt.description.candidates if one.kind == kind]
    return [(socket.inet_ntoa(one.address), one.port) for one in found if len(one.address) == 4]


# --- servers ----------------------------------------------------------------------------------------------------------


async def test_all_servers_are_asked_at_once() -> None:
    def another(request: stun.Message) -> bytes:
        return answer(request, XOR_MAPPED_ADDRESS=("192.0.2.8", 4343))

    async with server(seen) as (one, _), server(another) as (two, _), server(lambda _: None) as (silent, asked):
        async with offered(f"stun:{silent}", f"stun:{one}", f"stun:{two}", within=10) as (_, attempt):
            assert sorted(addresses(attempt, "srflx")) == [SEEN, ("192.0.2.8", 4343)]
            assert asked


async def test_an_answer_that_comes_late_is_told_late() -> None:
    go = trio.Event()
    async with server(seen, after=go.wait) as (late, _), offered(f"stun:{late}") as (_, attempt):
        assert addresses(attempt, "srflx") == []
        assert not attempt.description.complete
        told, heard = trio.open_memory_channel[IceCandidate](1)
        attempt.trickle(told.send_nowait)
        go.set()
        late_one = await heard.receive()
        assert (socket.inet_ntoa(late_one.address), late_one.port, late_one.kind) == (*SEEN, "srflx")
        assert attempt.trouble == "the peer did not answer"


async def test_the_second_dial_does_not_wait_for_a_server_that_kept_the_first_waiting() -> None:
    async with server(lambda _: None) as (silent, asked), offered(f"stun:{silent}") as (dialer, _):
        count = len(asked)
        again = await dialer.offer(BOB)
        assert not again.description.complete
        with trio.fail_after(5):
            while len(asked) == count:
                await trio.sleep(0.01)
        await again.aclose()


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        (lambda request: answer(request), "not understood"),
        (lambda request: answer(request, stun.Class.ERROR, ERROR_CODE=(420, "what?")), "refuses with error 420"),
        (lambda request: answer(request, stun.Class.ERROR), "refuses with error 0"),
    ],
)
async def test_a_stun_server_that_makes_no_sense_is_told_and_ends_nothing(
    caplog: pytest.LogCaptureFixture, reply: Reply, word: str
) -> None:
    async with server(reply) as (strange, _), offered(f"stun:{strange}", within=10) as (dialer, attempt):
        assert word in attempt.trouble
        assert attempt.description.complete
        again = await dialer.offer(BOB)  # which does not ask it
        await again.aclose()
        assert [word in record.message for record in caplog.records if record.levelno >= logging.WARNING] == [True]


async def test_an_address_from_which_no_server_is_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: ["127.0.0.1", "127.0.0.2"])

    def from_the_first(request: stun.Message) -> bytes | None:
        return seen(request) if len(requests) == 1 else None

    async with server(from_the_first) as (one, requests), offered(f"stun:{one}", within=10) as (_, attempt):
        assert len(requests) == 2
        assert addresses(attempt, "srflx") == [SEEN]
        assert attempt.description.complete


async def test_malformed_answers_are_dropped_and_counted() -> None:
    def malformed(request: stun.Message) -> bytes:
        return answer(request)[:2] + b"\0\x07" + answer(request)[4:] + b"\0\x24\0\x03abc"

    async with server(malformed) as (strange, _), offered(f"stun:{strange}") as (dialer, _):
        assert dialer.counts["datagrams_dropped"]


async def test_wrong_credentials_are_told_at_once() -> None:
    def refuse(request: stun.Message) -> bytes:
        return answer(request, stun.Class.ERROR, ERROR_CODE=(401, "no"), REALM="here", NONCE=b"nonce")

    async with server(refuse) as (turn, requests), offered(f"turn:{turn}", within=10) as (_, attempt):
        assert len(requests) == 2
        assert "USERNAME" in requests[1].attributes
        assert attempt.trouble.endswith(f"turn:{turn}?transport=udp refuses the user name or the credential")


@pytest.mark.parametrize("url", ["turn:127.0.0.1:9?transport=tcp", "turns:127.0.0.1:9"])
async def test_a_turn_server_that_refuses_connections_holds_nobody_up(url: str) -> None:
    async with offered(url, within=10) as (_, attempt):
        assert "can't be reached" in attempt.trouble


async def test_a_turn_server_that_is_none_holds_nobody_up() -> None:
    async with trio.open_nursery() as nursery:

        async def garbage(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)

        listeners = await nursery.start(trio.serve_tcp, garbage, 0)
        port = listeners[0].socket.getsockname()[1]
        async with offered(f"turn:127.0.0.1:{port}?transport=tcp", f"turns:127.0.0.1:{port}") as (_, attempt):
            assert addresses(attempt, "relay") == []
        nursery.cancel_scope.cancel()


# --- sockets and addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EADDRNOTAVAIL])
async def test_an_attempt_for_which_no_socket_can_be_opened_fails_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(host: str, port: int) -> socket.socket:
        raise OSError(number, "no socket for you")

    async with WebRTCDialer() as alice, WebRTCDialer() as bob:
        offering = await alice.offer(BOB)
        with monkeypatch.context() as patched:
            patched.setattr(event_loop, "_bound_socket", fail)
            with pytest.raises(AttemptFailed, match="no socket for you"):
                await bob.offer(ALICE)
            with pytest.raises(AttemptFailed, match="no socket for you"):
                await bob.answer(ALICE, offering.description)
        answering = await bob.answer(ALICE, offering.description)
        await offering.feed(answering.description)
        with trio.fail_after(10):
            links = await offering.opened(remote(BOB)), await answering.opened(remote(ALICE))
        for link in links:
            await trio.aclose_forcefully(link)


async def test_addresses_that_cannot_be_listed_fail_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: bool) -> list[str]:
        raise OSError(errno.EMFILE, "too many files")

    async with WebRTCDialer() as dialer:
        monkeypatch.setattr(aioice.ice, "get_host_addresses", fail)
        with pytest.raises(AttemptFailed, match="too many files"):
            await dialer.offer(BOB)


async def test_peers_without_a_common_kind_of_address_say_so_and_see_no_hope(monkeypatch: pytest.MonkeyPatch) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    async with WebRTCDialer() as alice, WebRTCDialer() as bob:
        monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: ["127.0.0.1"])
        offering = await alice.offer(BOB)
        monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: ["::1"])
        answering = await bob.answer(ALICE, offering.description)
        await offering.feed(answering.description)
        for attempt, peer, words in ((offering, BOB, "IPv4 and the peer's IPv6"), (answering, ALICE, "IPv6 and the")):
            with trio.fail_after(10), pytest.raises(AttemptFailed, match=words) as raised:
                await attempt.opened(remote(peer))
            assert raised.value.hopeless


async def test_an_attempt_goes_on_while_a_server_may_give_another_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice_patch, "PATIENCE", 0.8)
    async with server(lambda _: None) as (silent, _), WebRTCDialer() as bob:
        monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: ["127.0.0.1"])
        async with offered(f"stun:{silent}") as (_, offering):
            monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: ["::1"])
            answering = await bob.answer(ALICE, offering.description)
            await offering.feed(answering.description)
            with pytest.raises(AttemptFailed, match="did not answer within"):
                await offering.opened(remote(BOB))
            await answering.aclose()


async def test_few_datagrams_go_where_a_peer_only_says_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes offers could have us knock at ports of others."""
    with trio.fail_after(20):
        async with third_party(32) as (ports, heard), WebRTCDialer() as alice, WebRTCDialer() as bob:
            offer = (await alice.offer(BOB)).description
            named = tuple(IceCandidate(address=LOOPBACK, port=port, kind="host") for port in ports)
            offer = structs.replace(offer, candidates=named[:16])
            bob.prefer("192.0.2.1")
            await bob.answer(ALICE, offer)
            await trio.sleep(0.6)
            assert heard == [], "a peer elsewhere has no business with our loopback"
            bob.prefer("127.0.0.1")
            for _ in range(4):
                attempt = await bob.answer(ALICE, structs.replace(offer, ufrag=secrets.token_hex(4)))
                for candidate in named:
                    await attempt.feed(candidate)
            await trio.sleep(1.0)
            assert {address[1] for address in heard} <= set(ports[:MAX_TAKEN])
            assert 0 < len(heard) <= 3 * CHECKS_OF_HOST


@asynccontextmanager
async def third_party(count: int) -> AsyncGenerator[tuple[list[int], list[tuple[str, int]]]]:
    """Ports that have asked for nothing; gives them, and those of them that something came to."""
    heard: list[tuple[str, int]] = []
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        socks = [
            stack.enter_context(trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)) for _ in range(count)
        ]
        for sock in socks:
            await sock.bind(("127.0.0.1", 0))

        async def listen(sock: trio.socket.SocketType) -> None:
            while True:
                await sock.recvfrom(2048)
                heard.append(sock.getsockname())

        for sock in socks:
            nursery.start_soon(listen, sock)
        try:
            yield [sock.getsockname()[1] for sock in socks], heard
        finally:
            nursery.cancel_scope.cancel()


async def test_with_relays_only_nobody_learns_our_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(lambda _: None) as (silent, asked), server(seen) as (stun_server, others):
        urls: list[Any] = [{"urls": f"turn:{silent}", **KEY}, f"stun:{stun_server}"]
        config = LinkConfig(ice_servers=urls, relay_only=True, gathering_timeout=0.3)
        async with WebRTCDialer(config) as dialer:
            attempt: Any = await dialer.offer(BOB)
            assert attempt.description.candidates == ()
            assert not attempt.description.complete, "the relay may still answer"
            assert asked
            assert not others
            assert len(attempt._carrier.sockets) == 1, "but to the relay"
            await attempt.aclose()


async def test_no_more_is_offered_than_a_peer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [f"127.0.0.{number}" for number in range(1, 30)]
    monkeypatch.setattr(aioice.ice, "get_host_addresses", lambda **_: crowd)
    async with server(seen) as (one, _), server(lambda request: answer(request, XOR_MAPPED_ADDRESS=OTHER)) as (two, _):
        async with offered(f"stun:{one}", f"stun:{two}") as (_, attempt):
            kinds = [candidate.kind for candidate in attempt.description.candidates]
            assert len(kinds) <= MAX_TAKEN
            assert kinds.count("srflx") == 2


def test_the_address_that_leads_to_the_service_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice_patch, "_leads_out", lambda version: {4: "10.0.0.9", 6: "fd00::9"}[version])
    many = [f"172.20.{number}.1" for number in range(60)]
    chosen = ice_patch.in_order([*many, "fd00::1", "10.0.0.9", "169.254.1.1", "10.9.0.3"], ("10.9.0.3",))
    assert chosen[:2] == ["10.9.0.3", "10.0.0.9"]
    assert len(chosen) == ice_patch.MAX_ADDRESSES
    assert "fd00::1" in chosen, "some of each kind"
    assert "169.254.1.1" not in chosen
    assert ice_patch.in_order(["10.0.0.1"], ()) == ["10.0.0.1"]


def test_of_interfaces_with_many_addresses_one_of_each_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice_patch, "_leads_out", lambda version: "")
    crowd = [f"172.20.{number}.1" for number in range(60)]
    monkeypatch.setattr(ice_patch, "_turns", lambda: {address: turn for turn, address in enumerate(crowd)})
    assert ice_patch.in_order([*crowd, "10.7.0.1", "10.8.0.1"], ())[:3] == [crowd[0], "10.7.0.1", "10.8.0.1"]


class Host:
    """A socket, as far as pairs are concerned."""

    def __init__(self, host: str, rank: int) -> None:
        self.local_candidate = candidate(host, candidate_priority(1, "host", 65_535 - 256 * rank))


def candidate(host: str, priority: int) -> Candidate:
    return Candidate("f", 1, "udp", priority, host, 9, "host")


def test_what_is_likely_to_work_is_checked_first_and_no_more_than_a_hundred_pairs() -> None:
    connection: Any = aioice.ice.Connection(ice_controlling=True)
    connection.__class__ = ice_patch.IceConnection
    ours = ["10.1.0.1", *(f"172.20.{number}.1" for number in range(20)), "192.168.7.1"]
    theirs = ["10.2.0.1", *(f"172.30.{number}.1" for number in range(20)), "192.168.7.2"]
    connection._protocols = [Host(host, rank) for rank, host in enumerate(ours)]
    for rank, host in enumerate(theirs):
        connection._remote_candidates.append(candidate(host, candidate_priority(1, "host", 65_535 - 256 * rank)))
        connection._pair_remote_candidate(connection._remote_candidates[-1])
    connection.sort_check_list()
    first = [(pair.local_candidate.host, pair.remote_candidate.host) for pair in connection._check_list[:2]]
    assert first == [("10.1.0.1", "10.2.0.1"), ("192.168.7.1", "192.168.7.2")]
    assert len(connection._check_list) == ice_patch.MAX_PAIRS


def test_a_trickled_candidate_is_one_that_a_peer_reads() -> None:
    text = candidate("192.0.2.1", 7).to_sdp()
    assert read_candidate(text) == IceCandidate(address=bytes([192, 0, 2, 1]), port=9, priority=7)
