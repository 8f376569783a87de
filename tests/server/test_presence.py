"""What the signaling server decides: sans-IO, message by message."""

import json
import math
import random
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.errors import ConfigError, LocalProtocolError
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId, ring_distance, xor_distance
from p2pmesh.protocols.signaling.handshake import sign_join
from p2pmesh.server.config import ServerConfig
from p2pmesh.server.presence import Close, Order, Presence, Send
from p2pmesh.server.rooms import ELDERS, ELDERS_OF_NETWORK, PROMPT, SHARE, Member, Named, Room
from p2pmesh.wire.signaling import ERROR_CODES, Join

NOW = 1_000_000.0
A, B, C = "a" * 40, "b" * 40, "c" * 40
NOWHERE = "f" * 40
RELAYED = [
    "signal",
    "batched_signals",
    "connection_rejected",
    "signal_rejected",
    "offer",
    "answer",
    "candidate",
    "ack",
    "kademlia_rpc_request",
    "kademlia_rpc_response",
]


def peer_id(number: int) -> PeerId:
    return PeerId(f"{random.Random(number).getrandbits(160):040x}")


class Service:
    """A presence whose wall clock is its monotonic one, with what each client was sent."""

    def __init__(self, **config: Any) -> None:
        self.config = ServerConfig(**config)
        self.presence = Presence(self.config, random.Random(1), lambda now: now)
        self.now = NOW
        self.inbox: dict[int, list[dict[str, Any]]] = {}
        self.closed: dict[int, Close] = {}
        self.connections = 0

    def connect(self, address: str = "192.0.2.1") -> int:
        self.connections += 1
        self.inbox[self.connections] = []
        self.take(self.presence.connected(self.connections, address, self.now))
        return self.connections

    def say(self, client: int, data: Any = None, /, **message: Any) -> list[dict[str, Any]]:
        """Send, and give what this client was answered."""
        self.inbox[client].clear()
        self.take(self.presence.received(client, json.dumps(message) if data is None else data, self.now))
        return list(self.inbox[client])

    def join(self, client: int, peer: str, **fields: Any) -> list[dict[str, Any]]:
        return self.say(client, type="join", peerId=peer, **fields)

    def joined(self, peer: str, **fields: Any) -> int:
        client = self.connect()
        self.join(client, peer, **fields)
        self.inbox[client].clear()
        return client

    def join_signed(self, client: int, join: Join) -> list[dict[str, Any]]:
        return self.say(client, msgspec.json.encode(join))

    def leave(self, client: int) -> None:
        self.take(self.presence.disconnected(client, self.now))

    def take(self, orders: list[Order]) -> int:
        for order in orders:
            match order:
                case Send(client, text):
                    assert client not in self.closed
                    self.inbox[client].append(json.loads(text))
                case Close(client):
                    assert client not in self.closed
                    self.closed[client] = order
        return len(orders)

    def clear(self) -> None:
        for messages in self.inbox.values():
            messages.clear()


def codes(messages: list[dict[str, Any]]) -> list[str]:
    return [message["code"] for message in messages if message["type"] == "error"]


# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_legacy_client_alone_gets_no_answer_and_one_with_a_version_gets_an_empty_one() -> None:
    service = Service()
    assert service.join(service.connect(), A) == []
    assert service.join(service.connect(), B, room="other", version=1) == [{"type": "bootstrap_peers", "peers": []}]


def test_joiner_and_neighbours_are_told_of_each_other() -> None:
    service = Service()
    first, second = service.joined(A), service.connect()
    assert service.join(second, B) == [{"type": "bootstrap_peers", "peers": [{"id": A}]}]
    assert service.inbox[first] == [{"type": "peer_joined", "peerId": B}]


def test_a_repeated_join_announces_again_and_answers_afresh() -> None:
    service = Service()
    first, second = service.joined(A), service.joined(B)
    service.clear()
    assert service.join(second, B) == [{"type": "bootstrap_peers", "peers": [{"id": A}]}]
    assert service.inbox[first] == [{"type": "peer_joined", "peerId": B}]
    assert service.presence.snapshot()["members"] == 2


def test_a_second_id_replaces_the_first_one_of_a_client() -> None:
    service = Service()
    first, second = service.joined(A), service.joined(B)
    service.clear()
    service.join(second, C)
    assert service.inbox[first] == [{"type": "peer_left", "peerId": B}, {"type": "peer_joined", "peerId": C}]
    assert service.presence.snapshot()["members"] == 2
    assert service.say(first, type="signal", to=B, signal={})[0]["message"] == f"Peer {B} not found."


def name_to(room: Room, probe: PeerId, *, count: int = 5, now: float = NOW, seed: int = 1, **options: Any) -> Named:
    return room.name_to(probe, count, now, random.Random(seed), **{"original": False, **options})


def room_of(ids: list[PeerId], *, network: str = "", is_signed: bool = True) -> Room:
    room = Room("")
    add_to(room, ids, network=network, is_signed=is_signed)
    return room


