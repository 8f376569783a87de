"""A machine that is too slow makes everything slow, and nothing wrong: nothing is lost, nobody blamed or given up."""

import functools

import pytest
import trio
from trio.testing import MockClock

from p2pmesh import Event, PeerConnected, PeerDisconnected, PeerTimedOut
from p2pmesh.config import MeshConfig
from p2pmesh.simulation import BareNetwork, Broadcast, FaultInjector, FaultPlan, Slow, simulate, simulated_meshes
from p2pmesh.simulation.discrete.invariants import watch

PEERS = 8
RATE = 2.5
"""Broadcasts a second that each application makes, as soon as the last one has gone out."""


class Load:
    """Applications of bare peers that broadcast all the time, and what became of that."""

    def __init__(self, seed: int) -> None:
        self.net = net = BareNetwork(seed, config=MeshConfig(max_peers=3))
        watch(net)
        for _ in range(PEERS):
            net.add()
            net.run(0.1)
        net.run(15)
        self.sent: list[Broadcast] = []
        self.events: list[Event] = []
        self.waited = 0.0
        self.ends = net.now
        net.listeners.append(lambda node, event: self.events.append(event))

    def begin(self, seconds):
        self.ends = self.net.now + seconds
        for number, node in enumerate(self.net.nodes):
            self.net.after(number / PEERS / RATE, self._publish, node)

    def _publish(self, node, _=None):
        """Broadcast, unless the last one has not gone out yet."""
        last = next((one for one in reversed(self.sent) if one.origin == node.number), None)
        if node.is_running and (last is None or last.message_id is not None):
            self.sent.append(self.net.publish(node, b"x" * 500))
        else:
            self.waited += 1 / RATE
        if self.net.now < self.ends:
            self.net.after(1 / RATE, self._publish, node)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def check(self):
        """Nothing is missing, nobody was blamed, and links stay; at most one changes hands as the overlay improves."""
        assert [one for one in self.sent if one.count < PEERS - 1] == []
        assert not self.net.delivery_log.twice
        assert sum(node.links.counts.protocol_errors for node in self.net.nodes) == 0
        assert not self.of(PeerTimedOut)
        assert len(self.of(PeerConnected)) <= 4
        assert not [event for event in self.of(PeerDisconnected) if "slow" in event.reason]


@pytest.mark.parametrize(
    ("pace", "seed"),
    [(0.03, 1), *(pytest.param(pace, seed, marks=pytest.mark.simulation) for pace in (0.03, 0.06) for seed in (2, 3))],
)
def test_peers_that_all_have_too_much_to_do_lose_nothing_and_publishers_wait(pace, seed):
    load = Load(seed)
    for node in load.net.nodes:
        node.work_at(pace)
    load.begin(40)
    load.net.run(40)
    assert load.waited > 0.2 * 40 * PEERS, "there is far more to do than can be done"
    load.net.run(40)
    load.check()
    late = sorted(load.net.delivery_log.latencies)
    assert late[len(late) * 9 // 10] < 500 * pace, "what waits, waits where it was made"


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.simulation) for seed in (2, 3))])
def test_peers_that_stop_and_go_lose_nothing(seed):
    load = Load(seed)
    injector = FaultInjector(load.net, FaultPlan([Slow(at=0, seconds=40, peers=tuple(range(PEERS)))]))
    load.begin(40)
    load.net.run(40)
    injector.end()
    load.net.run(40)
    load.check()


@pytest.mark.parametrize("stop", [1.0, 20.0])
def test_a_process_that_was_stopped_gives_up_nobody(stop):
    """All meshes of it, that is, with the real drivers and links."""

    async def run() -> None:
        async with simulated_meshes(5, seed=2, max_peers=3) as world:
            await world.linked()
            lost = []

            async def watch_links() -> None:
                async with world.meshes[0].events() as events:
                    async for event in events:
                        lost.extend([event] if isinstance(event, PeerTimedOut | PeerDisconnected) else [])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_links)
                for _ in range(5):
                    await trio.sleep(2.7)
                    receipt = await world.meshes[0].broadcast("t", 1)
                    await trio.sleep(0.01)  # it is on its way
                    clock = trio.lowlevel.current_clock()
                    assert isinstance(clock, MockClock)
                    clock.jump(stop)
                    await world.delivered(receipt)
                nursery.cancel_scope.cancel()
            assert lost == []

    simulate(functools.partial(run), seed=1)
