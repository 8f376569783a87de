"""Whole meshes over real WebRTC links and the real signaling server, on the real clock."""

import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from p2pmesh import (
    Delivered,
    PeerConnected,
    PeerDisconnected,
    PeerFailed,
    PeerTimedOut,
    TransportDown,
    TransportUp,
    open_mesh,
    open_signaling_server,
)
from p2pmesh.transports.websocket import WebSocketTransport
from tests.harness.cluster import linked, until
from tests.mesh.test_hostile_peers import _Changed, swap_fingerprints

pytestmark = pytest.mark.webrtc


def open_files():
    return len(os.listdir("/proc/self/fd"))


async def test_three_peers_link_talk_and_leave_nothing_behind():
    async with open_signaling_server() as server:
        before = open_files()
        async with open_mesh(server.url) as alice, open_mesh(server.url) as bob, open_mesh(server.url) as carol:
            await linked(alice, bob, carol)
            async with bob.subscribe("t") as topic, alice.messages() as inbox:
                receipt = await alice.broadcast("t", {"n": 1})
                assert (await topic.receive()).payload == {"n": 1}
                assert await receipt.settled() == Delivered(2, receipt.outcome.elapsed)
                await until(lambda: alice.peer_id in bob.peers)
                await bob.send(alice.peer_id, bytes(1024 * 1024))
                assert len((await inbox.receive()).payload) == 1024 * 1024
        await until(lambda: open_files() <= before, timeout=5)


class LyingTransport(WebSocketTransport):
    """The way to a server that swaps the fingerprints of what it relays."""

    def connect(self):
        return _Changed(super().connect(), swap_fingerprints)


async def test_a_server_that_swaps_fingerprints_gets_between_nobody():
    async with open_signaling_server() as server:
        async with open_mesh(LyingTransport(server.url)) as alice, alice.events() as events:
            async with open_mesh(server.url) as bob:
                with trio.fail_after(20):
                    while not isinstance(event := await events.receive(), PeerFailed):
                        assert not isinstance(event, PeerConnected)
                await trio.sleep(0.3)  # for a link that must not come
                assert not alice.peers
                assert not bob.peers


@pytest.mark.parametrize("instant", [0.001, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3])
async def test_cancelled_at_any_stage_nothing_is_left(instant):
    async with open_signaling_server() as server, open_mesh(server.url) as alice:
        before = open_files()
        with trio.move_on_after(instant):
            async with open_mesh(server.url) as bob:
                await linked(alice, bob)
                await bob.broadcast("t", bytes(500_000))
                await trio.sleep_forever()
        await until(lambda: not alice.peers and open_files() <= before + 2, timeout=20)


async def test_links_live_on_when_the_server_dies_and_peers_rejoin_when_it_is_back():
    async with trio.open_nursery() as nursery:
        server, stop = await nursery.start(serve)
        async with open_mesh(server.url) as alice, open_mesh(server.url) as bob, alice.events() as events:
            await linked(alice, bob)
            stop.cancel()
            with trio.fail_after(10):
                while not isinstance(await events.receive(), TransportDown):
                    pass
            async with bob.messages() as inbox:
                await alice.send(bob.peer_id, "still here")
                assert (await inbox.receive()).payload == "still here"
            _, stop = await nursery.start(partial(serve, port=server.port))
            with trio.fail_after(20):
                while not isinstance(await events.receive(), TransportUp):
                    pass
            async with open_mesh(server.url) as carol:
                await linked(alice, bob, carol)
        stop.cancel()


async def serve(port=0, *, task_status):
    with trio.CancelScope() as scope:
        async with open_signaling_server(port=port) as server:
            task_status.started((server, scope))
            await trio.sleep_forever()


PEER = """
import sys, trio
from p2pmesh import open_mesh

async def main():
    async with open_mesh(sys.argv[1]) as mesh:
        print(mesh.peer_id, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def other_process(url):
    process = await trio.lowlevel.open_process([sys.executable, "-c", PEER, url], stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.move_on_after(5, shield=True):
            await process.wait()


async def test_a_process_that_falls_silent_is_missed_within_about_five_seconds_and_told_once():
    """One is killed, the other is stopped."""
    async with open_signaling_server() as server, open_mesh(server.url) as alice, alice.events() as events:
        async with other_process(server.url) as killed, other_process(server.url) as stopped:
            with trio.fail_after(30):
                connected = {await next_of(PeerConnected, events), await next_of(PeerConnected, events)}
            start = trio.current_time()
            killed.send_signal(signal.SIGKILL)
            stopped.send_signal(signal.SIGSTOP)
            with trio.fail_after(15):
                missed = [await next_of(PeerTimedOut | PeerDisconnected, events) for _ in connected]
            assert len(connected) == 2
            assert set(missed) == connected
            assert trio.current_time() - start < 8
            with trio.move_on_after(2):
                async for event in events:
                    assert not isinstance(event, PeerTimedOut | PeerDisconnected)


async def next_of(kind, events):
    """Whom the next event of this kind is about."""
    while not isinstance(event := await events.receive(), kind):
        pass
    return event.peer_id