def add_to(room: Room, ids: list[PeerId], *, network: str = "", is_signed: bool = True) -> None:
    for number, peer in enumerate(ids, len(room)):
        room.put(peer, Member(number, network or f"network {number}", is_signed))


@pytest.mark.parametrize("members", [0, 1, 2, 6, 50, 400])
def test_a_joiner_is_told_of_its_ring_neighbours_the_nearest_and_one_by_lot(members: int) -> None:
    ids = [peer_id(number) for number in range(members)]
    room = room_of(ids)
    for probe in [peer_id(-1), *ids[:20]]:
        others = [peer for peer in ids if peer != probe]
        ring = sorted(others, key=lambda peer: ring_distance(probe, peer))
        named = name_to(room, probe)
        assert set(named.ring) == {*ring[:1], *ring[-1:]}
        left = [peer for peer in others if peer not in {*named.ring, *named.lot}]
        assert list(named.nearest) == sorted(left, key=lambda peer: xor_distance(probe, peer))[: 5 - len(named.lot)]
        assert not named.elders
        assert len(named.all(original=False)) == min(7, len(others))
        assert len(set(named.all(original=True))) == min(7, len(others))


@given(st.sets(st.integers(0, 255), max_size=40), st.integers(0, 255), st.integers(0, 8))
def test_nearest_of_any_crowded_corner_of_the_space(members: set[int], probe: int, count: int) -> None:
    room = room_of([PeerId(f"{member:040x}") for member in sorted(members)])
    named = name_to(room, PeerId(f"{probe:040x}"), count=count)
    without = {probe, *(int(peer, 16) for peer in (*named.ring, *named.lot))}
    others = sorted(members - without, key=lambda other: other ^ probe)
    assert [int(peer, 16) for peer in named.nearest] == others[: count - len(named.lot)]


def made_elders(room: Room, peers: list[PeerId]) -> None:
    for peer in peers:
        room.offered(peer, peer_id(-2), NOW)
        room.answered(peer, peer_id(-2))


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("networks", ["", "10.9.0.0/24"], ids=["many networks", "one network"])
def test_among_ghosts_a_joiner_is_told_first_of_those_that_were_seen_to_answer(
    *, is_signed: bool, networks: str
) -> None:
    honest = [peer_id(number) for number in range(20)]
    room = room_of(honest)
    made_elders(room, honest[:10])
    ghosts = [peer_id(number) for number in range(100, 350)]
    add_to(room, ghosts, network=networks, is_signed=is_signed)
    for seed in range(20):
        named = name_to(room, peer_id(-3 - seed), seed=seed)
        assert set(named.all(original=False)[:2]) <= set(honest[:10])
        if not is_signed:
            assert not set(named.all(original=False)) & set(ghosts) - set(named.lot)
        if networks:
            assert sum(peer in ghosts for peer in (*named.nearest, *named.lot)) <= SHARE


def test_peers_behind_one_router_are_told_of_each_other_as_any() -> None:
    ids = [peer_id(number) for number in range(30)]
    made_elders(room := room_of(ids, network="10.0.0.0/24"), ids)
    made_elders(other := room_of(ids), ids)
    probe = peer_id(-1)
    assert len(name_to(room, probe).all(original=False)) == len(name_to(other, probe).all(original=False)) == 7
    assert name_to(room, probe).ring == name_to(other, probe).ring


def test_a_repeated_join_is_told_of_others_while_there_are_any() -> None:
    ids = [peer_id(number) for number in range(40)]
    made_elders(room := room_of(ids), ids[:8])
    first = name_to(room, peer_id(-1))
    told = first.all(original=False)
    again = name_to(room, peer_id(-1), told=told, seed=2)
    assert not {*again.elders, *again.lot, *again.nearest} & set(told)
    assert again.ring == first.ring
    few = room_of(ids[:4])
    assert set(name_to(few, peer_id(5000), told=ids[:4]).all(original=False)) == set(ids[:4])


def test_elders_are_not_forgotten_for_later_ones_and_one_network_has_not_all_places() -> None:
    first = [peer_id(number) for number in range(40)]
    made_elders(room := room_of(first, network="10.0.0.0/24"), first)
    assert list(room.elders) == first[:ELDERS_OF_NETWORK]
    flood = [peer_id(number) for number in range(100, 400)]
    add_to(room, flood)
    made_elders(room, flood)
    assert list(room.elders) == [*first[:ELDERS_OF_NETWORK], *flood[: ELDERS - ELDERS_OF_NETWORK]]
    room.remove(first[0])
    assert first[0] not in room.elders


def test_who_leaves_offers_of_two_clients_unanswered_is_named_last_until_it_answers() -> None:
    ids = sorted(peer_id(number) for number in range(12))
    room, silent = room_of(ids), ids[5]
    probe = PeerId(f"{int(silent, 16) - 1:040x}")
    room.offered(silent, ids[0], NOW)
    assert name_to(room, probe, now=NOW + PROMPT).ring[0] == silent
    room.offered(silent, ids[1], NOW)
    assert name_to(room, probe, now=NOW + PROMPT - 1).ring[0] == silent
    assert name_to(room, probe, now=NOW + PROMPT).ring == (ids[6], ids[4])
    room.answered(silent, ids[2])  # which asked nothing
    assert name_to(room, probe, now=NOW + PROMPT).ring == (ids[6], ids[4])
    room.answered(silent, ids[1])
    assert name_to(room, probe, now=NOW + PROMPT).ring[0] == silent


