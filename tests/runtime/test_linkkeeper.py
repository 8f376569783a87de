"""The link keeper under random but legal orders, over simulated links, with faults at the worst moments."""

import random
from collections import Counter, deque

import pytest
import trio

from p2pmesh.config import LinkConfig, MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.links.link import Attempt, Dialer, local_health
from p2pmesh.protocols.inputs import LinkDown, LinkLost, LinkRecovered, LinkSuspected, LinkUp, LocalSignal, RemotePeer
from p2pmesh.runtime.linkkeeper import ATTEMPTS_AT_ONCE, ATTEMPTS_PER_SECOND, FEED, LinkKeeper
from p2pmesh.simulation.full.network import SimNetwork
from p2pmesh.simulation.model.sdp_stub import describe
from p2pmesh.wire.messages import Direct, GossipAck, IceCandidate

CONFIG = LinkConfig(connect_timeout=1.0, close_timeout=0.5, outbox=4, outbox_patience=1.0)
SHARE = MeshConfig().work.links
FOREIGN = IceCandidate(address=bytes([192, 0, 2, 1]), port=9)


class Owner:
    """Stands where topology and signaling do: gives orders by what it has heard so far, which may be old."""

    def __init__(self, field, identity, max_peers, max_frame=None):
        self.field = field
        self.peer_id = identity.peer_id
        self.max_peers = max_peers
        self.slots = {}
        self.heard = deque()
        self.up = {}
        self.ordered = Counter()
        self.ended = Counter()
        self.given_up = Counter()
        self.offers = {}
        self.messages = 0
        dialer = field.network.dialer(self.peer_id, CONFIG, max_frame)
        self.keeper = LinkKeeper(dialer, CONFIG, max_peers, self.report, self.deliver, lambda: None, SHARE)

    # --- what the keeper tells, at once and as the owner learns of it ---

    def report(self, event):
        self.field.check_cap()
        match event:
            case LinkUp(remote):
                assert remote.peer_id not in self.up, "two links to one peer"
                self.up[remote.peer_id] = "heard"
            case LinkDown(peer):
                assert self.up.pop(peer, None), "a link went down that was not up"
            case LinkSuspected(peer):
                assert self.up[peer] == "heard", "a link is silent that was not heard before"
                self.up[peer] = "silent"
            case LinkRecovered(peer):
                assert self.up[peer] == "silent", "a link is heard that was not silent before"
                self.up[peer] = "heard"
            case _:
                pass
        self.heard.append(event)
        if self.field.rng.random() < 0.5:
            self.learn()

    def learn(self):
        while self.heard:
            self.take(self.heard.popleft())

    def take(self, event):
        match event:
            case LinkUp(remote):
                self.ended[remote.peer_id] += 1
                if remote.peer_id in self.slots:
                    self.slots[remote.peer_id] = "open"
                else:  # it opened while we gave it up, which the keeper knows
                    self.given_up[remote.peer_id] -= 1
                    self.slots[remote.peer_id] = "closing"
                    self.keeper.drop(remote.peer_id, "surplus")
            case LinkDown(peer):
                assert self.slots.pop(peer) in {"open", "closing"}
            case LinkLost(peer, _):
                self.ended[peer] += 1
                if self.slots.get(peer) in {"dialing", "answering"}:
                    del self.slots[peer]
            case LocalSignal(peer, signal):
                self.field.later(self.field.owners[peer].signaled, self.peer_id, signal)
            case LinkSuspected() | LinkRecovered():
                pass
            case _:
                raise AssertionError(event)

    async def deliver(self, peer, message):
        self.messages += 1
        await trio.sleep(self.field.rng.choice([0, 0, 0.01]))

    # --- orders ---

    def act(self):
        self.learn()
        rng, others = self.field.rng, [peer for peer in self.field.owners if peer != self.peer_id]
        peer = rng.choice(others)
        match rng.randrange(6):
            case 0 | 1 | 2 if peer not in self.slots and len(self.slots) < self.max_peers:
                self.want(peer)
            case 3 if self.slots.get(peer) in {"dialing", "answering", "open"}:
                self.drop(peer)
                if rng.random() < 0.5:  # and at once what its slot is free for
                    self.act()
            case 4:
                self.keeper.send(tuple(others), GossipAck(new=("x" * rng.choice([1, 100]),)), urgent=rng.random() < 0.5)
            case 5:
                self.keeper.feed(self.field.remote(peer), FOREIGN)
            case _:
                pass  # that order would not be legal now
        self.field.check_cap()

    def want(self, peer):
        self.slots[peer] = "dialing"
        self.ordered[peer] += 1
        self.keeper.want(peer)

    def drop(self, peer):
        if self.slots[peer] == "open":
            self.slots[peer] = "closing"
        else:
            del self.slots[peer]
            self.given_up[peer] += 1
        self.keeper.drop(peer, "by order", blame=self.field.rng.random() < 0.2)

    def signaled(self, sender, signal):
        self.learn()
        if not signal.is_offer:
            self.keeper.feed(self.field.remote(sender), signal)
            return
        slot = self.slots.get(sender)
        glare = slot == "dialing" and self.peer_id < sender
        if slot in {"open", "closing"} or glare or (slot is None and len(self.slots) >= self.max_peers):
            return
        if slot is not None:
            self.given_up[sender] += 1  # the new attempt replaces the old one, which ends in silence
        self.slots[sender] = "answering"
        self.ordered[sender] += 1
        self.keeper.accept(self.field.remote(sender), signal)


