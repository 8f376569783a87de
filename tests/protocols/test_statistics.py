"""Statistics of a peer that has just begun: nothing was counted yet."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import pytest

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.protocols.wiring import build_cores

CORES = build_cores(Identity.from_seed(bytes(32)), MeshConfig(), random.Random(0), lambda now: now)
KNOWN_FROM_THE_START = {
    "overlay.successor_list.size",
    "overlay.fix_fingers.seeks",
    "routing.forwarding_table.hop_limit",
    "kademlia.enabled",
}
"""That a mesh of one is estimated to have one peer, and what is configured."""


def leaves(tree: object, path: str) -> Iterator[tuple[str, object]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for name, value in tree.items():
        yield from leaves(value, f"{path}.{name}")


@pytest.mark.parametrize("subsystem", Subsystem)
def test_a_peer_that_has_just_begun_has_counted_nothing(subsystem):
    counted = {path for path, value in leaves(CORES[subsystem].snapshot(), subsystem.value) if value}
    assert counted <= KNOWN_FROM_THE_START