def test_nobody_can_talk_down_a_member_that_has_answered() -> None:
    ids = sorted(peer_id(number) for number in range(12))
    made_elders(room := room_of(ids), ids)
    for number in range(100):
        for peer in ids:
            room.offered(peer, peer_id(1000 + number), NOW)
    named = name_to(room, peer_id(-1), now=NOW + 60)
    assert len(named.elders) == 2
    assert {*named.ring} == {*name_to(room_of(ids), peer_id(-1)).ring}


@pytest.mark.parametrize("kind", ["signal", "batched_signals"])
def test_the_service_sees_who_answers_offers(kind: str) -> None:
    service = Service()
    asker, other = service.joined(A, version=1), service.joined(B, version=1)

    def signal(what: Any) -> dict[str, Any]:
        return {"signal": {"type": what, "sdp": ""}} if kind == "signal" else {"signals": [{"type": what}]}

    room = service.presence._rooms[""]
    service.say(other, type=kind, to=A, **signal("answer"))
    assert list(room.elders) == []
    service.say(asker, type=kind, to=B, **signal("offer"))
    odd: Any
    for odd in (None, 5, ["answer"], {}):
        service.say(other, type=kind, to=A, **signal(odd))
    service.say(other, type="connection_rejected", to=C)
    service.say(other, type=kind, to=A)
    assert list(room.elders) == []
    service.say(other, type=kind, to=A, **signal("answer"))
    assert list(room.elders) == [B]
    service.leave(other)
    assert list(room.elders) == []


def test_a_join_costs_the_same_in_a_small_and_in_a_large_room() -> None:
    service = Service()
    costs = []
    for number in range(600):
        client = service.connect(address=f"address {number}")
        message = json.dumps({"type": "join", "peerId": peer_id(number)})
        costs.append(len(service.presence.received(client, message, NOW)))
    assert max(costs) <= 1 + 5 + 2
    assert max(costs[:50]) == max(costs[500:])


@pytest.mark.parametrize("bad", ["", None, 0])
def test_a_join_without_an_id_gets_the_original_answer(bad: Any) -> None:
    service = Service()
    (error,) = service.join(service.connect(), bad)
    assert error == {"type": "error", "message": "peerId is required for join message.", "code": "bad_join"}


@pytest.mark.parametrize("bad", ["abc", "A" * 40, "g" * 40, "a" * 41, A + "\n", 12, [A], {"id": A}, True])
def test_ids_that_are_not_40_hex_digits_are_refused_and_never_spread(bad: Any) -> None:
    service = Service()
    neighbour, client = service.joined(A), service.connect()
    assert codes(service.join(client, bad)) == ["bad_join"]
    assert service.inbox[neighbour] == []
    assert service.presence.snapshot()["members"] == 1


@pytest.mark.parametrize(
    "fields", [{"room": 5}, {"room": "x" * 129}, {"version": 0}, {"version": "1"}, {"timestamp": 1}]
)
def test_joins_with_malformed_fields_are_refused(fields: Any) -> None:
    service = Service()
    assert codes(service.join(service.connect(), A, **fields)) == ["bad_join"]


# --- rooms ------------------------------------------------------------------------------------------------------------


def test_rooms_do_not_meet() -> None:
    service = Service()
    here, there = service.joined(A, room="here"), service.connect()
    assert service.join(there, B, room="there", version=1) == [{"type": "bootstrap_peers", "peers": []}]
    assert service.inbox[here] == []
    assert codes(service.say(there, type="signal", to=A, signal={})) == ["not_found"]
    assert service.inbox[here] == []


def test_clients_that_name_no_room_meet_in_the_default_one() -> None:
    service = Service()
    service.joined(A)
    assert service.join(service.connect(), B, room="")[0]["peers"] == [{"id": A}]


def test_one_id_may_be_in_two_rooms() -> None:
    service = Service()
    first, second = service.joined(A, room="one"), service.joined(A, room="two")
    assert not service.closed
    assert service.presence.snapshot()["rooms"] == 2
    service.leave(first)
    service.leave(second)
    assert service.presence.snapshot()["rooms"] == 0


def test_moving_to_another_room_leaves_the_first() -> None:
    service = Service()
    stays, moves = service.joined(A, room="one"), service.joined(B, room="one")
    service.clear()
    service.join(moves, B, room="two")
    assert service.inbox[stays] == [{"type": "peer_left", "peerId": B}]


# --- who is told ------------------------------------------------------------------------------------------------------


