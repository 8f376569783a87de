"""Ids of an attacker's choice: the keys whose ids come nearest to a place, of as many as a second of one core makes.

Each key is a true one. They are made once in a process, and are the same in each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from functools import cache
from hashlib import sha256
from typing import Final

from nacl.bindings import crypto_sign_seed_keypair

from p2pmesh.identity import Identity, peer_id_of
from p2pmesh.keyspace import PeerId, nearness

TRIES: Final = 20_000
"""Keys that are ground: a second's work."""


def ground(near: PeerId, count: int, taken: Collection[PeerId] = ()) -> list[Identity]:
    """The identities nearest to a place on the ring of ids, on both sides, but for those that are `taken`."""
    places = _ground()
    here, span = bisect_left(places, (near, b"")), count + len(taken)
    free = [one for step in range(-span, span) if (one := places[(here + step) % TRIES])[0] not in taken]
    return [Identity.from_seed(seed) for _, seed in sorted(free, key=lambda one: nearness(near, one[0]))[:count]]


@cache
def _ground() -> list[tuple[PeerId, bytes]]:
    """Ids in their order on the ring, and the seeds of their keys."""
    id_of = peer_id_of.__wrapped__  # the other remembers the last, instead of those that are in use
    seeds = [sha256(b"ground key %d" % number).digest() for number in range(TRIES)]
    return sorted((id_of(crypto_sign_seed_keypair(seed)[0]), seed) for seed in seeds)
