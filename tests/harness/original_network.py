"""Peers of the original project in the simulated worlds, beside meshes of ours, and the original's signaling server.

`originals(world)` puts them beside whole meshes, `BareOriginal` beside bare nodes. Both see to it that nothing reached
a stand-in that would end the original's process or surprise its application.
"""

import json
import random
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.keyspace import xor_distance
from p2pmesh.links.link import AttemptFailed, LinkError
from p2pmesh.links.session_link import SessionLink
from p2pmesh.protocols.inputs import LinkDown, LinkLost, LinkUp, LocalSignal, RemotePeer, ServiceUp, Signaled
from p2pmesh.server.presence import Close, Send
from p2pmesh.simulation.discrete.network import EPOCH
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.full.network import SimAttempt
from p2pmesh.simulation.model.sdp_stub import parse_description
from p2pmesh.wire.codec import decode, decode_signaling, encode, encode_signaling
from p2pmesh.wire.sdp import read_sdp, write_sdp
from tests.harness.original_peer import OriginalPeer

CONSENT = 28.9
"""Seconds until ICE gives up a peer that was killed: six checks missed, five seconds apart, a fifth more or less."""
MIXED = MeshConfig(links=LinkConfig(allow_unverified=True))
"""What a mesh of ours sets that lets the original's peers in."""


def check(peers):
    """Nothing has reached these peers that the original would not survive, or would hand to its application."""
    for peer in peers:
        assert not peer.deaths, f"{peer.peer_id[:8]} would have died: {peer.deaths}"
        assert not peer.strays, f"the application of {peer.peer_id[:8]} would see {peer.strays[:3]}"


# --- beside whole meshes ----------------------------------------------------------------------------------------------


class Original(OriginalPeer):
    """One on a `SimNetwork`, with a line to a `MemoryHub`. `gathering` is how long it takes over a description."""

    def __init__(self, network, hub, peer_id, number, *, gathering=0.05, **options):
        super().__init__(peer_id, random.Random(f"original {peer_id}"), **options)
        self.runs = True
        self._network, self._hub = network, hub
        self._dialer = network.dialer(peer_id, number=number)
        self._gathering = gathering
        self._links = {}
        self._line = None

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        """Join, and hear what the service says until its socket is closed; it opens no other."""
        self._line = line = self._hub.attach()
        self.join()
        task_status.started(self)
        while self.runs and line.ended is None:
            while line.texts and self.runs:
                self.signaled(line.take())
            await self._hub.wait_for(line)

    def leave(self):
        super().leave()
        self.runs = False
        self._hub.detach(self._line)

    def kill(self):
        """End its process. The kernel closes its socket; its neighbours have to find out."""
        self.runs = False
        far_ends = [link.far for link in self._links.values() if not isinstance(link, _Attempt)]
        self._dialer.crash()
        self._hub.detach(self._line)
        for end in far_ends:
            self._network.at(self.now + CONSENT, end.lose, LinkError("ICE: the peer's consent expired"))

    @property
    def now(self):
        return trio.current_time()

    @property
    def wall_ms(self):
        return int((EPOCH + self.now) * 1000)

    def _after(self, seconds, action, *args):
        self._network.at(self.now + seconds, self._if_it_runs, action, args)

    def _if_it_runs(self, action, args):
        if self.runs:
            action(*args)

    def _say(self, message):
        if self._line.ended is None:
            self._hub.received(self._line, json.dumps(message))

    # --- its links ----------------------------------------------------------------------------------------------------

    def _offer(self, peer):
        self._begin(peer, None)

    def _answer(self, peer, offer):
        self._begin(peer, read_sdp(offer["sdp"]))

    def _begin(self, peer, far):
        try:
            attempt = _Attempt(self._dialer, peer, far)
        except AttemptFailed:
            self.closed(peer)
            return
        attempt.original = self
        self._links[peer] = attempt
        self._after(self._gathering, self._describe, attempt)

    def _describe(self, attempt):
        if self._links.get(attempt.peer_id) is attempt:
            self.described(attempt.peer_id, _text(attempt.description))

    def _complete(self, peer, answer):
        attempt = self._links[peer]
        attempt.far_token, attempt.far_fingerprint = parse_description(read_sdp(answer["sdp"]))
        self._network.prepare(attempt)

    def _send(self, peer, text):
        self._links[peer].send_packet(text)

    def _close(self, peer):
        link = self._links.pop(peer, None)
        if isinstance(link, _Attempt):
            link.fail("given up")
        elif link is not None:
            link.hang_up()

    def attempt_succeeded(self, attempt, carrier):
        """For its attempts: this is the open channel."""
        if self._links.get(attempt.peer_id) is not attempt:
            carrier.hang_up()
            return
        self._links[attempt.peer_id] = carrier
        self.opened(attempt.peer_id)
        carrier.attach(_End(self, carrier, attempt.peer_id))

    def lost(self, link, peer):
        """For its attempts and ends: this one is over."""
        if self.runs and self._links.get(peer) is link:
            del self._links[peer]
            self.closed(peer)

    def came(self, carrier, peer, packet):
        """For its ends: a packet came."""
        if self.runs and self._links.get(peer) is carrier:
            self.heard(peer, packet)