def test_of_peers_that_have_a_mesh_only_the_ring_neighbours_and_one_more_are_told_of_a_joiner_of_theirs() -> None:
    service = Service()
    ids = sorted(peer_id(number) for number in range(200))
    clients = {peer: service.joined(peer, version=1) for peer in ids}
    service.clear()
    joiner = peer_id(1000)
    (bootstrap,) = service.join(service.connect(), joiner, version=1)
    told = {peer for peer, client in clients.items() if service.inbox[client]}
    following = min((peer for peer in ids if peer > joiner), default=ids[0])
    before = max((peer for peer in ids if peer < joiner), default=ids[-1])
    nearest = [peer["id"] for peer in bootstrap["peers"] if peer["id"] not in {following, before}][
        1
    ]  # one by lot first
    assert told == {following, before, nearest}
    assert len(bootstrap["peers"]) >= 5


@pytest.mark.parametrize(("members", "joiner"), [({}, {"version": 1}), ({"version": 1}, {}), ({}, {})])
def test_where_either_side_is_of_the_original_all_are_told_that_are_listed(members: Any, joiner: Any) -> None:
    service = Service()
    clients = {peer_id(number): service.joined(peer_id(number), **members) for number in range(100)}
    service.clear()
    (bootstrap,) = service.join(service.connect(), peer_id(1000), **joiner)
    told = {peer for peer, client in clients.items() if service.inbox[client]}
    assert told == {peer["id"] for peer in bootstrap["peers"]}
    assert len(told) >= 5


def test_who_was_listed_to_a_peer_that_has_a_mesh_is_not_told_of_again_unless_both_were_introduced() -> None:
    service = Service()
    clients = {peer_id(number): service.joined(peer_id(number), version=1) for number in range(100)}
    last = service.connect()
    (bootstrap,) = service.join(last, peer_id(1000), version=1)
    listed = [peer["id"] for peer in bootstrap["peers"]]
    introduced = [
        peer
        for peer in listed
        if service.inbox[clients[peer]][-1:] == [{"type": "peer_joined", "peerId": peer_id(1000)}]
    ]
    service.clear()
    for peer in listed:
        service.leave(clients[peer])
    assert {message["peerId"] for message in service.inbox[last]} == set(introduced)
    assert len(introduced) == service.config.announced_to < len(listed)


# --- leaving ----------------------------------------------------------------------------------------------------------


def test_who_was_told_of_a_peer_is_told_when_it_leaves() -> None:
    service = Service()
    first, second = service.joined(A), service.joined(B)
    service.clear()
    service.say(second, type="leave", peerId="whatever")
    assert service.closed[second].code == 1000
    assert service.inbox[first] == [{"type": "peer_left", "peerId": B}]
    service.leave(second)
    assert len(service.inbox[first]) == 1


def test_who_was_not_told_of_a_peer_is_not_told_when_it_leaves() -> None:
    service = Service()
    clients = [service.joined(peer_id(number)) for number in range(300)]
    service.clear()
    last = service.joined(peer_id(1000))
    told = [client for client in clients if service.inbox[client]]
    service.clear()
    service.leave(last)
    assert [client for client in clients if service.inbox[client]] == told
    assert len(told) <= 7


def test_a_peer_that_got_a_relayed_message_is_told_when_its_sender_leaves() -> None:
    service = Service(bootstrap_peers=0)
    clients = {f"{number:040x}": service.joined(f"{number:040x}") for number in range(50)}
    (far_id, far), (near_id, near) = list(clients.items())[10], list(clients.items())[40]
    service.clear()
    service.say(near, type="signal", to=far_id, signal={})
    service.clear()
    service.leave(near)
    assert {"type": "peer_left", "peerId": near_id} in service.inbox[far]


def test_the_audience_of_a_leave_is_bounded() -> None:
    service = Service(audience=3, messages_per_second=1000)
    hub = service.joined(A)
    others = [service.joined(peer_id(number)) for number in range(10)]
    for number in range(10):
        service.say(hub, type="signal", to=peer_id(number), signal={})
    service.clear()
    service.leave(hub)
    assert [client for client in others if service.inbox[client]] == others[-3:]


# --- relaying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RELAYED)
def test_relays_stamp_from_and_leave_the_rest_untouched(kind: str) -> None:
    service = Service()
    first, second = service.joined(A), service.joined(B)
    service.clear()
    message = {
        "type": kind,
        "to": A,
        "from": C,
        "signal": {"deep": [[{}]]},
        "extra": 10**30,
        "f": 1.50,
        "text": "\u2028é",
    }
    assert service.say(second, **message) == []
    assert service.inbox[first] == [message | {"from": B}]


@pytest.mark.parametrize("kind", RELAYED)
def test_an_absent_receiver_is_told_in_the_words_of_the_original(kind: str) -> None:
    service = Service()
    (error,) = service.say(service.joined(A), type=kind, to=NOWHERE)
    suffix = " for batched signals." if kind == "batched_signals" else f" for {kind}." if "kademlia" in kind else "."
    assert error == {
        "type": "error",
        "message": f"Peer {NOWHERE} not found{suffix}",
        "code": "not_found",
        "to": NOWHERE,
    }


def test_an_absurd_receiver_is_echoed_in_part_only() -> None:
    service = Service()
    (error,) = service.say(service.joined(A), type="signal", to="x" * 5000)
    assert error["message"] == f"Peer {'x' * 64} not found."
    assert "to" not in error


