"""What the core for islands does with what it hears, input by input; and what hostile peers can't make it do."""

import random

import pytest

from p2pmesh.config import IslandsConfig, MeshConfig
from p2pmesh.events import IslandHealed, IslandSuspected
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.effects import Emit, Notify, SendFrame
from p2pmesh.protocols.inputs import Leave, LinkUp, PeersFound, Received, RemotePeer
from p2pmesh.protocols.islands.bridge_merge import FLOODS, MAX_PATH, REMEMBERED, TRIED_FOR
from p2pmesh.protocols.islands.islands import IslandsCore
from p2pmesh.protocols.notices import (
    FindPeers,
    LinkBroken,
    LinkedViaService,
    MergeStarted,
    MeshSize,
    OpenBridge,
    PingedViaService,
    PingViaService,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteHint,
    RouteReply,
    RouteSucceeded,
    ServicePeers,
    ServicePong,
    Welcome,
)
from p2pmesh.wire.overlay import FindBeyond, FindSuccessor, FoundBeyond, Merge, SuccessorFound

ME = Identity.from_seed(bytes(32))


def peer(number):
    return PeerId(f"{number:040x}")


FAR, NEAR, OTHER, BEYOND = (peer(number) for number in (1 << 150, 1 << 140, 1 << 130, 1 << 120))


class Core:
    """The core under test with a clock; what came out of the last input."""

    def __init__(self, **config):
        self.config = MeshConfig(islands=IslandsConfig(**config))
        self.core = IslandsCore(ME, self.config, random.Random(1), lambda now: now)
        self.now = 0.0
        self.out = []

    def feed(self, event):
        self.out = self.core.handle(event, self.now)
        return self

    def wait(self, seconds):
        end, self.out = self.now + seconds, []
        while self.core.next_deadline() <= end:
            self.now = max(self.now, self.core.next_deadline())
            self.out += self.core.expire(self.now)
        self.now = end
        return self

    def link(self, *peers):
        for one in peers:
            self.feed(LinkUp(RemotePeer(one, True, 1)))
        return self

    def told(self, kind):
        return [effect.input for effect in self.out if isinstance(effect, Notify) and isinstance(effect.input, kind)]

    def sent(self):
        return [effect for effect in self.out if isinstance(effect, SendFrame)]

    def events(self):
        return [effect.event for effect in self.out if isinstance(effect, Emit)]

    def count(self, name):
        return self.core.snapshot().get(name, 0)

    @property
    def route(self):
        (route,) = self.told(Route)
        return route

    def found(self, who, route=None):
        """The look-up ends at this peer."""
        return self.feed(RouteSucceeded((route or self.route).call, who, 3, SuccessorFound()))

    def beyond(self, who, route=None, **lists):
        """The far end of the bridge answers."""
        route = route or self.route
        return self.feed(RouteSucceeded(route.call, route.to, 3, FoundBeyond(peer=who, **lists)))

    def missing(self, who):
        """This peer is a suspect that was looked for in vain."""
        self.feed(LinkBroken(who)).wait(self.config.islands.patience * 1.5)
        return self.found(NEAR)

    def at_bridge(self):
        """The link to `FAR` was found to be a bridge just now; `out` has what is done about it."""
        self.link(NEAR, OTHER).missing(FAR).link(FAR).wait(2)
        return self.beyond(BEYOND).found(NEAR)


def two_missing():
    """`FAR` and `BEYOND` are missing, and one of them is looked for just now, before the services are asked for it."""
    core = Core().link(NEAR).feed(LinkBroken(FAR)).feed(LinkBroken(BEYOND)).wait(15)
    for route in core.told(Route):
        core.found(NEAR, route)
    while not core.wait(0.1).told(Route):
        pass
    return core


# --- suspects ---------------------------------------------------------------------------------------------------------


def test_who_fell_silent_is_looked_for_at_its_place_after_a_while():
    core = Core().link(NEAR).feed(LinkBroken(FAR))
    assert not core.wait(9.9).told(Route)
    route = core.wait(5.2).route
    assert (route.to, route.message, route.nearest) == (FAR, FindSuccessor(key=FAR), True)


def test_who_is_at_its_place_is_none_any_more():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).wait(15)
    core.found(FAR)
    assert core.count("suspects") == 0