class Field:
    """A few keepers on one network. Watches the cap at each instant, and strikes when a link opens."""

    def __init__(self, seed, count, max_peers, snipe):
        self.rng = random.Random(seed)
        self.snipe = snipe
        self.network = SimNetwork(random.Random(seed), watcher=self)
        self.owners = {}
        for number in range(count):
            identity = Identity.from_seed(bytes([number + 1]) * 32)
            self.owners[identity.peer_id] = Owner(self, identity, max_peers)
        self.open_ends = Counter()

    def remote(self, peer):
        return RemotePeer(peer, verified=True, version=1)

    def later(self, call, *args):
        if self.rng.random() < 0.95:  # a service loses some
            self.network.at(trio.current_time() + self.rng.uniform(0, 0.05), call, *args)

    def link_opened(self, dialer, peer):
        owner = self.owners[dialer.peer_id]
        self.open_ends[owner.peer_id] += 1
        self.check_cap()
        if self.rng.random() < self.snipe:
            self.network.at(trio.current_time(), self.strike, owner, peer)

    def strike(self, owner, peer):
        """The attempt has just succeeded, and its task has not run yet."""
        if owner.slots.get(peer) in {"dialing", "answering"}:
            owner.drop(peer)

    def link_closed(self, dialer, peer):
        self.open_ends[dialer.peer_id] -= 1

    def check_cap(self):
        for owner in self.owners.values():
            assert len(owner.up) <= owner.max_peers
            assert self.open_ends[owner.peer_id] <= owner.max_peers, "more open links than are allowed"
            snapshot = owner.keeper.snapshot()
            assert len(snapshot["open"]) + len(snapshot["attempting"]) <= owner.max_peers

    def misfortune(self):
        a, b = self.rng.sample(list(self.owners), 2)
        match self.rng.randrange(4):
            case 0 if {(a, b), (b, a)} <= set(self.network.links()):
                self.network.break_link(a, b)
            case 1:
                self.network.freeze(a)
            case _:
                for peer in self.owners:
                    self.network.thaw(peer)