def test_nothing_is_relayed_before_a_join() -> None:
    service = Service()
    first, outsider = service.joined(A), service.connect()
    assert codes(service.say(outsider, type="signal", to=A, signal={})) == ["bad_message"]
    assert service.inbox[first] == []


@pytest.mark.parametrize("to", [None, 5, [A], {}])
def test_a_relay_without_a_receiver_is_an_error(to: Any) -> None:
    service = Service()
    assert codes(service.say(service.joined(A), type="signal", to=to)) == ["bad_message"]


# --- duplicate ids ----------------------------------------------------------------------------------------------------


def test_an_unsigned_holder_is_replaced_and_the_new_one_stays_reachable() -> None:
    service = Service()
    friend, old, new = service.joined(B), service.joined(A), service.connect()
    service.join(new, A)
    error = {"type": "error", "message": "Another client joined with your ID.", "code": "replaced"}
    assert service.inbox[old] == [error]
    assert old in service.closed
    service.clear()
    service.leave(old)
    assert service.inbox[friend] == []  # the peer has not left
    service.say(friend, type="signal", to=A, signal={})
    assert service.inbox[new][0]["from"] == B
    service.clear()
    service.leave(new)
    assert service.inbox[friend] == [{"type": "peer_left", "peerId": A}]


def signed(identity: Identity, at: float, room: str = "") -> Join:
    return sign_join(identity, room, round(at * 1000))


def test_a_signed_holder_is_only_replaced_by_a_newer_join_of_its_key() -> None:
    service, owner = Service(), Identity.from_seed(bytes(32))
    holder, rival = service.connect(), service.connect()
    service.join_signed(holder, signed(owner, NOW))
    assert codes(service.join(rival, owner.peer_id)) == ["id_taken"]
    assert codes(service.join_signed(rival, signed(owner, NOW))) == ["clock_skew"]  # a replay
    assert codes(service.join_signed(rival, signed(owner, NOW - 1))) == ["clock_skew"]
    assert not service.closed
    assert codes(service.join_signed(rival, signed(owner, NOW + 1))) == []
    assert codes(service.inbox[holder]) == ["replaced"]
    assert service.closed.keys() == {holder}


def test_the_owner_of_a_key_takes_its_id_back_from_a_squatter() -> None:
    service, owner = Service(), Identity.from_seed(bytes(32))
    squatter, rightful = service.joined(owner.peer_id), service.connect()
    assert codes(service.join_signed(rightful, signed(owner, NOW))) == []
    assert codes(service.inbox[squatter]) == ["replaced"]


def test_a_join_can_not_be_replayed_after_its_owner_left() -> None:
    service, owner = Service(), Identity.from_seed(bytes(32))
    first = service.connect()
    service.join_signed(first, signed(owner, NOW))
    service.leave(first)
    assert codes(service.join_signed(service.connect(), signed(owner, NOW))) == ["clock_skew"]


def test_a_holder_may_repeat_its_join_word_for_word_or_unsigned_and_stays_protected() -> None:
    service, owner = Service(), Identity.from_seed(bytes(32))
    holder = service.connect()
    for _ in range(2):
        assert codes(service.join_signed(holder, signed(owner, NOW))) == []
    assert codes(service.join(holder, owner.peer_id)) == []
    assert codes(service.join(service.connect(), owner.peer_id)) == ["id_taken"]


def test_a_signed_id_is_free_again_for_anyone_once_its_holder_left() -> None:
    service, owner = Service(), Identity.from_seed(bytes(32))
    holder = service.connect()
    service.join_signed(holder, signed(owner, NOW))
    service.leave(holder)
    assert codes(service.join(service.connect(), owner.peer_id)) == []


@pytest.mark.parametrize(
    "forge",
    [
        lambda join: msgspec.structs.replace(join, room="another"),
        lambda join: msgspec.structs.replace(join, timestamp=join.timestamp + 1),
        lambda join: msgspec.structs.replace(join, peer_id=A),
        lambda join: msgspec.structs.replace(join, signature=bytes(64)),
        lambda join: msgspec.structs.replace(join, public_key=Identity.from_seed(b"x" * 32).public_key),
        lambda join: msgspec.structs.replace(join, public_key=None),
        lambda join: msgspec.structs.replace(join, signature=None),
    ],
)
def test_forged_joins_are_refused(forge: Callable[[Join], Join]) -> None:
    service = Service()
    join = forge(signed(Identity.from_seed(bytes(32)), NOW))
    assert codes(service.join_signed(service.connect(), join)) == ["bad_join"]


@pytest.mark.parametrize(("skew", "says"), [(901, "901 s ahead of"), (-901, "901 s behind"), (900, None), (-900, None)])
def test_timestamps_far_from_the_server_clock_are_refused_and_the_error_says_by_how_much(
    skew: float, says: str | None
) -> None:
    service = Service()
    answer = service.join_signed(service.connect(), signed(Identity.from_seed(bytes(32)), NOW + skew))
    assert codes(answer) == (["clock_skew"] if says else [])
    assert says is None or says in answer[0]["message"]