def test_who_comes_back_soon_is_none_any_more():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).link(FAR)
    assert core.count("suspects") == 0
    assert not core.wait(30).out


def test_suspects_are_bounded():
    core = Core(suspects=4)
    for number in range(1, 20):
        core.feed(LinkBroken(peer(number)))
    assert core.count("suspects") == 4


def test_suspects_are_not_looked_for_for_ever():
    core = Core(suspect_lasts=100).link(NEAR).missing(FAR)
    for _ in range(1000):
        if core.wait(1).told(Route):
            core.found(NEAR)
    assert core.count("suspects") == 0
    assert not core.wait(1000).out


def test_whom_a_service_names_is_looked_for_if_there_are_several_or_it_names_again():
    core = Core().link(NEAR).feed(ServicePeers("one", (FAR,)))
    assert core.count("suspects") == 0
    core.feed(ServicePeers("two", (BEYOND,)))
    assert core.count("suspects") == 2
    again = Core().link(NEAR).feed(ServicePeers("one", (FAR,))).feed(ServicePeers("one", (FAR,)))
    assert again.count("suspects") == 1


def test_when_one_is_back_the_next_is_looked_for_soon():
    core = two_missing()
    back = core.route.to
    assert core.found(back).count("suspects") == 1
    assert {core.wait(2).route.to, back} == {FAR, BEYOND}


def test_who_is_linked_while_it_is_looked_for_does_not_hold_up_the_next():
    core = two_missing()
    route = core.route
    core.link(route.to).found(NEAR, route)
    assert {core.wait(2).told(Route)[-1].to, route.to} == {FAR, BEYOND}


def test_services_are_asked_soon_for_whom_they_name():
    core = Core().link(NEAR).feed(MeshSize(1000)).feed(ServicePeers("one", (FAR,))).feed(ServicePeers("one", (FAR,)))
    core.wait(15).found(NEAR)
    core.wait(2)
    assert core.found(NEAR).told(PingViaService) == [PingViaService(FAR)]


# --- probes -----------------------------------------------------------------------------------------------------------


def probing(core):
    """Waits until the services are asked; gives whether they are."""
    for _ in range(100):
        core.wait(1)
        if core.told(Route):
            core.found(NEAR)
            return core.told(PingViaService)
    return []


def test_services_are_asked_for_who_is_missing():
    assert probing(Core().link(NEAR).missing(FAR)) == [PingViaService(FAR)]


def test_a_large_island_asks_as_often_as_a_small_one():
    waits = {}
    for size in (10, 1000):
        core = Core().link(NEAR).feed(MeshSize(size)).missing(FAR)
        waits[size] = core.core.next_deadline() - core.now
    assert waits[1000] == pytest.approx(waits[10] * 100)


def test_a_bridge_is_wanted_to_whom_a_service_reaches():
    core = Core().link(NEAR).missing(FAR)
    assert probing(core)
    core.feed(ServicePong(FAR, alive=True))
    assert [type(event) for event in core.events()] == [IslandSuspected]
    assert core.wait(2).told(OpenBridge) == [OpenBridge(FAR)]


def test_an_answer_to_no_question_is_none():
    core = Core().link(NEAR).missing(FAR).feed(ServicePong(FAR, alive=True))
    assert not core.events()
    assert not core.wait(1.6).told(OpenBridge)


def test_whom_no_service_knows_is_forgotten():
    core = Core().link(NEAR).missing(FAR)
    assert probing(core)
    core.feed(ServicePong(FAR, alive=False))
    assert core.count("suspects") == 0
    assert not core.told(FindPeers)


def test_services_are_asked_who_is_next_to_us_if_the_mesh_has_shrunk():
    core = Core().link(NEAR).feed(MeshSize(50)).missing(FAR).feed(MeshSize(20))
    assert probing(core)
    assert core.feed(ServicePong(FAR, alive=False)).told(FindPeers)


def test_room_is_made_for_who_asks_and_is_not_found():
    core = Core().link(NEAR).feed(PingedViaService(FAR))
    assert core.found(NEAR).told(Welcome) == [Welcome(FAR)]


def test_no_room_is_made_for_who_is_found_or_asks_too_often():
    core = Core().link(NEAR).feed(PingedViaService(FAR))
    assert not core.found(FAR).told(Welcome)
    asked = sum(len(core.feed(PingedViaService(peer(number))).told(Route)) for number in range(20))
    assert asked == 2


