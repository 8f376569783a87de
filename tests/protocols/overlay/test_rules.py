"""Rules of the overlay that no other test holds: which peers are tried sooner, leaves, deadlines, intervals."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pmesh.config import MeshConfig, TopologyConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import Effects, Notify, SendFrame
from p2pmesh.protocols.notices import Route, RouteFailed
from p2pmesh.protocols.overlay.passive_view import PassiveView
from p2pmesh.simulation import BareNetwork, simulate, simulated_meshes
from p2pmesh.wire.overlay import FindSuccessor, Stabilise
from tests.harness.overlay import ME, Peer, at, says

SNAPSHOT_PAGE = Path(__file__).parents[3] / "docs" / "snapshot.md"

# --- attempts ---------------------------------------------------------------------------------------------------------


def test_a_peer_that_was_tried_in_vain_is_tried_again_ever_later():
    known = PassiveView(ME, TopologyConfig(retry_first=1.0, retry_cap=60.0), random.Random(1))
    known.learn([at(0x10)], "bootstrap", 0.0)
    for misses in range(6):
        known.missed(at(0x10), 0.0, may_forget=False)
        wait = next(wait for wait in range(10_000) if at(0x10) in known.ready(wait / 100, ())) / 100
        assert 0.5 * 2**misses <= wait <= 2**misses + 0.01


# --- intervals --------------------------------------------------------------------------------------------------------


class Ring(Peer):
    """A core of the default configuration between two neighbours that agree."""

    def __init__(self) -> None:
        super().__init__(4)
        for place in (0x88, 0x78):
            self.up(place, says(place, ring=(0x78, 0x80, 0x88)))

    def step(self) -> Effects:
        """What happens at the next deadline."""
        self.now = self.core.next_deadline()
        return self.core.expire(self.now)


def test_by_default_neighbours_on_the_ring_compare_every_fifteen_seconds():
    ring, times = Ring(), []
    while ring.now < 600:
        beats = [effect for effect in ring.step() if isinstance(effect, SendFrame)]
        if any(isinstance(beat.message, Stabilise) and beat.message.serial is not None for beat in beats):
            times.append(ring.now)
    pauses = [after - before for before, after in pairwise(times)]
    assert all(13.5 <= pause <= 16.5 for pause in pauses)
    assert len(pauses) > 30


def test_ten_searches_for_long_links_in_a_row_that_come_to_nothing_are_enough():
    ring, times = Ring(), []
    while ring.core.next_deadline() < 3600:
        for effect in ring.step():
            if not isinstance(effect, Notify) or not isinstance(effect.input, Route):
                continue
            question = effect.input.message
            assert isinstance(question, FindSuccessor)
            if question.seeks_link:
                times.append(ring.now)
            ring.core.handle(RouteFailed(effect.input.call, "nobody"), ring.now)
    assert len(times) == 10
    assert times[-1] - times[0] < 100


# --- leaves -----------------------------------------------------------------------------------------------------------


def test_peers_with_one_slot_are_leaves_of_a_ring_of_others_and_reach_everybody_and_are_reached():
    net = BareNetwork(seed=11, config=MeshConfig(max_peers=4))
    for number in range(16):
        net.add(config=MeshConfig(max_peers=1) if number % 5 == 4 else None)
        net.run(1.0)
    net.run(120)
    leaves = [node for node in net.nodes if node.config.max_peers == 1]
    assert len(leaves) == 3
    assert all(len(node.peers) == 1 for node in leaves)
    pairs = [(leaf, other) for leaf in leaves for other in net.nodes if other != leaf]
    sendings = [net.send(one, other.peer_id) for pair in pairs for one, other in (pair, pair[::-1])]
    net.run(30)
    assert all(sending.arrived for sending in sendings)


# --- deadlines --------------------------------------------------------------------------------------------------------


def simulated(test: Any) -> Any:
    """Runs an async test in virtual time."""

    @functools.wraps(test)
    def run() -> None:
        simulate(test, seed=1)

    return run


@simulated
async def test_a_send_ends_with_its_callers_deadline_and_leaves_nothing():
    async with simulated_meshes(4, seed=1, max_peers=3) as world:
        alice = world.meshes[0]
        await world.until(lambda: not world.ring_gaps())
        nobody = Identity.from_seed(bytes(32)).peer_id
        started = trio.current_time()
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.05):
            await alice.send(nobody, "hello?")
        assert trio.current_time() == pytest.approx(started + 0.05)
        await trio.sleep(0.01)
        assert alice.snapshot()["subsystems"]["routing"]["direct_sender"]["in_flight"] == 0
        assert alice.snapshot()["subsystems"]["routing"]["requests"]["in_flight"] == 0


@simulated
async def test_a_snapshot_shows_the_ring_and_which_ways_offers_went():
    async with simulated_meshes(5, seed=1, max_peers=3) as world:
        await world.until(lambda: not world.ring_gaps())
        await trio.sleep(60)
        ids = sorted(mesh.peer_id for mesh in world.meshes)
        offers = 0
        for mesh in world.meshes:
            parts = mesh.snapshot()["subsystems"]
            place = ids.index(mesh.peer_id)
            overlay, lists = parts["overlay"], parts["overlay"]["successor_list"]
            assert lists["successors"][0] == ids[(place + 1) % 5]
            assert lists["predecessors"][0] == ids[place - 1]
            assert {ids[(place + 1) % 5], ids[place - 1]} == set(overlay["ring"])
            assert lists["size"] == 5
            offers += parts["signaling"]["delivery"]["offers"]["mesh"]
        assert offers > 0


def test_the_documentation_names_every_key_of_a_snapshot():
    def keys(snapshot: Mapping[str, Any], prefix: str = "") -> list[str]:
        return [
            key
            for name, value in snapshot.items()
            for key in (keys(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name])
        ]

    section = SNAPSHOT_PAGE.read_text().partition("## overlay\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)) == sorted(keys(Peer().snap()))