class _Attempt(SimAttempt):
    original: Original

    def succeed(self, carrier):
        super().succeed(carrier)
        if self._carrier is carrier:
            self.original.attempt_succeeded(self, carrier)

    def fail(self, reason):
        was_settled = self.settled
        super().fail(reason)
        if not was_settled:
            self.original.lost(self, self.peer_id)


class _End(SessionLink):
    """Where packets come out of a channel: it has nothing else of a link of ours."""

    def __init__(self, original, carrier, peer):
        super().__init__(carrier, RemotePeer(peer, verified=False, version=0), LinkConfig(), 0)
        self._original, self._far_peer = original, peer

    def packet_received(self, packet):
        self._original.came(self._carrier, self._far_peer, packet)

    def carrier_closed(self, error):
        self._original.lost(self._carrier, self._far_peer)


class Originals:
    """The original's peers of one world. Made by `originals`."""

    def __init__(self, world, nursery):
        self._world, self._nursery = world, nursery
        self._rng = random.Random(f"originals {world.seed}")
        self.all = []

    @property
    def running(self):
        return [peer for peer in self.all if peer.runs]

    async def join(self, peer_id=None, **options):
        """Let one join; its id begins with `peer_id`."""
        start = peer_id or ""
        full = start + self._rng.randbytes(20).hex()[len(start) :]
        peer = Original(self._world.network, self._world.hub, full, 1000 + len(self.all), **options)
        self.all.append(peer)
        return await self._nursery.start(peer.run)


@asynccontextmanager
async def originals(world):
    """The original's peers in a world of `simulated_meshes`. All that run leave at the end, unharmed."""
    async with trio.open_nursery() as nursery:
        crowd = Originals(world, nursery)
        try:
            yield crowd
        finally:
            for peer in crowd.running:
                peer.leave()
            nursery.cancel_scope.cancel("the block ends")
    check(crowd.all)


# --- beside bare nodes ------------------------------------------------------------------------------------------------


class BareOriginal(OriginalPeer):
    """One in a `BareNetwork`, which takes its `node` for one of its own."""

    def __init__(self, net, *, identity=None, **options):
        identity = identity or Identity.from_seed(net._identities.randbytes(32))
        super().__init__(identity.peer_id, random.Random(f"original {identity.peer_id}"), **options)
        self._net = net
        rng = random.Random(0)
        self.node = _Box(net, net.service, net, len(net.nodes), identity, _PATIENT, lambda now: EPOCH + now, rng)
        self.node.original = self
        self.node.links.limit = 1 << 20
        net.nodes.append(self.node)
        net.service.dial(self.node)

    def leave(self):
        super().leave()
        self.node.is_leaving = True
        self._net.after(1.0, self._net.stop, self.node, "left")

    @property
    def runs(self):
        return self.node.is_alive and not self.node.is_leaving

    @property
    def now(self):
        return self._net.now

    @property
    def wall_ms(self):
        return int((EPOCH + self.now) * 1000)

    def _after(self, seconds, action, *args):
        self._net.after(seconds, self._if_it_runs, action, args)

    def _if_it_runs(self, action, args):
        if self.runs:
            action(*args)

    def _say(self, message):
        self._net.service.send(self.node, decode_signaling(json.dumps(message)))

    def _offer(self, peer):
        self.node.links.begin(peer)

    def _answer(self, peer, offer):
        self.node.links.begin(peer, _original(peer), read_sdp(offer["sdp"]))

    def _complete(self, peer, answer):
        self.node.links.feed(_original(peer), read_sdp(answer["sdp"]))

    def _send(self, peer, text):
        self.node.links.send((peer,), decode(text.encode()), urgent=False)

    def _close(self, peer):
        links = self.node.links
        end = links.ends.get(peer)
        if end is None:
            links.drop(peer, "given up")
        else:
            links.fail(end, "given up")

    def reported(self, event):
        """For its node: something happened."""
        match event:
            case ServiceUp():
                self.join()
            case Signaled(_, message):
                self.signaled(encode_signaling(message))
            case LocalSignal(peer, description):
                self.described(peer, _text(description))
            case LinkUp(remote):
                self.opened(remote.peer_id)
            case LinkDown(peer) | LinkLost(peer):
                self.closed(peer)
            case _:
                pass