# --- bridges ----------------------------------------------------------------------------------------------------------


def test_a_link_to_who_was_missing_is_looked_into():
    core = Core().link(NEAR).missing(FAR).link(FAR).wait(2)
    assert (core.route.to, core.route.message) == (FAR, FindBeyond(key=ME.peer_id))
    core.beyond(BEYOND)
    assert (core.route.to, core.route.nearest, core.route.avoid) == (BEYOND, True, (FAR,))


def test_it_is_no_bridge_if_they_know_us_beyond():
    core = Core().link(NEAR).missing(FAR).link(FAR).wait(2)
    assert not core.beyond(BEYOND, successors=(ME.peer_id,)).out


def test_it_is_no_bridge_if_who_is_beyond_is_at_its_place_here():
    core = Core().link(NEAR).missing(FAR).link(FAR).wait(2).beyond(BEYOND)
    assert not core.found(BEYOND).sent()


def test_a_bridge_is_told_to_its_far_end_and_to_all_others():
    core = Core().at_bridge()
    hail, flood = core.sent()
    assert (hail.peers, hail.message.bridge, hail.message.path) == ((FAR,), FAR, ())
    assert (flood.peers, flood.message.bridge, flood.message.path) == ((NEAR, OTHER), FAR, (ME.peer_id,))
    assert [type(event) for event in core.events()] == [IslandSuspected]


def test_an_island_tries_one_bridge_at_a_time():
    trying = Core().link(NEAR, OTHER).missing(FAR)
    assert probing(trying)
    (told,) = trying.feed(ServicePong(FAR, alive=True)).wait(2).sent()
    assert (told.peers, told.message.bridge, told.message.wanted) == ((NEAR, OTHER), FAR, True)
    hearing = Core().link(NEAR, OTHER).missing(BEYOND)
    (onward,) = flood(hearing, path=(peer(5), NEAR), wanted=True).sent()
    assert onward.peers == (OTHER,)
    assert onward.message.wanted
    assert hearing.told(MergeStarted) == []
    assert hearing.wait(TRIED_FOR - 1).told(Route) == [], (
        "no service is asked, and nothing beyond what is no bridge yet"
    )
    assert probing(hearing) == [PingViaService(BEYOND)]


def test_who_hears_of_a_bridge_lets_its_ring_change():
    assert len(Core(quiet=8.0).at_bridge().told(MergeStarted)) == 1
    assert flood(Core(quiet=8.0).link(NEAR)).told(MergeStarted)


def test_a_stranger_is_looked_into_twice_before_it_is_taken_for_another_islands():
    core = Core().link(NEAR, FAR).feed(LinkedViaService(FAR)).wait(4)
    assert not core.beyond(BEYOND).found(NEAR).sent()
    core.wait(4)
    assert core.beyond(BEYOND).found(NEAR).sent()


def test_the_far_end_looks_for_itself():
    core = Core().link(NEAR, FAR).feed(Received(FAR, Merge(id="x", bridge=ME.peer_id)))
    assert core.route.message == FindBeyond(key=ME.peer_id)
    assert not core.sent()


# --- merging ----------------------------------------------------------------------------------------------------------


def flood(core, number=0, sender=NEAR, path=(OTHER, NEAR), **fields):
    return core.feed(Received(sender, Merge(**{"id": f"flood {number}", "bridge": FAR, "path": path, **fields})))


def test_a_flood_is_passed_on_once():
    core = Core().link(NEAR, OTHER, BEYOND)
    (frame,) = flood(core, path=(peer(5), NEAR)).sent()
    assert (frame.peers, frame.message.path) == ((OTHER, BEYOND), (peer(5), NEAR, ME.peer_id))
    assert not flood(core, sender=OTHER, path=(peer(6), OTHER)).sent()


@pytest.mark.parametrize(
    "fields",
    [
        {"path": ()},
        {"path": (NEAR, OTHER)},
        {"path": (ME.peer_id, NEAR)},
        {"path": (*(peer(number) for number in range(1, MAX_PATH + 1)), NEAR)},
        {"sender": BEYOND, "path": (BEYOND,)},
        {"bridge": ME.peer_id},
    ],
)
def test_floods_that_make_no_sense_end_here(fields):
    core = Core().link(NEAR, OTHER)
    assert not flood(core, **fields).out
    assert core.count("floods") == 0


