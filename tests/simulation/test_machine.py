"""A machine that does to a mesh of bare peers whatever can be done, in any order, and then wants it whole again."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pmesh.config import MeshConfig
from p2pmesh.simulation.discrete.invariants import (
    check_at_most_once,
    check_bounds,
    check_delivery,
    check_islands,
    check_nothing_left,
    check_ring,
    expected,
    members,
)
from p2pmesh.simulation.discrete.network import BareNetwork, Cut
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.model.conditioner import Conditions, Constant
from tests.harness.examples import examples

MOST = 14
"""Peers alive at once."""
index = st.integers(0, MOST - 1)


class MeshMachine(RuleBasedStateMachine):
    """Its rules are the faults; safety holds after each of them, liveness once it is over."""

    @initialize(seed=st.integers(0, 99), peers=st.integers(2, 8), max_peers=st.integers(2, 5))
    def begin(self, seed, peers, max_peers):
        self.net = BareNetwork(seed, config=MeshConfig(max_peers=max_peers))
        for _ in range(peers):
            self.net.add()
            self.net.run(0.2)
        self.net.run(5)

    def one(self, number):
        living = self.net.living()
        return living[number % len(living)]

    @rule(seconds=st.sampled_from([0.05, 0.5, 3.0, 12.0]))
    def time_passes(self, seconds):
        self.net.run(seconds)

    @precondition(lambda self: len(self.net.living()) < MOST)
    @rule(count=st.integers(1, 4), offset=st.sampled_from([0.0, -100.0, 100.0]))
    def peers_join(self, count, offset):
        for _ in range(min(count, MOST - len(self.net.living()))):
            self.net.add(clock_offset=offset)

    @precondition(lambda self: len(self.net.living()) > 2)
    @rule(number=index)
    def a_peer_crashes(self, number):
        self.net.stop(self.one(number))

    @precondition(lambda self: len([node for node in self.net.living() if not node.is_leaving]) > 2)
    @rule(number=index)
    def a_peer_leaves(self, number):
        self.one(number).leave()

    @rule(number=index, fresh=st.booleans())
    def a_peer_restarts(self, number, fresh):
        node = self.one(number)
        if not node.is_leaving:
            self.net.restart(node, fresh=fresh)

    @rule(number=index)
    def a_peer_freezes(self, number):
        self.net.freeze(self.one(number))

    @rule(number=index)
    def a_peer_thaws(self, number):
        self.net.thaw(self.one(number))

    @precondition(lambda self: len(self.net.cuts) < 2)
    @rule(side=st.sets(index, max_size=6), one_way=st.booleans(), partial=st.booleans(), keeps_service=st.booleans())
    def the_network_parts(self, side, one_way, partial, keeps_service):
        numbers = {self.one(number).number: 1 for number in sorted(side)}
        if partial:
            numbers |= {node.number: 0 for node in self.net.living()[::2] if node.number not in numbers}
        self.net.cut(Cut(numbers, one_way=one_way, rest=None if partial else 0, keeps_service=keeps_service))

    @rule()
    def the_network_heals(self):
        self.net.heal()

    @rule()
    def the_service_goes(self):
        self.net.service.stop()

    @rule()
    def the_service_comes(self):
        self.net.service.start()

    @rule(number=index, loss=st.sampled_from([0.0, 0.2]), breaks=st.sampled_from([0.0, 0.02]))
    def links_go_bad(self, number, loss, breaks):
        bad = Conditions(latency=Constant(0.3), loss=loss, breaks=breaks, bandwidth=65536.0)
        self.net.condition([self.one(number)], bad)

    @rule(number=index, pick=index)
    def a_link_breaks(self, number, pick):
        ends = list(self.one(number).links.ends.values())
        if ends:
            self.net.break_link(ends[pick % len(ends)])

    @rule(number=index)
    def a_peer_hides_behind_a_translator(self, number):
        self.net.nats[self.one(number).number] = "symmetric"

    @precondition(lambda self: not any(node.hostile for node in self.net.living()) and len(self.net.living()) > 5)
    @rule(number=index, does=st.sampled_from(Adversary))
    def a_peer_turns_hostile(self, number, does):
        self.net.turn_hostile(self.one(number), does)

    @rule(number=index)
    def a_peer_broadcasts(self, number):
        self.net.publish(self.one(number), "x", ttl=600)

    @invariant()
    def it_is_safe(self):
        if not hasattr(self, "net"):
            return
        check_at_most_once(self.net)
        for node in self.net.living():
            check_bounds(self.net, node)

    def teardown(self):
        if not hasattr(self, "net"):
            return
        net = self.net
        net.heal()
        for node in net.living():
            net.thaw(node)
        net.condition(net.nodes, None)
        net.nats.clear()
        net.service.start()
        quiet_since = net.now
        net.run(150)
        enemies = [node.number for node in net.nodes if node.hostile]
        check_islands(net, without=enemies)
        if net.config.max_peers > 2 or not enemies:
            check_ring(net, without=enemies)
        last = [net.publish(node, "at last") for node in members(net, enemies)[:1]]
        net.run(30)
        if net.config.max_peers > 2:
            check_delivery(net, quiet_since=quiet_since, within=30, without=enemies)
        elif not enemies:  # in a bare ring, who came later and takes no old broadcasts stands between those that do
            assert all(broadcast.has(number) for broadcast in last for number in expected(net, broadcast))
        net.close()
        check_nothing_left(net)


TestMeshMachine = pytest.mark.timeout(600)(MeshMachine.TestCase)
if settings().max_examples <= 100:  # not when it soaks
    TestMeshMachine.settings = settings(examples(15), stateful_step_count=25)