def test_the_refusal_of_a_join_that_is_not_newer_tells_what_its_timestamp_has_to_exceed() -> None:
    service, owner = Service(), Identity.from_seed(bytes(32))
    holder, later = service.connect(), service.connect()
    service.join_signed(holder, signed(owner, NOW))
    (refusal,) = service.join_signed(later, signed(owner, NOW - 300))
    assert (refusal["code"], refusal["laterThan"]) == ("clock_skew", round(NOW * 1000))
    assert codes(service.join_signed(later, sign_join(owner, "", refusal["laterThan"] + 1))) == []
    assert codes(service.inbox[holder]) == ["replaced"]


def test_the_memory_of_signed_joins_is_bounded_and_forgets_the_oldest() -> None:
    service = Service(remembered_joins=2)
    owners = [Identity.from_seed(bytes([number]) * 32) for number in range(3)]
    for owner in owners:
        client = service.connect()
        service.join_signed(client, signed(owner, NOW))
        service.leave(client)
    answers = [codes(service.join_signed(service.connect(), signed(owner, NOW))) for owner in reversed(owners)]
    assert answers == [["clock_skew"], ["clock_skew"], []]


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_refused_and_closed_and_the_right_one_lets_in() -> None:
    service = Service(join_token="sesame")
    for token in ({}, {"token": "Sesame"}, {"token": "sesame\u2028"}):
        client = service.connect()
        assert codes(service.join(client, A, **token)) == ["bad_token"]
        assert service.closed[client].code == 1008
    assert service.join(service.connect(), A, token="sesame", version=1)[0]["type"] == "bootstrap_peers"


def test_a_message_of_the_largest_size_passes_and_one_byte_more_closes() -> None:
    service = Service(max_message=1024)
    first, second = service.joined(A), service.joined(B)
    service.clear()
    empty = json.dumps({"type": "signal", "to": A, "pad": ""}, ensure_ascii=False)
    fits = empty.replace('""', f'"é{"x" * (1024 - len(empty) - 2)}"')
    assert len(fits.encode()) == 1024
    assert service.say(second, fits) == []
    assert len(service.inbox[first]) == 1
    assert codes(service.say(second, fits + " ")) == ["too_large"]
    assert service.closed[second].code == 1009


def test_messages_above_the_rate_are_dropped_with_one_warning_and_a_flood_is_closed() -> None:
    service = Service(messages_per_second=10, message_burst=5)
    client = service.connect()
    answers = [codes(service.say(client, type="nonsense")) for _ in range(8)]
    assert answers == [["unknown_type"]] * 5 + [["rate_limited"], [], []]
    service.now += 1.0
    assert codes(service.say(client, type="nonsense")) == ["unknown_type"]
    assert client not in service.closed
    for _ in range(11):
        service.say(client, type="nonsense")
    assert service.closed[client].code == 1008
    assert service.say(client, type="nonsense") == []


def test_a_large_message_counts_for_several() -> None:
    service = Service(messages_per_second=10, message_burst=5)
    client = service.connect()
    assert codes(service.say(client, type="nonsense", pad="x" * 3 * 4096)) == ["unknown_type"]
    assert codes(service.say(client, type="nonsense")) == ["unknown_type"]
    assert codes(service.say(client, type="nonsense")) == ["rate_limited"]
    service.say(client, type="nonsense", pad="x" * 5 * 4096)
    assert service.closed[client].code == 1008


def test_changes_of_id_and_repeated_joins_have_a_rate_of_their_own() -> None:
    service = Service(joins_per_minute=60, join_burst=3)
    other, restless = service.joined(C), service.connect()
    service.clear()
    answers = [codes(service.join(restless, peer_id(number), version=1)) for number in range(6)]
    assert answers == [[], [], [], ["rate_limited"], [], []]
    assert len([message for message in service.inbox[other] if message["type"] == "peer_joined"]) == 3
    assert codes(service.say(restless, type="nonsense")) == ["unknown_type"]
    service.now += 4
    assert codes(service.join(restless, peer_id(9), version=1)) == []
    for number in range(10):
        service.join(restless, peer_id(number))
    assert service.closed[restless].code == 1008


def test_who_guesses_tokens_has_to_wait_even_with_the_right_one_and_others_have_not() -> None:
    service = Service(join_token="sesame", token_guesses=3, token_guesses_per_minute=6)

    def guess(token: str, address: str = "192.0.2.66") -> list[str]:
        client = service.connect(address)
        answer = codes(service.join(client, A, token=token))
        assert not answer or client in service.closed
        return answer

    assert [guess(token) for token in ("a", "b", "c", "d", "sesame")] == [["bad_token"]] * 3 + [["full"]] * 2
    assert guess("sesame", "192.0.2.1") == []
    service.now += 10
    assert guess("e") == ["bad_token"]
    assert guess("sesame") == ["full"]
    service.now += 10
    assert guess("sesame") == []
    assert [guess(token) for token in ("a", "b", "c", "d")] == [["bad_token"]] * 3 + [["full"]]


