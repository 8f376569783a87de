"""Kademlia: the DHT."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from p2pmesh.config import MeshConfig
from p2pmesh.identity import Identity
from p2pmesh.protocols.core import Effects, Input, WallClock


class KademliaCore:
    """The DHT, one peer of it."""

    def __init__(self, identity: Identity, config: MeshConfig, rng: random.Random, wall: WallClock) -> None:
        del identity, config, rng, wall

    def handle(self, event: Input, now: float) -> Effects:
        del event, now
        return []

    def next_deadline(self) -> float:
        return math.inf

    def expire(self, now: float) -> Effects:
        del now
        return []

    def snapshot(self) -> Mapping[str, Any]:
        return {}
