"""What stands twice in a list of ids or receipts counts once: nobody is refused for it, and nothing is done twice."""

from __future__ import annotations

from typing import Any

import pytest

from p2pmesh.protocols.core import SendFrame
from p2pmesh.wire.messages import Gossip, GossipAck, GossipGraft, GossipHave, GossipIHave, GossipWant, Message
from tests.harness.broadcast import ALICE, BOB, CAROL, Bare, gossip, id_of

HERE, LACKED = gossip(ALICE, message_id="here"), gossip(ALICE, message_id="lacked")
H, L = id_of(HERE), id_of(LACKED)


def effects_of(message: Message) -> list[Any]:
    """What a peer that has one broadcast by Bob sends when Carol says this, and in the next second."""
    bare = Bare()
    bare.up(BOB, CAROL)
    bare.hear(BOB, HERE)
    bare.hear(CAROL, message)
    frames = [*bare.got(SendFrame), *bare.wait(1.0).got(SendFrame)]
    return [(frame.peers, frame.message) for frame in frames]


@pytest.mark.parametrize(
    ("message", "once"),
    [
        (GossipGraft(ids=(H, H)), GossipGraft(ids=(H,))),
        (GossipWant(ids=(H, H)), GossipWant(ids=(H,))),
        (GossipIHave(ids=(L, L)), GossipIHave(ids=(L,))),
        (GossipIHave(ids=(L, L), offer=True), GossipIHave(ids=(L,), offer=True)),
        (GossipIHave(ids=(H, H), offer=True), GossipIHave(ids=(H,), offer=True)),
        (GossipHave(ids=(L, H, L, H)), GossipHave(ids=(L, H))),
        (GossipHave(ids=(L, L), within=60_000), GossipHave(ids=(L,), within=60_000)),
        (GossipAck(new=(H, H)), GossipAck(new=(H,))),
        (GossipAck(had=(H, H), prune=(H,)), GossipAck(had=(H,))),
        (GossipAck(prune=(H, H)), GossipAck(prune=(H,))),
    ],
    ids=repr,
)
def test_of_broadcasts(message: Message, once: Message) -> None:
    twice = effects_of(message)
    assert sum(isinstance(sent, Gossip) for _, sent in twice) <= 1
    assert twice == effects_of(once)