def test_a_sender_is_told_of_what_could_not_wait_for_its_receiver() -> None:
    service = Service()
    sender, receiver = service.joined(A), service.joined(B)
    service.clear()
    (order,) = service.presence.received(sender, json.dumps({"type": "signal", "to": B}), service.now)
    assert isinstance(order, Send)
    assert (order.client, order.sender) == (receiver, sender)
    service.take(service.presence.undelivered(order.sender, order.client))
    (error,) = service.inbox[sender]
    assert (error["code"], error["to"]) == ("rate_limited", B)
    service.leave(receiver)
    assert service.presence.undelivered(sender, receiver) == []
    assert service.presence.snapshot()["undelivered"] == 2


def test_clients_are_bounded_in_all() -> None:
    service = Service(max_clients=2)
    first, _, third = service.connect(), service.connect(), service.connect()
    assert codes(service.inbox[third]) == ["full"]
    assert service.closed.keys() == {third}
    service.leave(third)
    service.leave(first)
    assert service.connect() not in service.closed


def test_clients_are_bounded_for_each_address() -> None:
    service = Service(clients_per_address=2)
    first, _, third, other = (service.connect(address) for address in ("one", "one", "one", "two"))
    assert service.closed.keys() == {third}
    assert other not in service.closed
    service.leave(first)
    assert service.connect("one") not in service.closed


def test_a_closed_client_keeps_its_place_until_it_is_gone() -> None:
    service = Service(max_clients=1)
    client = service.joined(A)
    service.say(client, type="leave")
    assert service.connect() in service.closed
    service.leave(client)
    assert service.connect() not in service.closed


def test_rooms_are_bounded() -> None:
    service = Service(max_rooms=2)
    one, _ = service.joined(A, room="one"), service.joined(B, room="two")
    outsider = service.connect()
    assert codes(service.join(outsider, C, room="three")) == ["full"]
    assert codes(service.join(outsider, C, room="two")) == []
    assert codes(service.join(one, A, room="three")) == []  # it leaves "one" empty
    assert service.presence.snapshot()["rooms"] == 2


def test_members_of_a_room_are_bounded_but_a_holder_can_be_replaced() -> None:
    service = Service(clients_per_room=2)
    one, _ = service.joined(A), service.joined(B)
    assert codes(service.join(service.connect(), C)) == ["full"]
    assert codes(service.join(one, C)) == []
    assert codes(service.join(service.connect(), C)) == []
    assert service.presence.snapshot()["members"] == 2


def test_a_client_that_does_not_join_is_closed() -> None:
    service = Service(join_timeout=10.0)
    idle, member = service.connect(), service.joined(A)
    deadline = service.presence.next_deadline()
    assert NOW + 10 <= deadline <= NOW + 11
    service.take(service.presence.expire(math.nextafter(deadline, 0)))
    assert not service.closed
    service.take(service.presence.expire(deadline))
    assert service.closed.keys() == {idle}
    assert member not in service.closed
    assert service.presence.next_deadline() == math.inf


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bootstrap_peers must be a whole number, from 0 to 62"):
        ServerConfig(bootstrap_peers=63)
    with pytest.raises(ConfigError, match=r"max_clients must be a whole number, 1 or more"):
        ServerConfig(max_clients=0)
    with pytest.raises(ConfigError, match="outbox must hold one message"):
        attrs.evolve(ServerConfig(), outbox=128 * 1024)


@pytest.mark.parametrize(
    "options",
    [
        {"max_clients": 1.5},
        {"max_clients": True},
        {"max_clients": "5"},
        {"ping_interval": None},
        {"ping_interval": math.nan},
        {"join_token": ""},
        {"join_token": 5},
        {"join_token": "\ud800"},
        {"join_token": "x" * 1025},
        {"allowed_origins": "https://app.example"},
        {"allowed_origins": ("app.example",)},
        {"allowed_origins": ("https://app.example/page",)},
        {"allowed_origins": (5,)},
        {"proxy_headers": "127.0.0.1"},
        {"proxy_headers": ("localhost",)},
        {"proxy_headers": (5,)},
        {"proxy_protocol": ("10.0.0.1/8",)},
    ],
)
def test_values_of_the_wrong_kind_are_refused(options: Any) -> None:
    with pytest.raises(ConfigError, match=rf"ServerConfig\.{next(iter(options))} "):
        ServerConfig(**options)


def test_lists_will_do_where_a_tuple_is_wanted() -> None:
    assert ServerConfig(allowed_origins=["*"]).allowed_origins == ("*",)  # type: ignore[arg-type]


