"""What the core for islands does with what it hears, input by input; and what hostile peers can't make it do."""

import math
import random
from functools import reduce
from operator import getitem

import pytest

from p2pmesh.config import IslandsConfig, MeshConfig
from p2pmesh.events import IslandHealed, IslandSuspected
from p2pmesh.identity import Identity
from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Emit, Notify, SendFrame
from p2pmesh.protocols.inputs import Leave, LinkUp, PeersFound, Received, RemotePeer
from p2pmesh.protocols.islands.bridge_merge import FLOODS, MAX_FLOODS, MAX_PATH, TRIED_FOR
from p2pmesh.protocols.islands.detection import Detection
from p2pmesh.protocols.islands.islands import MAX_CALLS, MAX_FOR_OTHERS, IslandsCore
from p2pmesh.protocols.islands.recovery import MAX_CASES, IslandRecovery
from p2pmesh.protocols.notices import (
    LinkBroken,
    MergeStarted,
    MeshSize,
    OpenBridge,
    PingViaService,
    ReturnPath,
    Route,
    RoutedReceived,
    RouteFailed,
    RouteHint,
    RouteReply,
    RouteSucceeded,
    SeenViaService,
    ServicePeers,
    Sighting,
)
from p2pmesh.protocols.util.window import OUTCOME_GRACE
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

    def count(self, path):
        """A number of the snapshot, by its dotted path."""
        return reduce(getitem, path.split("."), self.core.snapshot())

    @property
    def route(self):
        (route,) = self.told(Route)
        return route

    def found(self, who, route=None):
        """The look-up ends at this peer."""
        return self.feed(RouteSucceeded((route or self.route).call, who, SuccessorFound()))

    def beyond(self, who, route=None, **lists):
        """The far end of the bridge answers."""
        route = route or self.route
        return self.feed(RouteSucceeded(route.call, route.to, FoundBeyond(peer=who, **lists)))

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
    assert core.count("detection.suspects") == 0


def test_who_comes_back_soon_is_none_any_more():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).link(FAR)
    assert core.count("detection.suspects") == 0
    assert not core.wait(30).out


def test_suspects_are_bounded():
    core = Core(suspects=4)
    for number in range(1, 20):
        core.feed(LinkBroken(peer(number)))
    assert core.count("detection.suspects") == 4


def test_suspects_are_not_looked_for_for_ever():
    core = Core(suspect_lasts=100).link(NEAR).missing(FAR)
    for _ in range(1000):
        if core.wait(1).told(Route):
            core.found(NEAR)
    assert core.count("detection.suspects") == 0
    assert not core.wait(1000).out


def test_a_suspect_is_asked_for_up_to_its_last_moment_and_then_forgotten():
    detection = Detection(IslandsConfig(suspect_lasts=100), {}, random.Random(1))
    detection.suspect(FAR, 5.0)
    detection.miss(FAR, 20.0, pinged=False)
    assert detection.next_to_ping(104.9) == FAR
    assert detection.next_to_ping(105.0) is None
    assert FAR not in detection


def test_whom_a_service_names_is_looked_for_if_there_are_several_or_it_names_again():
    core = Core().link(NEAR).feed(ServicePeers("one", (FAR,)))
    assert core.count("detection.suspects") == 0
    core.feed(ServicePeers("two", (BEYOND,)))
    assert core.count("detection.suspects") == 2
    again = Core().link(NEAR).feed(ServicePeers("one", (FAR,))).feed(ServicePeers("one", (FAR,)))
    assert again.count("detection.suspects") == 1


def test_of_the_peers_that_a_service_names_neighbours_and_suspects_are_left_alone():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).wait(9)
    for _ in range(3):
        core.feed(ServicePeers("one", (NEAR,))).feed(ServicePeers("two", (FAR,)))
    assert core.count("detection.suspects") == 1
    assert [route.to for route in core.wait(7).told(Route)] == [FAR], "and looked for when it was to be"


def test_a_suspect_that_was_not_named_is_not_asked_for_at_once():
    core = Core().link(NEAR).feed(MeshSize(1000)).missing(FAR)
    assert not core.wait(2).told(Route)


def test_a_suspect_that_makes_room_is_looked_for_no_more():
    core = Core(suspects=1).link(NEAR).feed(LinkBroken(FAR)).feed(LinkBroken(BEYOND))
    assert [route.to for route in core.wait(15).told(Route)] == [BEYOND]
    assert core.core.next_deadline() > core.now + 1


def test_when_one_is_back_the_next_is_looked_for_soon():
    core = two_missing()
    back = core.route.to
    assert core.found(back).count("detection.suspects") == 1
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
    core.feed(SeenViaService(FAR, Sighting.ANSWERED))
    assert [type(event) for event in core.events()] == [IslandSuspected]
    assert core.told(OpenBridge) == [OpenBridge(FAR)]


def test_an_answer_to_no_question_is_none():
    core = Core().link(NEAR).missing(FAR).feed(SeenViaService(FAR, Sighting.ANSWERED))
    assert not core.events()
    assert not core.wait(1.6).told(OpenBridge)


