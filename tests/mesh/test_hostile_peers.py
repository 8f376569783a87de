"""What honest peers do about neighbours and services that don't keep to the rules."""

import msgspec
import pytest
import trio

from p2pmesh import LinkConfig, PeerConnected, PeerDisconnected, PeerFailed, PeerId
from p2pmesh.events import PeerTimedOut
from p2pmesh.protocols.util.limits import BURST, FRAME
from p2pmesh.transports.memory import MemoryTransport
from p2pmesh.wire.codec import encode
from p2pmesh.wire.messages import Gossip, GossipAck, GossipData
from p2pmesh.wire.overlay import FindNode, Stabilise
from p2pmesh.wire.signaling import PeerSignal
from tests.harness.cluster import Cluster, linked, until
from tests.harness.rogue import open_rogue


def waiting(stream):
    items = []
    while True:
        try:
            items.append(stream.receive_nowait())
        except trio.WouldBlock:
            return items


FORGED = Gossip(
    data=GossipData(
        id="forged", topic="t", payload="I am carol", encoding="text", origin_peer_id=PeerId("c" * 40), key=bytes(32),
        signature=bytes(64), timestamp=1_700_000_000_000, ttl=60_000, max_hops=10, hops=0, relayed_by=(),
    )
)  # fmt: skip
GARBAGE = {
    "random bytes": b"\xc1\xff\x00garbage",
    "no type": b'{"data": 1}',
    "a list": b"[1, 2, 3]",
    "cut off": encode(FORGED)[:-10],
    "wrong field": b'{"type":"gossip_ack","new":7}',
    "too deep": b'{"type":"direct","payload":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "empty": b"",
    "forged origin": encode(FORGED),
}


@pytest.mark.parametrize("frame", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_malformed_frame_ends_that_link_and_nothing_else(autojump_clock, frame):
    async with Cluster() as world:
        victim, friend = await world.join(2)
        await linked(victim, friend)
        async with (
            open_rogue(world, world.identity(3)) as rogue,
            victim.events() as events,
            friend.subscribe() as topic,
        ):
            await until(lambda: rogue.peer_id in victim.peers)
            await rogue.links[victim.peer_id].say(frame)
            await until(lambda: rogue.peer_id not in victim.peers)
            ends = [e for e in waiting(events) if isinstance(e, PeerDisconnected | PeerTimedOut)]
            assert [e.peer_id for e in ends] == [rogue.peer_id]
            assert ends[0].reason
            assert friend.peer_id in victim.peers
            assert not waiting(topic)
            await victim.broadcast("t", "still here")
            assert (await topic.receive()).payload == "still here"


async def test_unknown_types_are_ignored_and_counted(autojump_clock):
    async with Cluster() as world, world.peer(1) as victim, open_rogue(world, world.identity(2)) as rogue:
        await linked(victim, rogue.mesh)
        await rogue.links[victim.peer_id].say(b'{"type":"from_the_future","x":[1]}')
        await trio.sleep(1)
        assert rogue.peer_id in victim.peers
        assert victim.snapshot()["links"]["unknown_messages"] == 1


async def test_a_flood_slows_its_own_link_and_nobody_else(autojump_clock):
    links = LinkConfig(frames_per_second=100.0, receive_window=2 * 1024 * 1024)
    async with Cluster() as world, world.peer(1, links=links) as victim, world.peer(2) as friend:
        await linked(victim, friend)
        async with open_rogue(world, world.identity(3)) as rogue, victim.subscribe("t", buffer=1000) as topic:
            await until(lambda: rogue.peer_id in victim.peers)
            link = rogue.links[victim.peer_id]
            link.is_mute = True  # the flood has it for itself
            sent = 0

            async def flood():
                nonlocal sent
                frame = encode(GossipAck(new=("x" * 100,)))
                while True:
                    await link.say(frame)
                    sent += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                await trio.sleep(10)
                for n in range(20):
                    start = trio.current_time()
                    await friend.broadcast("t", n)
                    assert (await topic.receive()).payload == n
                    assert trio.current_time() - start < 1
                nursery.cancel_scope.cancel()
            window = links.receive_window // 100
            assert sent < 100 * 15 + window
            stats = victim.snapshot()["links"]["open"][rogue.peer_id]
            assert stats["unread_bytes"] <= links.receive_window


@pytest.mark.parametrize(
    "frame",
    [b'{"type":"from_the_future","x":[1]}', encode(FindNode(target=PeerId("a" * 40))), encode(Stabilise())],
    ids=["unknown", "never over a link", "the overlay's"],
)
async def test_what_seldom_comes_is_read_as_slowly_as_its_neighbour_pays_for(autojump_clock, frame):
    async with Cluster() as world, world.peer(1) as victim, world.peer(2) as friend:
        await linked(victim, friend)
        async with open_rogue(world, world.identity(3)) as rogue, victim.subscribe("t", buffer=1000) as topic:
            await until(lambda: rogue.peer_id in victim.peers)
            link = rogue.links[victim.peer_id]
            link.is_mute = True  # the flood has it for itself

            def read():
                stats = victim.snapshot()
                handled = stats["subsystems"]["overlay"]["inbox"]["handled"]
                return stats["links"]["unknown_messages"] + stats["ignored_messages"] + handled

            before = read()
            async with trio.open_nursery() as nursery:

                async def flood():
                    for _ in range(20_000):
                        await link.say(frame)

                nursery.start_soon(flood)
                await trio.sleep(10)
                config = victim._node.config
                each_second = config.work.links * 1e6 * (1 / 2 + 1 / 2 / (2 * config.max_peers)) / FRAME
                assert read() - before <= each_second * (10 + BURST) + 5
                start = trio.current_time()
                await friend.broadcast("t", "hello")
                assert (await topic.receive()).payload == "hello"
                assert trio.current_time() - start < 1
                assert rogue.peer_id in victim.peers
                assert victim.snapshot()["links"]["budget"]["later"] > 0
                nursery.cancel_scope.cancel()


class Liar(MemoryTransport):
    """A service that changes what it relays."""

    def __init__(self, hub, change):
        super().__init__(hub=hub, name="liar")
        self._change = change

    def connect(self):
        return _Changed(super().connect(), self._change)


class _Changed:
    def __init__(self, inner, change):
        self._inner, self._change = inner, change

    async def __aenter__(self):
        self._connection = await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc):
        return await self._inner.__aexit__(*exc)  # noqa: ASYNC102  # what it closes is bounded

    def __aiter__(self):
        return self

    async def __anext__(self):
        message = await anext(self._connection)
        if isinstance(message, PeerSignal):
            return msgspec.structs.replace(message, signal=self._change(message.signal))
        return message

    async def send(self, message):
        await self._connection.send(message)


