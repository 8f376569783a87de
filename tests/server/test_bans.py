"""The owner of a signaling server kicks, bans and allows, over real sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from p2pmesh import ConfigError, Identity, ServerConfig, SignalingServer, open_signaling_server
from p2pmesh.protocols.signaling.handshake import sign_join

A, B = "a" * 40, "b" * 40


@asynccontextmanager
async def joined(
    server: SignalingServer, peer: str, *, address: str | None = None, **fields: Any
) -> AsyncGenerator[WebSocketConnection]:
    headers = [(b"X-Forwarded-For", address.encode())] if address else []
    tcp = await trio.open_tcp_stream(server.host, server.port)
    async with tcp, trio.open_nursery() as nursery:  # trio-websocket leaves the socket open if the server closes first
        async with await wrap_client_stream(nursery, tcp, server.host, "/", extra_headers=headers) as socket:
            join = {"type": "join", "peerId": peer, "version": 1, **fields}
            await socket.send_message(msgspec.json.encode(join).decode())
            yield socket


async def answer(socket: WebSocketConnection) -> dict[str, Any]:
    with trio.fail_after(5):
        said: dict[str, Any] = msgspec.json.decode(await socket.get_message())
        return said


async def is_closed(socket: WebSocketConnection) -> str:
    try:
        while True:
            await answer(socket)
    except ConnectionClosed as closed:
        return (closed.reason.reason if closed.reason is not None else None) or ""


async def test_a_client_is_kicked_by_its_id_or_its_address_and_may_come_again() -> None:
    async with open_signaling_server() as server:
        async with joined(server, A, address="192.0.2.1") as one, joined(server, B, address="192.0.2.9") as other:
            await answer(one)
            await answer(other)
            assert server.kick(peer_id="c" * 40) == 0
            assert server.kick(peer_id=A) == 1
            assert await is_closed(one) == "kicked"
            assert server.kick(address="192.0.2.0/24") == 1
            assert await is_closed(other) == "kicked"
        async with joined(server, A, address="192.0.2.1") as again:
            assert (await answer(again))["type"] == "bootstrap_peers"
        assert server.snapshot()["kicked"] == 2


async def test_a_ban_holds_until_it_is_lifted_and_outlasts_the_server(tmp_path: Path) -> None:
    path = tmp_path / "bans"
    async with open_signaling_server(bans=path) as server:
        async with joined(server, A) as one:
            await answer(one)
            assert server.ban(peer_id=A) == 1
            await is_closed(one)
        assert server.ban(address="192.0.2.7") == 0
    async with open_signaling_server(bans=path) as server:
        assert server.bans == (A, "192.0.2.7/32")
        async with joined(server, A) as one:
            assert (await answer(one))["code"] == "bad_join"
        with pytest.RaisesGroup(pytest.RaisesExc(ConnectionRejected, check=lambda error: error.status_code == 403)):
            async with joined(server, B, address="192.0.2.7"):
                pass
        async with joined(server, B, address="192.0.2.8") as other:
            assert (await answer(other))["type"] == "bootstrap_peers"
        assert server.snapshot()["banned"] == 2
        assert server.unban(peer_id=A)
        assert not server.unban(peer_id=A)
        assert server.unban(address="192.0.2.7")
    async with open_signaling_server(bans=path) as server, joined(server, A, address="192.0.2.7") as one:
        assert (await answer(one))["type"] == "bootstrap_peers"


async def test_only_those_that_are_allowed_come_in() -> None:
    identity = Identity.from_seed(bytes(32))
    config = ServerConfig(allow_ids=(identity.peer_id, A), allow_networks=("192.0.2.0/24",))
    async with open_signaling_server(config=config) as server:
        join = msgspec.to_builtins(sign_join(identity, "", int(time.time() * 1000)))
        async with joined(server, identity.peer_id, address="192.0.2.1", **join) as one:
            assert (await answer(one))["type"] == "bootstrap_peers"
        for peer in (A, B):  # the first proves nothing
            async with joined(server, peer, address="192.0.2.1") as other:
                assert (await answer(other))["code"] == "bad_join"
        with pytest.RaisesGroup(ConnectionRejected):
            async with joined(server, A, address="198.51.100.1"):
                pass


async def test_what_is_neither_an_id_nor_an_address_is_refused(tmp_path: Path) -> None:
    async with open_signaling_server() as server:
        wrong: list[dict[str, Any]] = [{}, {"peer_id": A, "address": "::1"}, {"peer_id": "A"}, {"address": "here"}]
        for odd in wrong:
            for call in (server.kick, server.ban, server.unban):
                with pytest.raises(ConfigError):
                    call(**odd)
        assert server.bans == ()
    (tmp_path / "bans").write_text("nobody\n")
    with pytest.raises(ConfigError):
        async with open_signaling_server(bans=tmp_path / "bans"):
            pass
    bad: Any
    for bad in ({"allow_ids": ["me"]}, {"allow_networks": ["here"]}):
        with pytest.raises(ConfigError):
            ServerConfig(**bad)


async def test_nothing_that_is_relayed_is_in_the_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_signaling_server() as server, joined(server, A, token="hush") as one, joined(server, B) as other:
        await answer(other)
        await one.send_message(f'{{"type": "signal", "to": "{B}", "signal": {{"type": "offer", "sdp": "secret"}}}}')
        while (await answer(other))["type"] != "signal":
            pass
        server.ban(peer_id=B)
        await is_closed(other)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("p2pmesh")]
    assert not [line for line in logged if "secret" in line or "hush" in line]
