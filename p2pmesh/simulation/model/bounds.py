"""Bounds that a peer's structures keep to in every simulation, read from its statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from p2pmesh.config import MeshConfig
from p2pmesh.protocols.islands.bridge_merge import MAX_FLOODS
from p2pmesh.protocols.islands.islands import MAX_CALLS
from p2pmesh.protocols.islands.recovery import MAX_CASES

LOOK_EVERY: Final = 1.0
"""Seconds between two checks of the bounds."""


def bounds_of(snapshot: Mapping[str, Any], config: MeshConfig) -> Iterator[tuple[str, float, float]]:
    """Every bounded structure in a snapshot's subsystems: its name, its size, and what the config allows."""
    broadcast, links = snapshot["broadcast"], config.max_peers
    yield "broadcast.history", broadcast["store"]["messages"], config.broadcast.history
    yield "broadcast.history_bytes", broadcast["store"]["bytes"], config.broadcast.history_bytes + config.max_payload
    yield "broadcast.seen_ids", broadcast["seen"]["ids"], config.broadcast.seen_ids
    yield "broadcast.seen_ids", broadcast["seen"]["streams"], config.broadcast.seen_ids
    yield "broadcast.in_flight", broadcast["eager_push"]["in_flight"], config.broadcast.window * links
    yield "broadcast.backlog", broadcast["eager_push"]["backlog"], config.broadcast.backlog * links
    receipts = snapshot["receipts"]
    yield "receipts.own", receipts["own"], config.receipts.table
    yield "receipts.relayed", receipts["relayed"], config.receipts.table
    routing = snapshot["routing"]
    receiver = routing["receiver"]
    yield "routing.direct_sender.in_flight", routing["direct_sender"]["in_flight"], config.routing.pending
    yield "routing.receiver.seen_ids", receiver["seen_ids"], config.routing.seen_ids
    yield "routing.receiver.questions", receiver["questions"], config.routing.remembered_routes
    yield "routing.requests.in_flight", routing["requests"]["in_flight"], config.routing.requests
    yield "routing.contacts", routing["contacts"], config.routing.remembered_routes
    yield "routing.forwarding_table.relays", routing["forwarding_table"]["relays"], links
    overlay = snapshot["overlay"]
    slots = len(overlay["links"]) + len(overlay["attempts"]) + len(overlay["closing"])
    yield "overlay.slots", slots, links
    yield "overlay.known", overlay["passive_view"]["known"], config.topology.known_peers
    lists = overlay["successor_list"]
    yield "overlay.successors", len(lists["successors"]), config.chord.successors
    yield "overlay.predecessors", len(lists["predecessors"]), config.chord.successors
    signaling, offers = snapshot["signaling"]["delivery"], snapshot["signaling"]["offer_answer"]
    yield "signaling.remembered_peers", signaling["remembered_peers"], config.signaling.remembered_peers
    yield "signaling.routes", signaling["routes"], config.signaling.routes
    yield "signaling.own_offers", signaling["open"], config.signaling.remembered_offers
    yield "signaling.heard_offers", offers["heard_offers"], config.signaling.remembered_offers
    found = snapshot["islands"]
    yield "islands.suspects", found["detection"]["suspects"], config.islands.suspects
    yield "islands.floods", found["bridges"]["floods"], MAX_FLOODS
    yield "islands.healing", found["recovery"]["healing"], MAX_CASES
    yield "islands.calls", found["calls"], MAX_CALLS