def swap_fingerprints(signal):
    lines = signal.sdp.splitlines(keepends=True)
    swapped = ["a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\n" if "a=fingerprint" in x else x for x in lines]
    return msgspec.structs.replace(signal, sdp="".join(swapped))


def add_fingerprint(signal):
    extra = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32) + "\r\n"
    return msgspec.structs.replace(signal, sdp=signal.sdp + extra)


def strip_proof(signal):
    return msgspec.structs.replace(swap_fingerprints(signal), p2pmesh=None)


def break_signature(signal):
    proof = msgspec.structs.replace(signal.p2pmesh, signature=bytes(64))
    return msgspec.structs.replace(signal, p2pmesh=proof)


@pytest.mark.parametrize("change", [swap_fingerprints, add_fingerprint, strip_proof, break_signature])
async def test_a_lying_service_can_put_itself_between_nobody(autojump_clock, change):
    async with Cluster() as world:
        liar = Liar(world.hub, change)
        async with world.peer(1, transports=[liar]) as alice, alice.events() as events:
            async with world.peer(2) as bob:
                await trio.sleep(60)
                assert not alice.peers
                assert not bob.peers
                told = waiting(events)
                assert not [event for event in told if isinstance(event, PeerConnected)]
                assert [event for event in told if isinstance(event, PeerFailed)] or change is strip_proof


async def test_an_honest_service_relays_the_same_offers_well(autojump_clock):
    async with Cluster() as world, world.peer(1, transports=[Liar(world.hub, lambda signal: signal)]) as alice:
        async with world.peer(2) as bob:
            await linked(alice, bob)


async def test_a_peer_that_never_reads_is_given_up(autojump_clock):
    links = LinkConfig(outbox=8, outbox_patience=5.0, receive_window=2 * 1024 * 1024)
    async with Cluster() as world, world.peer(1, links=links) as victim, world.peer(2) as friend:
        await linked(victim, friend)
        async with open_rogue(world, world.identity(3)) as rogue:
            await until(lambda: rogue.peer_id in victim.peers)
            rogue.links[victim.peer_id].is_deaf = True  # keepalive goes on
            async with victim.events() as events:
                with trio.fail_after(120):
                    while rogue.peer_id in victim.peers:
                        await victim.broadcast("t", bytes(200_000), ttl=10)
                        await trio.sleep(0.2)
                ends = [e for e in waiting(events) if isinstance(e, PeerDisconnected | PeerTimedOut)]
                assert [e.peer_id for e in ends] == [rogue.peer_id]
                assert friend.peer_id in victim.peers