# --- hostile input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("null", "bad_message"),
        ("[]", "bad_message"),
        ("5", "bad_message"),
        ('"join"', "bad_message"),
        ("", "bad_message"),
        ("{", "bad_message"),
        ("{}", "bad_message"),
        ('{"type": null}', "bad_message"),
        ('{"type": ["join"]}', "bad_message"),
        ('{"type": "x"} {}', "bad_message"),
        (b"\xff\xfe", "bad_message"),
        (b'{"type": "signal", "to": "\xff"}', "bad_message"),
        ("\ud800", "bad_message"),
        ('{"type": "\\ud800"}', "bad_message"),
        ('{"type": "x", "y": ' + "[" * 50_000 + "]" * 50_000 + "}", "bad_message"),
        ('{"type": "join", "peerId": ' + "[" * 50_000 + "]" * 50_000 + "}", "bad_message"),
        ('{"type": ' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}", "bad_message"),
        ('{"type": "ping"}', "unknown_type"),
        ('{"type": "' + "x" * 5000 + '"}', "unknown_type"),
        ('{"type": ""}', "unknown_type"),
    ],
)
def test_garbage_is_answered_with_an_error_and_nothing_worse(data: Any, code: str) -> None:
    service = Service()
    client = service.joined(A)
    (error,) = service.say(client, data)
    assert error["code"] == code
    assert len(error["message"]) < 128
    assert not service.closed


def test_binary_frames_that_hold_json_are_read() -> None:
    service = Service()
    assert service.say(service.connect(), json.dumps({"type": "join", "peerId": A, "version": 1}).encode()) != []


def test_unknown_clients_are_no_error_and_known_ones_can_not_come_twice() -> None:
    service = Service()
    assert service.presence.received(99, "null", NOW) == []
    assert service.presence.disconnected(99, NOW) == []
    client = service.connect()
    with pytest.raises(LocalProtocolError):
        service.presence.connected(client, "x", NOW)


IDS = st.sampled_from([f"{number:040x}" for number in range(8)])
ROOMS = st.sampled_from(["", "one", "two"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
MESSAGES = st.one_of(
    st.builds(lambda peer, room: {"type": "join", "peerId": peer, "room": room}, IDS, ROOMS),
    st.builds(lambda kind, to: {"type": kind, "to": to}, st.sampled_from(RELAYED), IDS),
    st.just({"type": "leave"}),
    st.builds(
        lambda kind, rest: {"type": kind} | rest, st.sampled_from(["join", "signal"]), st.dictionaries(st.text(), JSON)
    ),
)
STEPS = st.one_of(
    st.just("connect"),
    st.tuples(st.just("disconnect"), st.integers(0, 9)),
    st.tuples(
        st.just("say"), st.integers(0, 9), MESSAGES.map(json.dumps) | st.binary(max_size=50) | st.text(max_size=50)
    ),
    st.tuples(st.just("wait"), st.floats(0, 20)),
)


class LiveInvariants:
    """Follows from outside who is where, and checks what each client hears against it."""

    def __init__(self) -> None:
        self.service = Service(
            max_clients=6, max_rooms=2, clients_per_room=4, audience=4, message_burst=5, messages_per_second=2
        )
        self.clients: list[int] = []
        self.rooms: dict[int, str] = {}
        self.ever: dict[str, set[str]] = {"": set(), "one": set(), "two": set()}

    def step(self, step: Any) -> None:
        presence, service = self.service.presence, self.service
        if step == "connect":
            self.clients.append(service.connect())
            return
        if step[0] == "wait":
            service.now += step[1]
            self.check(presence.expire(service.now))
            return
        if not self.clients:
            return
        client = self.clients[step[1] % len(self.clients)]
        if step[0] == "disconnect":
            self.check(presence.disconnected(client, service.now))
            self.clients.remove(client)
            self.rooms.pop(client, None)
            return
        joins = presence.snapshot()["joins"]
        orders = presence.received(client, step[2], service.now)
        if presence.snapshot()["joins"] > joins:
            fields = json.loads(step[2])
            self.rooms[client] = fields.get("room") or ""
            self.ever.setdefault(self.rooms[client], set()).add(fields["peerId"])
        self.check(orders)

    def check(self, orders: list[Order]) -> None:
        config, snapshot = self.service.config, self.service.presence.snapshot()
        assert self.service.take(orders) <= 2 + 2 * config.audience + config.bootstrap_peers + 3
        assert snapshot["members"] <= snapshot["clients"] <= config.max_clients
        assert snapshot["rooms"] <= min(config.max_rooms, snapshot["members"])
        assert snapshot["errors"].keys() <= ERROR_CODES.keys()
        for order in orders:
            if isinstance(order, Send):
                self.check_message(order.client, json.loads(order.text))

    def check_message(self, client: int, message: dict[str, Any]) -> None:
        if message["type"] == "error":
            return
        told = {"bootstrap_peers": [peer["id"] for peer in message.get("peers", [])]}.get(message["type"])
        told = [message.get("peerId", message.get("from"))] if told is None else told
        assert set(told) <= self.ever[self.rooms[client]], "told about a peer that never was in its room"


@given(st.lists(STEPS, max_size=60))
@settings(deadline=None)
def test_whatever_clients_do_rooms_stay_apart_and_bounds_hold(steps: Any) -> None:
    watch = LiveInvariants()
    for step in steps:
        watch.step(step)
    for client in watch.clients:
        watch.service.presence.disconnected(client, watch.service.now)
    snapshot = watch.service.presence.snapshot()
    assert (snapshot["clients"], snapshot["members"], snapshot["rooms"]) == (0, 0, 0)
    assert watch.service.presence.next_deadline() == math.inf