def test_whom_no_service_knows_is_forgotten():
    core = Core().link(NEAR).missing(FAR)
    assert probing(core)
    assert core.count("detection.pings") == 1
    core.feed(SeenViaService(FAR, Sighting.ABSENT))
    assert core.count("detection.suspects") == 0
    assert not core.out


def test_in_a_large_island_a_peer_is_forgotten_when_no_service_knows_it_twice():
    core = Core(probe_every=0.1).link(NEAR).feed(MeshSize(64)).missing(FAR)
    for left in (1, 0):
        assert probing(core)
        assert core.feed(SeenViaService(FAR, Sighting.ABSENT)).count("detection.suspects") == left


def test_a_late_answer_to_a_ping_counts():
    core = Core().link(NEAR).missing(FAR)
    assert probing(core)
    assert core.wait(6).feed(SeenViaService(FAR, Sighting.ANSWERED)).told(OpenBridge) == [OpenBridge(FAR)]


# --- bridges ----------------------------------------------------------------------------------------------------------


def test_a_link_to_who_was_missing_is_looked_into():
    core = Core().link(NEAR).missing(FAR).link(FAR).wait(2)
    assert (core.route.to, core.route.message) == (FAR, FindBeyond(key=ME.peer_id))
    assert (core.route.nearest, core.route.way) == (False, None), "it goes over the very link"
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
    (told,) = trying.feed(SeenViaService(FAR, Sighting.ANSWERED)).sent()
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
    core = Core(quiet=8.0).at_bridge()
    assert {told.until for told in core.told(MergeStarted)} == {core.now + 16.0}
    assert flood(Core(quiet=8.0).link(NEAR)).told(MergeStarted) == [MergeStarted(16.0)]


def test_a_stranger_is_looked_into_twice_before_it_is_taken_for_another_islands():
    core = Core().link(NEAR, FAR).feed(SeenViaService(FAR, Sighting.LINKED)).wait(4)
    assert not core.beyond(BEYOND).found(NEAR).sent()
    core.wait(4)
    frames = core.beyond(BEYOND).found(NEAR).sent()
    assert [frame.peers for frame in frames] == [(FAR,), (NEAR,)]
    assert all(frame.urgent for frame in frames)


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
    assert core.count("bridges.floods") == 0


def test_a_flood_goes_so_far_and_no_further():
    longest = (*(peer(number) for number in range(1, MAX_PATH)), NEAR)
    core = Core().link(NEAR, OTHER)
    assert flood(core, 1, path=longest[1:]).sent()
    assert not flood(core, 2, path=longest).sent()
    assert core.count("bridges.floods") == 2, "it has come, all the same"


def test_few_floods_are_passed_on_in_a_short_time_and_few_remembered():
    core = Core().link(NEAR, OTHER)
    assert sum(len(flood(core, number, path=(NEAR,)).sent()) for number in range(50)) == FLOODS
    for number in range(50, 200):
        flood(core.wait(10), number, path=(NEAR,))
    assert core.count("bridges.floods") == MAX_FLOODS


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
    other = RoutedReceived(RemotePeer(BEYOND, True, 1), FindBeyond(key=OTHER), ReturnPath(BEYOND, "another", (FAR,)))
    core.feed(asked)
    assert (core.route.to, core.route.avoid) == (OTHER, (FAR,))
    lookup = core.route
    assert not core.feed(asked).out  # the packet came again
    core.feed(RouteFailed(core.feed(other).route.call, "no way"))
    assert core.count("for_others_failed") == 1
    core.feed(RouteSucceeded(lookup.call, NEAR, SuccessorFound(successors=(OTHER,))))
    assert core.told(RouteReply) == [RouteReply(way, FoundBeyond(peer=NEAR, successors=(OTHER,)))]


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
    assert core.count("recovery") == {"healing": 0, "healed": 1}
    assert not core.wait(100).told(Route)


def test_an_island_that_is_suspected_again_is_told_again_and_one_that_is_healing_is_not():
    core = Core(quiet=0.0).at_bridge()
    core.feed(Received(FAR, Merge(id="x", bridge=ME.peer_id)))
    assert not core.beyond(BEYOND).found(NEAR).out, "nor is the bridge made known again"
    assert (core.count("confirms"), core.count("merges"), core.count("seeks")) == (2, 1, 1)


def test_while_a_witness_is_looked_for_no_other_is():
    core = Core().at_bridge()
    for route, witness in zip(core.told(Route), (peer(7), peer(8), peer(9)), strict=False):
        core.beyond(witness, route)
    assert [route.to for route in core.wait(5.9).told(Route)] == [peer(7)]


def test_where_the_bridge_is_not_ours_the_missing_peer_is_the_witness():
    core = Core().link(NEAR).missing(FAR)
    assert probing(core)
    core.feed(SeenViaService(FAR, Sighting.ANSWERED))
    core.wait(2)
    (lookup,) = [route for route in core.told(Route) if route.to == FAR]
    assert (lookup.nearest, lookup.avoid) == (True, ())
    core.found(FAR, lookup)
    assert [type(event) for event in core.events()] == [IslandHealed]


