"""The terminal chat: what people see and what they can do, over a mesh that is a dictionary."""

import os
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh import Delivered, DirectReceived, Failed, MessageReceived, PeerConnected, PeerTimedOut, PeerUnreachable
from p2pmesh.cli.chat import roster
from p2pmesh.cli.chat.roster import MOST_PEOPLE, NAME_LENGTH, SILENCE, Left, NoSuchPersonError, People, clean_name
from p2pmesh.cli.chat.session import ANNOUNCE_EVERY, ANNOUNCE_PAUSE, CHAT, LONGEST, PRESENCE, UNSETTLED, Chat
from p2pmesh.cli.chat.terminal import Pipe
from p2pmesh.cli.line_reader import LineSplitter
from p2pmesh.cli.sanitize import printable
from tests.harness.cluster import Cluster, linked

ANN, BOB, CAT = ("a" * 40, "b" * 40, "c" * 40)
NAMES = ["ann", "bob", "cat", "dan", "eve"]


# --- a mesh that is a dictionary --------------------------------------------------------------------------------------


class Receipt:
    def __init__(self, reached, delay):
        self._reached, self._delay = reached, delay

    async def settled(self):
        await trio.sleep(self._delay)
        return Delivered(self._reached, 0.0) if self._reached else Failed("nobody is there", 0)


class Mesh:
    """As much of `p2pmesh.Mesh` as the chat uses."""

    def __init__(self, net, peer_id):
        self.net, self.peer_id = net, peer_id
        self.sent = []
        self.settle_after = 0.0
        self._streams = []

    @property
    def peers(self):
        return tuple(peer for peer in self.net if peer != self.peer_id)

    @property
    def peer_count(self):
        return len(self.peers)

    async def broadcast(self, topic, payload, *, ttl=None, receipts=True):
        await trio.lowlevel.checkpoint()
        self.sent.append((topic, payload))
        for peer in self.peers:
            self.net[peer].put(MessageReceived(topic, payload, self.peer_id, "id", trio.current_time(), 1, True))
        return Receipt(self.peer_count, self.settle_after)

    async def send(self, peer_id, payload):
        await trio.lowlevel.checkpoint()
        if peer_id not in self.net:
            raise PeerUnreachable(f"{peer_id[:8]} is not in the mesh")
        self.net[peer_id].put(DirectReceived(self.peer_id, payload, "id", trio.current_time(), True))

    def put(self, item):
        for send, wanted in self._streams:
            if wanted(item):
                send.send_nowait(item)

    def events(self):
        return self._stream(lambda item: not isinstance(item, MessageReceived | DirectReceived))

    def subscribe(self, topic, *, buffer):
        return self._stream(lambda item: isinstance(item, MessageReceived) and item.topic == topic)

    def messages(self, *, buffer):
        return self._stream(lambda item: isinstance(item, DirectReceived))

    @asynccontextmanager
    async def _stream(self, wanted):
        send, receive = trio.open_memory_channel(10_000)
        self._streams.append((send, wanted))
        with send, receive:
            yield receive
        self._streams.remove((send, wanted))


class Keyboard:
    """A terminal whose user is the test."""

    def __init__(self, *, interactive=True):
        self.interactive = interactive
        self.shown = []
        self._send, self._lines = trio.open_memory_channel(100)

    def show(self, line, *, dim=False):
        self.shown.append(line)

    async def read(self):
        try:
            return await self._lines.receive()
        except trio.EndOfChannel:
            return None

    async def type(self, *lines):
        for line in lines:
            await self._send.send(line)
        await trio.testing.wait_all_tasks_blocked()

    def end(self):
        self._send.close()


class Room:
    """Some people in a chat."""

    def __init__(self, nursery):
        self.net = {}
        self._nursery = nursery

    async def enter(self, peer_id, name, *, interactive=True, patience=10.0):
        mesh = self.net[peer_id] = Mesh(self.net, peer_id)
        keyboard = Keyboard(interactive=interactive)
        chat = keyboard.chat = Chat(mesh, name, keyboard)

        async def run():
            await chat.run(patience)
            del self.net[peer_id]

        self._nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        for other in mesh.peers:
            self.net[other].put(PeerConnected(peer_id, True))
        await trio.sleep(2 * ANNOUNCE_PAUSE)
        return keyboard


