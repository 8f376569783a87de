"""A hundred bare nodes, a third of them peers of the original."""

import pytest

from p2pmesh.events import MessageReceived
from p2pmesh.simulation.discrete.network import BareNetwork
from tests.harness.original_network import BareOriginal, check, mixed

STRANGERS = 3
"""One in so many is of the original."""


class Country:
    """A `BareNetwork` of ours and theirs, who come in turn."""

    def __init__(self, seed, count, max_peers, every=0.25, *, encode_frames=False):
        self.net = BareNetwork(seed=seed, config=mixed(max_peers=max_peers), encode_frames=encode_frames)
        self.heard = {}
        self.net.listeners.append(self._on_event)
        self.ours, self.theirs = [], []
        for number in range(count):
            if number % STRANGERS == STRANGERS - 1:
                self.theirs.append(BareOriginal(self.net, max_peers=max_peers))
            else:
                self.ours.append(self.net.add())
            self.net.run(every)

    def _on_event(self, node, event):
        if isinstance(event, MessageReceived):
            self.heard.setdefault(event.message_id, []).append(node)

    def links(self, nodes):
        """Who has whom for a neighbour, among these."""
        there = {node.peer_id for node in nodes if node.is_alive}
        return {node.peer_id: [peer for peer in node.peers if peer in there] for node in nodes if node.is_alive}

    def islands(self, *more):
        """Those of our nodes that do not hang together by links among themselves, and whoever else is named."""
        links = self.links([*self.ours, *(js.node for js in more)])
        unseen, sizes = set(links), []
        while unseen:
            frontier, size = [min(unseen)], 0
            while frontier:
                peer = frontier.pop()
                if peer in unseen:
                    unseen.remove(peer)
                    size += 1
                    frontier += links[peer]
            sizes.append(size)
        return sorted(sizes, reverse=True)

    def ring_gaps(self):
        links = self.links(self.ours)
        ring = sorted(links)
        return [peer[:4] for peer, after in zip(ring, ring[1:] + ring[:1], strict=True) if after not in links[peer]]

    def apart(self):
        """Peers of the original that no path leads to."""
        return [js for js in self.theirs if js.runs and len(self.islands(js)) > len(self.islands())]

    def everybody_hears(self, rounds, within=15.0):
        """Some of ours and of theirs say something, and all the others hear it, once."""
        ours = [node for node in self.ours if node.is_alive]
        theirs = [js for js in self.theirs if js.runs]
        for turn in range(rounds):
            self._say(ours[turn * 7 % len(ours)], theirs[turn * 3 % len(theirs)], within)

    def _say(self, node, js, within):
        hello = self.net.publish(node, "ours")
        other = js.broadcast("sim", "theirs")
        self.net.run(within)
        ours = [node for node in self.ours if node.is_alive]
        theirs = [js for js in self.theirs if js.runs]
        assert hello.count == len(ours) - 1
        heard = self.heard.get(other, [])
        assert len(heard) == len(set(heard))
        assert set(heard) == set(ours)
        for one in theirs:
            got = [message["data"] for message in one.delivered]
            one.delivered.clear()
            assert sorted(got) == (["ours"] if one is js else ["ours", "theirs"])


@pytest.mark.parametrize(("count", "settle"), [(12, 45), pytest.param(30, 90, marks=pytest.mark.simulation)])
def test_a_bare_mesh_with_a_third_of_originals_is_whole(count, settle):
    country = Country(seed=1, count=count, max_peers=4, encode_frames=True)
    country.net.run(settle)
    assert country.islands() == [count * 2 // 3]
    assert not country.ring_gaps()
    assert country.islands(*country.theirs) == [count]
    country.everybody_hears(3)
    check(country.theirs)
    country.net.close()


@pytest.mark.simulation
@pytest.mark.parametrize("max_peers", [4, 5])
@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_bare_peers_stay_whole_for_minutes(seed, max_peers):
    country = Country(seed=seed, count=100, max_peers=max_peers)
    country.net.run(90)
    for _ in range(4):
        assert country.islands() == [67]
        assert not country.ring_gaps()
        assert country.islands(*country.theirs) == [100]
        country.everybody_hears(2)
        country.net.run(30)
    check(country.theirs)
    country.net.close()


@pytest.mark.simulation
@pytest.mark.parametrize("seed", range(1))
def test_a_mesh_that_loses_originals_by_the_dozen_heals(seed):
    country = Country(seed=seed, count=90, max_peers=4)
    country.net.run(90)
    for place, js in enumerate(country.theirs[::2]):
        if place % 2:
            js.leave()
        else:
            country.net.stop(js.node)
    country.net.run(120)
    assert country.islands() == [60]
    assert not country.ring_gaps()
    assert country.islands(*(js for js in country.theirs if js.runs)) == [75]
    country.everybody_hears(2)
    check(country.theirs)
    country.net.close()