_PATIENT = MeshConfig(links=LinkConfig(connect_timeout=100_000.0))
"""It never gives up an attempt."""


def _original(peer):
    return RemotePeer(peer, verified=False, version=0)


class _Box(BareNode):
    """What a `BareNetwork` holds for a node: its cores are never told anything."""

    __slots__ = ("original",)

    def report(self, event):
        if self.original.runs:
            self.original.reported(event)

    def arrive(self, end, cargo):
        if end.gone:
            return
        if end.held is not None:
            end.held.append(cargo)
        elif cargo is None or type(cargo).__name__ in {"Close", "bytes"}:
            self.links.take_odd(end, cargo)
        else:
            self.original.heard(end.peer, encode(cargo, text=True).decode())

    def leave(self):
        if self.original.runs:
            self.original.leave()


# --- the original's server --------------------------------------------------------------------------------------------


class OriginalServer:
    """The decisions of the original's signaling server, in place of our `Presence`: everybody hears of every join."""

    def __init__(self):
        self._peers: dict[str, int] = {}
        self._orders: list[Any] = []
        self._of_type: dict[str, Callable[[int, dict[str, Any]], None]] = {
            "join": self._join,
            "leave": self._leave,
            **dict.fromkeys(("signal", "batched_signals", "connection_rejected", "signal_rejected"), self._relay),
        }
        self.relayed = 0

    def connected(self, client, address, now):
        return []

    def received(self, client, text, now):
        message = json.loads(text)
        kind = message.get("type")
        act = self._of_type.get(kind)
        if act is None:
            self._send(client, {"type": "error", "message": f"Unknown message type: {kind}"})
        else:
            act(client, message)
        return self._take()

    def disconnected(self, client, now):
        self._remove(client)
        return self._take()

    def next_deadline(self):
        return float("inf")

    def expire(self, now):
        return []

    def snapshot(self):
        return {"clients": len(self._peers)}

    def _join(self, client, message):
        peer = message["peerId"]
        others = {other: number for other, number in self._peers.items() if other != peer}
        self._peers[peer] = client
        nearest = sorted(others, key=lambda other: xor_distance(other, peer))[:5]
        if nearest:
            self._send(client, {"type": "bootstrap_peers", "peers": [{"id": other} for other in nearest]})
        for number in others.values():
            self._send(number, {"type": "peer_joined", "peerId": peer})

    def _leave(self, client, message):
        self._remove(client)
        self._orders.append(Close(client, 1005, ""))

    def _remove(self, client):
        for peer in [peer for peer, number in self._peers.items() if number == client]:
            del self._peers[peer]
            for number in self._peers.values():
                self._send(number, {"type": "peer_left", "peerId": peer})

    def _relay(self, client, message):
        target = self._peers.get(message.get("to"))
        if target is None:
            self._send(client, {"type": "error", "message": f"Peer {message.get('to')} not found."})
            return
        self.relayed += 1
        sender = next((peer for peer, number in self._peers.items() if number == client), None)
        self._send(target, {**message, "from": sender})

    def _send(self, client, message):
        self._orders.append(Send(client, json.dumps(message)))

    def _take(self):
        orders, self._orders = self._orders, []
        return orders


def at_the_originals_server(world):
    """From now on the world's service is the original's. Before anybody joins."""
    world.hub._presence = server = OriginalServer()
    return server


def mixed(**options):
    """A config that lets the original's peers in."""
    return attrs.evolve(MIXED, **options)


def _text(description):
    return {"type": "offer" if description.is_offer else "answer", "sdp": write_sdp(description)}