@pytest.fixture
async def room(nursery):
    return Room(nursery)


# --- people -----------------------------------------------------------------------------------------------------------


async def test_people_see_each_other_join_talk_and_leave(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    bob = await room.enter(BOB, "bob")
    await ann.type("hello")
    await bob.type("hi", "/quit")
    assert ann.shown == ["* bob joined", "bob: hi", "* bob left"]
    assert bob.shown == ["* ann joined", "ann: hello"]


async def test_a_newcomer_learns_of_everybody_at_once(autojump_clock, room):
    for peer, name in ((ANN, "ann"), (BOB, "bob")):
        await room.enter(peer, name)
    cat = await room.enter(CAT, "cat")
    assert sorted(cat.shown) == ["* ann joined", "* bob joined"]


async def test_peers_lists_everybody_with_names_and_ids(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    await room.enter(BOB, "bob")
    ann.shown.clear()
    await ann.type("/peers")
    assert ann.shown == [f"* ann (you) {ANN}".replace(") ", ")  "), f"* bob  {BOB}  linked"]


async def test_a_direct_message_reaches_one_person_only(autojump_clock, room):
    ann, bob, cat = [await room.enter(peer, name) for peer, name in ((ANN, "ann"), (BOB, "bob"), (CAT, "cat"))]
    await ann.type("/msg BOB are you there?")
    assert bob.shown[-1] == "ann (to you): are you there?"
    assert not any("there?" in line for line in cat.shown)


async def test_a_new_name_is_told_to_everybody(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    bob = await room.enter(BOB, "bob")
    await ann.type("/name anna")
    await trio.sleep(ANNOUNCE_PAUSE)
    assert bob.shown[-1] == "* ann is anna now"


async def test_namesakes_are_told_apart_by_digits_of_their_ids(autojump_clock, room):
    ann = await room.enter(ANN, "Ann")
    bob = await room.enter(BOB, "ann")
    await bob.type("hi")
    await ann.type("/msg ann#bbbb hello")
    assert ann.shown == ["* ann#bbbb joined", "ann#bbbb: hi"]
    assert bob.shown[-1] == "Ann#aaaa (to you): hello"


async def test_somebody_whose_link_died_is_shown_as_gone_and_back_when_heard_again(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    bob = await room.enter(BOB, "bob")
    room.net[ANN].put(PeerTimedOut(BOB, "nothing heard for 5.0 s", 5.0))
    await bob.type("still here")
    assert ann.shown == ["* bob joined", "* bob is gone: connection lost", "* bob joined", "bob: still here"]


async def test_somebody_silent_for_a_minute_is_gone(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    room.net[BOB] = Mesh(room.net, BOB)
    await room.net[BOB].broadcast(PRESENCE, {"presence": "here", "name": "bob"})
    await trio.sleep(SILENCE + 2 * ANNOUNCE_EVERY)
    assert ann.shown == ["* bob joined", "* bob is gone: fell silent"]


async def test_a_quiet_chat_stays_whole_for_an_hour(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    await room.enter(BOB, "bob")
    await trio.sleep(3600)
    assert ann.shown == ["* bob joined"]


async def test_a_flood_of_hellos_is_answered_once_a_second(autojump_clock, room):
    await room.enter(ANN, "ann")
    room.net[BOB] = Mesh(room.net, BOB)
    before = len(room.net[ANN].sent)
    for _ in range(100):
        await room.net[BOB].broadcast(PRESENCE, {"presence": "hello", "name": "bob"})
        await trio.sleep(0.1)
    assert len(room.net[ANN].sent) - before <= 10 / ANNOUNCE_PAUSE + 1


async def test_a_chat_over_a_whole_mesh(autojump_clock):
    async with Cluster(seed=1) as world:
        meshes = await world.join(5, max_peers=2)
        async with trio.open_nursery() as nursery:
            keyboards = [Keyboard() for _ in meshes]
            for mesh, keyboard, name in zip(meshes, keyboards, NAMES, strict=True):
                nursery.start_soon(Chat(mesh, name, keyboard).run)
            await linked(*meshes)
            await trio.sleep(5 * ANNOUNCE_PAUSE)
            for keyboard, name in zip(keyboards, NAMES, strict=True):
                assert sorted(keyboard.shown) == [f"* {other} joined" for other in NAMES if other != name]
                keyboard.shown.clear()
            await keyboards[0].type("hello", "/quit")
            await trio.sleep(2)
            for keyboard in keyboards[1:]:
                assert keyboard.shown == ["ann: hello", "* ann left"]
                await keyboard.type("/quit")


# --- the user's mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/dance", "* there is no command /dance: /help shows which there are"),
        ("/msg", "* /msg NAME TEXT"),
        ("/msg dora hi", "* nobody here is called dora: /peers shows who is"),
        ("/name", "* /name NAME: a name is one word"),
    ],
)
async def test_a_mistake_is_answered_with_what_to_do(autojump_clock, room, line, answer):
    ann = await room.enter(ANN, "ann")
    await ann.type(line)
    assert ann.shown[-1] == answer


async def test_help_shows_every_command(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    await ann.type("/help")
    assert all(any(name in line for line in ann.shown) for name in ("/msg", "/peers", "/name", "/quit"))


async def test_a_doubled_slash_says_something_that_begins_with_one(autojump_clock, room):
    ann, bob = await room.enter(ANN, "ann"), await room.enter(BOB, "bob")
    await ann.type("//quit is how one leaves")
    assert bob.shown[-1] == "ann: /quit is how one leaves"


async def test_a_message_that_reaches_nobody_is_told(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    await ann.type("hello?")
    assert ann.shown == ["* message lost: nobody is there"]


async def test_a_direct_message_to_somebody_who_has_gone_is_told(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    await room.enter(BOB, "bob")
    del room.net[BOB]
    await ann.type("/msg bob hi")
    assert ann.shown[-1] == "* message lost: not brought to bob: bbbbbbbb is not in the mesh"


# --- pipes ------------------------------------------------------------------------------------------------------------


async def test_a_pipe_waits_for_somebody_to_be_there_before_it_speaks(autojump_clock, room):
    pipe = await room.enter(ANN, "ann", interactive=False)
    await pipe.type("one", "two")
    pipe.end()
    await trio.sleep(3)
    bob = await room.enter(BOB, "bob")
    assert [line for line in bob.shown if ": " in line] == ["ann: one", "ann: two"]
    assert ANN not in room.net
    assert not pipe.chat.failed


async def test_a_pipe_stays_until_its_messages_have_settled(autojump_clock, room):
    pipe = await room.enter(ANN, "ann", interactive=False)
    await room.enter(BOB, "bob")
    room.net[ANN].settle_after = 30.0
    await pipe.type("one")
    pipe.end()
    await trio.sleep(29)
    assert ANN in room.net
    await trio.sleep(2)
    assert ANN not in room.net


async def test_a_pipe_to_nobody_gives_up_and_says_so(autojump_clock, room):
    pipe = await room.enter(ANN, "ann", interactive=False, patience=5.0)
    await pipe.type("one", "two")
    pipe.end()
    await trio.sleep(6)
    assert ANN not in room.net
    assert pipe.chat.failed == 2


async def test_lines_of_a_pipe_that_only_look_like_commands_are_sent(autojump_clock, room):
    pipe = await room.enter(ANN, "ann", interactive=False)
    bob = await room.enter(BOB, "bob")
    await pipe.type("/usr/bin/env is missing", "", "/quit")
    assert bob.shown == ["* ann joined", "ann: /usr/bin/env is missing", "* ann left"]


async def test_no_more_lines_are_read_while_many_are_unsettled(autojump_clock, room):
    pipe = await room.enter(ANN, "ann", interactive=False)
    await room.enter(BOB, "bob")
    mesh = room.net[ANN]
    mesh.settle_after = 30.0
    await pipe.type(*(str(number) for number in range(UNSETTLED + 10)))
    assert sum(topic == CHAT for topic, _ in mesh.sent) == UNSETTLED
    await trio.sleep(31)
    assert sum(topic == CHAT for topic, _ in mesh.sent) == UNSETTLED + 10


async def test_lines_come_out_of_a_real_pipe_whole_and_in_order():
    reading, writing = os.pipe()
    os.write(writing, b"one\r\ntwo\nthr")
    os.write(writing, b"ee")
    os.close(writing)
    pipe = Pipe(reading)
    assert [await pipe.read() for _ in range(5)] == ["one", "two", "three", None, None]
    os.close(reading)


@given(st.lists(st.binary(max_size=5)))
def test_lines_are_the_same_however_the_bytes_are_cut(chunks):
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    assert [*lines, splitter.rest()] == b"".join(chunks).split(b"\n")


# --- hostile peers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünï 你好", "plain ünï 你好"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link", "link"),
        ("\x9b31mred", "red"),
        ("\x1bPdevice\x1b\\control", "control"),
        ("a\rb\nc\td", "a b c d"),
        ("\u202eevil\u2066", "evil"),
        ("bell\x07 back\x08 del\x7f", "bell back del"),
        ("\x1b", ""),
        ("👨\u200d👩", "👨\u200d👩"),
    ],
)
def test_what_a_stranger_writes_is_made_fit_for_a_terminal(text, shown):
    assert printable(text, 100) == shown


@given(st.text(), st.integers(1, 50))
def test_no_text_leaves_a_control_character_or_is_longer_than_allowed(text, limit):
    line = printable(text, limit)
    assert len(line) <= limit
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)


def test_a_long_message_is_cut():
    assert printable("x" * 10_000, LONGEST) == "x" * (LONGEST - 1) + "…"


@pytest.mark.parametrize(
    "payload",
    [
        b"bytes",
        None,
        [],
        {"text": 1},
        {"presence": "here"},
        {"presence": "here", "name": ["x"]},
        {"presence": {}, "name": "x"},
        {"presence": "dance", "name": "x"},
    ],
)
async def test_nonsense_is_ignored(autojump_clock, room, payload):
    ann = await room.enter(ANN, "ann")
    mallory = room.net[BOB] = Mesh(room.net, BOB)
    for topic in (PRESENCE, CHAT):
        await mallory.broadcast(topic, payload)
    await mallory.send(ANN, payload)
    await trio.testing.wait_all_tasks_blocked()
    assert ann.shown == []


async def test_a_message_of_somebody_unknown_is_shown_under_its_id(autojump_clock, room):
    ann = await room.enter(ANN, "ann")
    await Mesh(room.net, BOB).broadcast(CHAT, {"text": "boo\x1b[2J"})
    await trio.testing.wait_all_tasks_blocked()
    assert ann.shown == ["#bbbbbbbb: boo"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("ann", "ann"), (" a  b ", "a-b"), ("a#bbbb", "abbbb"), ("\x1b[1mx", "x"), (7, ""), ("", ""), ("\x07", "")],
)
def test_a_name_is_one_short_plain_word(text, name):
    assert clean_name(text) == name


def test_a_long_name_is_cut():
    assert len(clean_name("x" * 1000)) == NAME_LENGTH


def peer(number):
    return f"{number:040x}"


def test_no_more_people_are_listed_than_the_bound():
    people = People("me")
    for number in range(MOST_PEOPLE + 5):
        people.heard(peer(number), f"p{number}", 0.0, 0.0)
    assert len(people) == MOST_PEOPLE


def test_those_who_left_are_remembered_up_to_the_bound(monkeypatch):
    monkeypatch.setattr(roster, "MOST_PEOPLE", 3)
    people = People("me")
    for number in range(5):
        people.left(peer(number), "left", 1.0)
    assert [people.heard(peer(number), "x", 1.0, 0.0) is None for number in range(2, 5)] == [True] * 3
    assert people.heard(peer(0), "x", 1.0, 0.0) is not None


def test_news_that_was_overtaken_changes_nothing():
    people = People("me")
    people.heard(ANN, "ann", 2.0, 0.0)
    assert people.heard(ANN, "old", 1.0, 0.0) is None
    assert people.left(ANN, "left", 1.5) is None
    assert people.left(ANN, "left", 3.0) == Left("ann", "left")
    assert people.heard(ANN, "ann", 2.5, 0.0) is None


def test_an_ambiguous_name_is_refused_with_the_choices():
    people = People("me")
    people.heard(ANN, "x", 0.0, 0.0)
    people.heard(BOB, "X", 0.0, 0.0)
    assert people.find("x#bb") == BOB
    assert people.find("#aa") == ANN
    with pytest.raises(NoSuchPersonError, match=r"could be 2 people: x#aaaaaaaa, x#bbbbbbbb"):
        people.find("x")