def test_a_far_end_that_names_only_us_or_itself_names_no_witness():
    core = Core().at_bridge()
    for who, route in zip((ME.peer_id, FAR, FAR), core.told(Route), strict=False):
        core.beyond(who, route)
    assert [route.message for route in core.wait(2.1).told(Route)].count(FindSuccessor(key=FAR)) == 0
    assert len([route for route in core.told(Route) if isinstance(route.message, FindBeyond)]) == 3, "it is asked again"


def test_look_ups_that_fail_are_no_harm():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).wait(15)
    core.feed(RouteFailed(core.route.call, "no way"))
    assert core.count("detection.missing") == 1
    core.feed(RouteFailed(99, "never asked"))


def test_a_mesh_that_is_left_does_nothing():
    core = Core().link(NEAR).missing(FAR).feed(Leave())
    assert core.core.next_deadline() == math.inf
    assert not core.wait(1000).out
    assert not core.feed(SeenViaService(FAR, Sighting.LINKED)).out


# --- calls whose outcome stays away -----------------------------------------------------------------------------------


def test_a_look_up_whose_outcome_never_comes_counts_as_failed():
    core = Core().link(NEAR).feed(LinkBroken(FAR)).wait(15)
    late = core.route
    core.wait(core.config.islands.lookup_timeout + OUTCOME_GRACE)
    assert (core.count("calls"), core.count("lost"), core.count("detection.missing")) == (0, 1, 1)
    assert not core.found(FAR, late).events()
    assert core.count("detection.missing") == 1, "what comes afterwards is ignored"


def test_a_lost_outcome_does_not_end_the_asking_of_services():
    core = two_missing()
    lost = core.route
    core.wait(core.config.islands.lookup_timeout + OUTCOME_GRACE)
    assert core.told(PingViaService) == [PingViaService(lost.to)]


def test_calls_are_bounded_and_a_suspect_for_which_there_is_no_room_is_looked_for_later():
    core = Core(suspects=2 * MAX_CALLS, patience=1.0).link(NEAR)
    for number in range(1, MAX_CALLS + 10):
        core.feed(LinkBroken(peer(number)))
    core.wait(1.5)
    assert len(core.told(Route)) == core.count("calls") == MAX_CALLS
    assert core.count("refused") >= 9
    for route in core.told(Route):
        core.found(route.to, route)
    assert len(core.wait(2).told(Route)) == core.count("detection.suspects") == 9


def test_others_can_not_use_up_all_calls():
    core = Core().link(NEAR, FAR)
    for number in range(400):
        way = ReturnPath(BEYOND, f"packet {number}", (BEYOND, FAR))
        core.feed(RoutedReceived(RemotePeer(BEYOND, True, 1), FindBeyond(key=OTHER), way))
    assert core.count("calls") == MAX_FOR_OTHERS
    assert core.feed(LinkBroken(OTHER)).wait(15).told(Route)


# --- which links count ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verified", "version"), [(False, 0), (True, 0), (False, 1)])
def test_only_verified_neighbours_of_our_protocol_tell_of_bridges_or_hear_of_them(verified, version):
    core = Core().link(NEAR).feed(LinkUp(RemotePeer(OTHER, verified, version)))
    assert not flood(core, path=(BEYOND, OTHER), sender=OTHER).out
    assert not core.feed(Received(OTHER, Merge(id="x", bridge=ME.peer_id))).out, "nor is theirs looked into"
    assert not core.feed(SeenViaService(OTHER, Sighting.LINKED)).wait(10).told(Route)
    assert not flood(core, path=(BEYOND, NEAR)).sent(), "there is nobody to tell"
    assert core.count("bridges.floods") == 1


# --- what is forgotten first ------------------------------------------------------------------------------------------


def test_of_too_many_suspects_the_oldest_is_forgotten():
    core = Core(suspects=3).link(NEAR)
    for number in range(1, 5):
        core.feed(LinkBroken(peer(number)))
    assert {route.to for route in core.wait(15).told(Route)} == {peer(2), peer(3), peer(4)}


def test_of_too_many_floods_the_oldest_is_forgotten():
    core = Core().link(NEAR, OTHER)
    for number in range(MAX_FLOODS + 1):
        assert flood(core.wait(10), number, path=(NEAR,)).sent()
    assert not flood(core.wait(10), 1, path=(NEAR,)).sent(), "one that is remembered is not passed on again"
    assert flood(core.wait(10), 0, path=(NEAR,)).sent()


def test_of_too_many_islands_the_one_known_longest_is_forgotten():
    recovery = IslandRecovery(ME.peer_id, IslandsConfig(), {}, random.Random(1))
    known = [peer(1000 + number) for number in range(MAX_CASES + 1)]
    assert all(recovery.suspect(one, 5.0) for one in known)
    assert recovery.snapshot()["healing"] == MAX_CASES
    assert [recovery.came_back(one, 8.0) for one in known] == [None] + [3.0] * MAX_CASES