@pytest.mark.parametrize("snipe", [0.0, 0.4])
@pytest.mark.parametrize("max_peers", [1, 3])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (1, 2))])
async def test_any_legal_orders_keep_the_cap_and_end_as_promised(autojump_clock, seed, max_peers, snipe):
    field = Field(seed, 6, max_peers, snipe)
    async with field.network, trio.open_nursery() as nursery:
        for owner in field.owners.values():
            await nursery.start(owner.keeper.run)
        for _ in range(600):
            field.rng.choice(list(field.owners.values())).act()
            if field.rng.random() < 0.01:
                field.misfortune()
            await trio.sleep(field.rng.choice([0, 0, 0.001, 0.02, 0.1]))
        opened = sum(owner.keeper.snapshot()["opened"] for owner in field.owners.values())
        assert opened > 5, "this run tested nothing"
        for peer in field.owners:
            field.network.thaw(peer)

        # what is not wanted ends, what was promised came, and nothing is left
        for owner in field.owners.values():
            owner.learn()
            for peer in [peer for peer, state in owner.slots.items() if state != "closing"]:
                owner.drop(peer)
        await trio.sleep(CONFIG.connect_timeout + 10 * CONFIG.close_timeout)
        for owner in field.owners.values():
            owner.learn()
            assert not owner.slots
            assert not owner.up
            snapshot = owner.keeper.snapshot()
            assert not snapshot["open"]
            assert not snapshot["attempting"]
            assert snapshot["opened"] == snapshot["closed"]
            for peer, ordered in owner.ordered.items():
                assert ordered == owner.ended[peer] + owner.given_up[peer]
            with trio.fail_after(1):
                await owner.keeper.drained()
        assert not list(field.network.links())
        assert not field.network.attempts()
        nursery.cancel_scope.cancel()


async def test_a_link_that_opens_in_the_moment_it_is_given_up_is_closed_on_both_sides(autojump_clock):
    field = Field(1, 2, 1, snipe=1.0)
    alice, bob = field.owners.values()
    async with field.network, trio.open_nursery() as nursery:
        for owner in (alice, bob):
            await nursery.start(owner.keeper.run)
        field.rng = random.Random(3)
        alice.want(bob.peer_id)
        for _ in range(40):
            await trio.sleep(0.1)
            alice.learn()
            bob.learn()
        assert not list(field.network.links())
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [2_000, 200_000])
async def test_what_is_too_large_for_one_peer_costs_no_link(autojump_clock, size):
    """A peer may take smaller frames than we do, and says so when the link opens."""
    field = Field(2, 1, 1, snipe=0.0)
    small = MeshConfig(max_payload=1)
    identity = Identity.from_seed(bytes([9]) * 32)
    alice = next(iter(field.owners.values()))
    bob = field.owners[identity.peer_id] = Owner(field, identity, 1, small.max_frame)
    async with field.network, trio.open_nursery() as nursery:
        for owner in (alice, bob):
            await nursery.start(owner.keeper.run)
        field.later = lambda call, *args: field.network.at(trio.current_time(), call, *args)
        alice.want(bob.peer_id)
        while alice.slots != {bob.peer_id: "open"}:
            await trio.sleep(0.1)
            alice.learn()
            bob.learn()
        for n in (1, size, 2):
            alice.keeper.send((bob.peer_id,), Direct(id="d", payload="x" * n), urgent=False)
            alice.keeper.flush()
            await trio.sleep(1)
        assert alice.slots == {bob.peer_id: "open"}
        assert alice.keeper.snapshot()["frames_too_large"] == (size > small.max_frame)
        assert bob.messages == 2 + (size <= small.max_frame)
        nursery.cancel_scope.cancel()


async def test_signals_for_one_attempt_are_bounded(autojump_clock):
    field = Field(1, 2, 1, snipe=0.0)
    alice, bob = field.owners.values()
    async with field.network, trio.open_nursery() as nursery:
        await nursery.start(alice.keeper.run)
        alice.keeper.feed(field.remote(bob.peer_id), FOREIGN)
        assert alice.keeper.snapshot()["signals_dropped"] == 1, "there is no attempt yet"
        alice.want(bob.peer_id)
        for _ in range(FEED + 10):
            alice.keeper.feed(field.remote(bob.peer_id), FOREIGN)
        assert alice.keeper.snapshot()["signals_dropped"] == 1 + 10
        nursery.cancel_scope.cancel()