def test_few_floods_are_passed_on_in_a_short_time_and_few_remembered():
    core = Core().link(NEAR, OTHER)
    assert sum(len(flood(core, number, path=(NEAR,)).sent()) for number in range(50)) == FLOODS
    for number in range(50, 200):
        flood(core.wait(10), number, path=(NEAR,))
    assert core.count("floods") == REMEMBERED


def test_who_hears_of_a_bridge_looks_for_its_place_beyond_it():
    core = Core().link(NEAR)
    flood(core)
    route = core.wait(2).route
    assert (route.to, route.message) == (FAR, FindBeyond(key=ME.peer_id))
    assert route.way.path == (FAR, OTHER, NEAR)
    core.beyond(BEYOND, route)
    assert core.told(PeersFound) == [PeersFound((BEYOND,), "beyond")]
    assert core.told(RouteHint) == [RouteHint((BEYOND,), (FAR, OTHER, NEAR))]


def test_of_a_large_island_some_do():
    asked = 0
    for seed in range(100):
        core = Core(seeds=100)
        core.core = IslandsCore(ME, core.config, random.Random(seed), lambda now: now)
        flood(core.link(NEAR).feed(MeshSize(1000)))
        asked += len(core.wait(2).told(Route))
    assert 2 <= asked <= 25


def test_after_news_of_a_bridge_no_service_is_asked_for_a_while_and_suspects_are_looked_for_anew():
    core = Core(quiet=50.0).link(NEAR).missing(FAR)
    flood(core, bridge=BEYOND)
    assert [route.message for route in core.wait(49).told(Route)] == [FindBeyond(key=ME.peer_id)]
    assert FAR in [route.to for route in core.wait(6).told(Route)]


def test_a_place_is_looked_up_for_others_but_not_by_where_they_come_from():
    core = Core().link(NEAR, FAR)
    way = ReturnPath(BEYOND, "a packet", (BEYOND, FAR))
    asked = RoutedReceived(RemotePeer(BEYOND, True, 1), FindBeyond(key=OTHER), way)
    core.feed(asked)
    assert (core.route.to, core.route.avoid) == (OTHER, (FAR,))
    lookup = core.route
    assert not core.feed(asked).out  # the packet came again
    core.feed(RouteSucceeded(lookup.call, NEAR, 2, SuccessorFound(successors=(OTHER,))))
    assert core.told(RouteReply) == [RouteReply(way, FoundBeyond(peer=NEAR, successors=(OTHER,)))]


def test_not_too_many_places_are_looked_up_for_others_at_once():
    core = Core().link(NEAR, FAR)
    for number in range(400):
        way = ReturnPath(BEYOND, f"packet {number}", (BEYOND, FAR))
        core.feed(RoutedReceived(RemotePeer(BEYOND, True, 1), FindBeyond(key=OTHER), way))
    assert core.count("calls") == 256


# --- healed -----------------------------------------------------------------------------------------------------------


def test_it_is_healed_once_three_from_beyond_are_at_their_places_without_the_bridge():
    core = Core().at_bridge()
    witnesses = [peer(number) for number in (7, 8, 9)]
    asked = [route for route in core.told(Route) if isinstance(route.message, FindBeyond)]
    assert len(asked) == 4  # our own place besides
    for route, witness in zip(asked, witnesses, strict=False):
        core.beyond(witness, route)
    for witness in witnesses:
        assert not core.events()
        lookup = core.wait(2).route
        assert (lookup.to, lookup.avoid) == (witness, (FAR,))
        core.found(witness)
    (healed,) = core.events()
    assert isinstance(healed, IslandHealed)
    assert healed.bridge == FAR
    assert healed.duration == pytest.approx(6.0)
    assert not core.wait(100).told(Route)


def test_look_ups_that_fail_are_no_harm():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).wait(15)
    core.feed(RouteFailed(core.route.call, "no way"))
    assert core.count("missing") == 1
    core.feed(RouteFailed(99, "never asked"))


def test_a_mesh_that_is_left_does_nothing():
    core = Core().link(NEAR).missing(FAR).feed(Leave())
    assert not core.wait(1000).out
    assert not core.feed(PingedViaService(FAR)).out
