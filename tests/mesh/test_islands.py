"""Islands find each other and become one ring again: by partition, by two services, by mass failure."""

import random
from functools import reduce
from operator import getitem

import pytest

from p2pmesh.config import MeshConfig
from p2pmesh.events import IslandHealed, IslandSuspected
from p2pmesh.simulation.discrete.invariants import islands, ring_gaps
from p2pmesh.simulation.discrete.network import BareNetwork, Cut


class Parted:
    """A bare network at rest, and what its peers say of islands."""

    def __init__(self, peers, *, seed=1, max_peers=5):
        self.net = BareNetwork(seed=seed, config=MeshConfig(max_peers=max_peers))
        self.events = []
        for _ in range(peers):
            self.net.add()
            self.net.run(0.1)
        assert self.heals_within(60)
        self.net.run(15)
        self.net.listeners.append(self._listen)

    def _listen(self, node, event):
        if isinstance(event, IslandSuspected | IslandHealed):
            self.events.append((self.net.now, node.number, event))

    def cut(self, *shares, keeps_service, seconds=60.0):
        """Part it into islands of these many peers, the first of all that are not named, and heal it."""
        numbers = [node.number for node in self.net.living()]
        random.Random(self.net.seed).shuffle(numbers)
        sides, start = {}, 0
        for side, share in enumerate(shares, start=1):
            sides |= dict.fromkeys(numbers[start : start + share], side)
            start += share
        self.net.cut(Cut(sides, keeps_service=keeps_service))
        self.net.run(seconds)
        assert len(islands(self.net)) > len(shares)
        self.net.heal()

    def is_one(self):
        return len(islands(self.net)) == 1 and not ring_gaps(self.net)

    def heals_within(self, seconds):
        end = self.net.now + seconds
        while self.net.now < end and not self.is_one():
            self.net.run(1.0)
        return self.is_one()

    def total(self, name):
        return sum(
            reduce(getitem, name.split("."), node.snapshot()["subsystems"]["islands"]) for node in self.net.living()
        )

    def said(self, kind):
        return [(time, number, event) for time, number, event in self.events if isinstance(event, kind)]


@pytest.mark.parametrize("keeps_service", [False, pytest.param(True, marks=pytest.mark.simulation)])
@pytest.mark.parametrize(("peers", "apart"), [(10, 30), pytest.param(16, 60, marks=pytest.mark.simulation)])
def test_two_halves_become_one_ring(peers, apart, keeps_service):
    mesh = Parted(peers)
    mesh.cut(peers // 2, keeps_service=keeps_service, seconds=apart)
    assert mesh.heals_within(30)
    mesh.net.run(apart)
    # A peer that comes back to the service is in place soon: so small a ring may close before anybody is missed.
    assert mesh.said(IslandSuspected) or not keeps_service
    assert bool(mesh.said(IslandHealed)) == bool(mesh.said(IslandSuspected))


@pytest.mark.parametrize("sizes", [(4, 3, 2), pytest.param((7, 4, 3), marks=pytest.mark.simulation)])
def test_islands_of_any_size_become_one_ring(sizes):
    mesh = Parted(sum(sizes) + 2 * sizes[-1])
    mesh.cut(*sizes, keeps_service=True, seconds=30)
    assert mesh.heals_within(40)


@pytest.mark.parametrize("peers", [10, pytest.param(16, marks=pytest.mark.simulation)])
def test_who_heals_is_told_once_what_was_suspected(peers):
    mesh = Parted(peers)
    mesh.cut(peers // 2, keeps_service=True, seconds=30)
    assert mesh.heals_within(30)
    mesh.net.run(30)
    for time, number, healed in mesh.said(IslandHealed):
        before = [then for then, who, _ in mesh.said(IslandSuspected) if who == number and then <= time]
        assert any(then + healed.duration == pytest.approx(time) for then in before)
    assert len({(number, event.bridge) for _, number, event in mesh.said(IslandHealed)}) == len(mesh.said(IslandHealed))


def test_at_rest_nobody_is_suspected_and_nothing_is_asked():
    mesh = Parted(12)
    before = mesh.total("lookups"), mesh.total("detection.pings"), mesh.total("merges")
    mesh.net.run(120)
    assert mesh.total("detection.suspects") == mesh.total("recovery.healing") == mesh.total("calls") == 0
    assert (mesh.total("lookups"), mesh.total("detection.pings"), mesh.total("merges")) == before
    assert not mesh.events


@pytest.mark.parametrize(
    ("peers", "apart"),
    [
        (10, 30),
        (12, 40),
        *(pytest.param(*case, marks=pytest.mark.simulation) for case in [(10, 40), (10, 60), (16, 30), (16, 40)]),
    ],
)
def test_nobody_is_suspected_for_long_once_islands_have_healed(peers, apart):
    mesh = Parted(peers)
    mesh.cut(peers // 2, keeps_service=True, seconds=apart)
    mesh.net.run(120)
    assert mesh.is_one()
    assert mesh.total("detection.suspects") == mesh.total("recovery.healing") == mesh.total("calls") == 0


def test_the_dead_are_forgotten():
    mesh = Parted(11)
    for node in mesh.net.living()[::5]:
        mesh.net.stop(node)
    mesh.net.run(15)
    assert mesh.total("detection.suspects") > 0
    mesh.net.run(200)
    assert mesh.total("detection.suspects") == 0
    assert not mesh.said(IslandSuspected)


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("peers", [15, pytest.param(30, marks=pytest.mark.simulation)])
def test_the_survivors_of_a_mass_failure_become_one_ring(peers, share):
    mesh = Parted(peers)
    for node in random.Random(3).sample(mesh.net.living(), int(peers * share)):
        mesh.net.stop(node)
    mesh.net.run(6)
    assert mesh.heals_within(60)