async def test_frames_that_wait_for_one_link_are_bounded_in_each_lane(autojump_clock):
    field = Field(1, 2, 1, snipe=0.0)
    alice, bob = field.owners.values()
    async with field.network, trio.open_nursery() as nursery:
        for owner in (alice, bob):
            await nursery.start(owner.keeper.run)
        field.later = lambda call, *args: field.network.at(trio.current_time(), call, *args)
        alice.want(bob.peer_id)
        while alice.slots != {bob.peer_id: "open"}:
            await trio.sleep(0.1)
            alice.learn()
            bob.learn()
        large = GossipAck(new=tuple(f"{n:0100}" for n in range(200)))  # one is all that the link itself takes at once
        for urgent in (False, True):  # all in one instant: no writer has run yet
            for _ in range(1 + CONFIG.outbox + 3):
                alice.keeper.send((bob.peer_id,), large, urgent=urgent)
        alice.keeper.flush()
        assert alice.keeper.snapshot()["frames_dropped"] == 2 * 3
        await trio.sleep(1)
        assert bob.messages == 2 * (1 + CONFIG.outbox)
        assert alice.slots == {bob.peer_id: "open"}
        nursery.cancel_scope.cancel()


class Stuck(Attempt):
    """An attempt that finds another address, and never opens."""

    peer_id = Identity.generate().peer_id
    description = describe("0123", bytes(32), "actpass")
    trouble = "stun:192.0.2.1:3478 did not answer"

    def trickle(self, tell):
        tell(FOREIGN)

    async def feed(self, signal):
        await trio.lowlevel.checkpoint()

    async def opened(self, peer):
        await trio.sleep_forever()

    async def aclose(self):
        await trio.lowlevel.checkpoint()


class StuckDialer(Dialer):
    async def offer(self, peer):
        await trio.lowlevel.checkpoint()
        return Stuck()

    async def answer(self, peer, offer):
        return await self.offer(peer)

    async def aclose(self):
        await trio.lowlevel.checkpoint()


async def test_time_that_this_process_loses_is_not_counted_against_who_links(nursery, autojump_clock):
    told = []
    keeper = LinkKeeper(StuckDialer(), CONFIG, 3, told.append, None, lambda: None, SHARE)
    await nursery.start(keeper.run)
    keeper.want(Stuck.peer_id)
    await trio.sleep(0.5)
    local_health().note(trio.current_time() - 3, trio.current_time())
    await trio.sleep(2)
    assert not [one for one in told if isinstance(one, LinkLost)]
    await trio.sleep(3)
    assert isinstance(told[-1], LinkLost)


async def test_a_link_that_does_not_come_is_told_with_what_stands_in_its_way(nursery, autojump_clock):
    told = []
    keeper = LinkKeeper(StuckDialer(), CONFIG, 3, told.append, None, lambda: None, SHARE)
    await nursery.start(keeper.run)
    keeper.want(Stuck.peer_id)
    await trio.sleep(2 * CONFIG.connect_timeout)
    assert told == [
        LocalSignal(Stuck.peer_id, Stuck.description),
        LocalSignal(Stuck.peer_id, FOREIGN),
        LinkLost(Stuck.peer_id, f"no link within 1 s: {Stuck.trouble}"),
    ]


async def test_attempts_that_are_caused_again_and_again_take_turns_and_one_that_is_given_up_takes_none(
    nursery, autojump_clock
):
    began = []

    class CountingDialer(StuckDialer):
        async def offer(self, peer):
            began.append(trio.current_time())
            return await super().offer(peer)

    keeper = LinkKeeper(CountingDialer(), CONFIG, 3, lambda event: None, None, lambda: None, SHARE)
    await nursery.start(keeper.run)
    for _ in range(200):  # each takes the place of the last, as an offer that is taken back and made anew
        keeper.want(Stuck.peer_id)
        await trio.sleep(0.05)
    at_once = ATTEMPTS_AT_ONCE + 2 * 3
    assert at_once <= len(began) <= at_once + 10 * ATTEMPTS_PER_SECOND + 1
    keeper.drop(Stuck.peer_id, "enough")
    before = len(began)
    keeper.want(Stuck.peer_id)
    await trio.sleep(1 / ATTEMPTS_PER_SECOND + 0.01)
    assert len(began) == before + 1
