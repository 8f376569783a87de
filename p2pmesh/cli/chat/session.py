"""A chat over a mesh: who is there, what they say, and what the user types.

Everything said to all is a broadcast `{"text": ..., "name": ...}` on the topic `chat`; the same to one person is a
direct message. On the topic `chat/presence` peers broadcast `{"presence": "hello" | "here" | "bye", "name": ...}`:
`hello` when they meet somebody they don't know, which everybody answers with `here`; `here` from time to time; `bye`
when they leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import trio

from p2pmesh.cli.chat.roster import Change, Joined, Left, NoSuchPersonError, People, Renamed, clean_name
from p2pmesh.cli.chat.terminal import Terminal
from p2pmesh.cli.sanitize import printable
from p2pmesh.errors import MeshError
from p2pmesh.events import (
    DirectReceived,
    Lagged,
    MessageReceived,
    PeerConnected,
    PeerTimedOut,
    TransportDown,
    TransportUp,
)
from p2pmesh.keyspace import PeerId
from p2pmesh.mesh import Mesh
from p2pmesh.receipts import Failed, Receipt

CHAT = "chat"
PRESENCE = "chat/presence"
ANNOUNCE_EVERY = 20.0
"""Seconds between unasked announcements; three may be lost until the others take us for gone."""
ANNOUNCE_PAUSE = 1.0
"""Least seconds between two announcements, so that a flood of `hello`s is not answered by one of `here`s."""
PRESENCE_TTL = ANNOUNCE_EVERY
"""Seconds after which an announcement is stale: a newer one has followed."""
UNSETTLED = 64
"""Unsettled messages above which the next line waits."""
DIRECT_TIMEOUT = 10.0
QUIT_GRACE = 2.0
"""Seconds that `/quit` waits for messages that are on their way."""
BYE_TIMEOUT = 1.0
"""Seconds for the goodbye; without it the others notice our silence."""
LONGEST = 4000
"""Characters of a message that are shown."""

HELP = """\
/msg NAME TEXT   say something to one person
/peers           who is here
/name NAME       change your name
/quit            leave (so does the end of input)
//TEXT           say /TEXT to all"""


class Chat:
    """One user's chat, over an open mesh."""

    def __init__(self, mesh: Mesh, name: str, terminal: Terminal) -> None:
        self.failed: int = 0
        """Messages of ours that reached nobody."""
        self._mesh = mesh
        self._terminal = terminal
        self._people = People(clean_name(name) or mesh.peer_id[:8])
        self._ask = False
        """Whether the next announcement asks the others for theirs."""
        self._announce = trio.Event()
        self._linked = trio.Event()
        self._patient_until = math.inf
        self._unsettled = trio.Semaphore(UNSETTLED)

    async def run(self, patience: float = math.inf) -> None:
        """Chat until the user quits, input ends or the mesh does.

        Args:
          patience: Seconds that a first message waits for a first neighbour. A user at a terminal sees who is there and
            needs none; what comes out of a pipe would be gone before the mesh is up.
        """
        mesh = self._mesh
        async with (
            mesh.events() as events,
            mesh.subscribe(PRESENCE, buffer=1024) as presence,
            mesh.subscribe(CHAT, buffer=1024) as messages,
            mesh.messages(buffer=1024) as directs,
            trio.open_nursery() as nursery,
        ):
            for stream, handle in (
                (events, self._on_event),
                (presence, self._on_presence),
                (messages, self._on_message),
                (directs, self._on_direct),
            ):
                nursery.start_soon(_each, stream, handle)
            nursery.start_soon(self._keep_announcing)
            if mesh.peer_count:
                self._on_link(known=False)
            try:
                await self._obey_input(patience)
            finally:
                with trio.move_on_after(BYE_TIMEOUT, shield=True):
                    await self._say_presence("bye")
            nursery.cancel_scope.cancel("the user left the chat")

    # --- what the user types ------------------------------------------------------------------------------------------

    async def _obey_input(self, patience: float) -> None:
        async with trio.open_nursery() as outgoing:
            while (line := await self._terminal.read()) is not None and line.rstrip() != "/quit":
                await self._obey(line, outgoing, patience)
            if self._terminal.interactive:  # who is there sees what is lost; a pipe relies on us
                outgoing.cancel_scope.deadline = trio.current_time() + QUIT_GRACE
        if outgoing.cancel_scope.cancelled_caught:
            self._notice("you left before everything had arrived")

    async def _obey(self, line: str, outgoing: trio.Nursery, patience: float) -> None:
        command, _, rest = line.partition(" ")
        match command:
            case "/help":
                self._notice(HELP)
            case "/peers":
                self._show_peers()
            case "/name":
                self._rename(rest)
            case "/msg":
                await self._send_direct(rest, outgoing)
            case _ if not line.strip():
                pass
            case _ if line.startswith("/") and not line.startswith("//") and self._terminal.interactive:
                self._notice(f"there is no command {command}: /help shows which there are")
            case _:
                await self._send(line.removeprefix("/") if line.startswith("//") else line, outgoing, patience)

    def _show_peers(self) -> None:
        neighbours = set(self._mesh.peers)
        self._notice(f"{self._people.own_name} (you)  {self._mesh.peer_id}")
        for person in self._people.all():
            link = "  linked" if person.peer_id in neighbours else ""
            self._notice(f"{self._people.label(person.peer_id)}  {person.peer_id}{link}")

    def _rename(self, text: str) -> None:
        name = clean_name(text)
        if not name:
            self._notice("/name NAME: a name is one word")
            return
        self._people.own_name = name
        self._notice(f"you are {name} now")
        self._announce.set()

    async def _send(self, text: str, outgoing: trio.Nursery, patience: float) -> None:
        if not self._terminal.interactive:
            self._patient_until = min(self._patient_until, trio.current_time() + patience)
            with trio.move_on_at(self._patient_until):
                await self._linked.wait()
            if not self._linked.is_set():
                self._fail("nobody is there")
                return
        await self._unsettled.acquire()
        try:
            receipt = await self._mesh.broadcast(CHAT, self._payload(text))
        except MeshError as error:
            self._unsettled.release()
            self._fail(str(error))
        else:
            outgoing.start_soon(self._settle, receipt)

    async def _settle(self, receipt: Receipt) -> None:
        try:
            outcome = await receipt.settled()
        except MeshError as error:
            self._fail(str(error))
        else:
            if isinstance(outcome, Failed):
                self._fail(outcome.reason)
        finally:
            self._unsettled.release()

    async def _send_direct(self, rest: str, outgoing: trio.Nursery) -> None:
        name, _, text = rest.strip().partition(" ")
        if not text.strip():
            self._notice("/msg NAME TEXT")
            return
        try:
            peer = self._people.find(name)
        except NoSuchPersonError as error:
            self._notice(str(error))
            return
        await self._unsettled.acquire()
        outgoing.start_soon(self._bring, peer, text)

    async def _bring(self, peer: PeerId, text: str) -> None:
        who = self._people.label(peer)
        try:
            with trio.fail_after(DIRECT_TIMEOUT):
                await self._mesh.send(peer, self._payload(text))
        except MeshError as error:
            self._fail(f"not brought to {who}: {error}")
        except trio.TooSlowError:
            self._fail(f"not brought to {who}: no answer")
        finally:
            self._unsettled.release()

    def _payload(self, text: str) -> Any:
        return {"text": text, "name": self._people.own_name}

    def _fail(self, why: str) -> None:
        self.failed += 1
        self._notice(f"message lost: {why}")

    # --- what the mesh tells ------------------------------------------------------------------------------------------

    def _on_event(self, event: object) -> None:
        match event:
            case PeerConnected():
                self._on_link(known=self._people.knows(event.peer_id))
            case PeerTimedOut():
                self._tell(self._people.left(event.peer_id, "connection lost"))
            case TransportDown():
                self._notice(f"signaling lost, retrying ({event.reason}); links live on")
            case TransportUp():
                self._notice("signaling is back")
            case Lagged(missed=missed):
                self._notice(f"{missed} items came too fast to be shown")
            case _:
                pass

    def _on_link(self, *, known: bool) -> None:
        """Behind a peer that we don't know there may be more, and they don't know us."""
        self._linked.set()
        self._ask = self._ask or not known
        self._announce.set()

    def _on_presence(self, message: MessageReceived) -> None:
        match message.payload:
            case {"presence": "bye"}:
                self._tell(self._people.left(message.origin, "left", message.timestamp))
            case {"presence": "hello" | "here" as kind, "name": str(name)}:
                self._hear(message, name)
                if kind == "hello":
                    self._announce.set()
            case _:
                pass

    def _on_message(self, message: MessageReceived) -> None:
        match message.payload:
            case {"text": str(text), "name": str(name)}:
                self._hear(message, name)
            case {"text": str(text)}:
                pass
            case _:
                return
        self._terminal.show(f"{self._people.label(message.origin)}: {printable(text, LONGEST)}")

    def _on_direct(self, message: DirectReceived) -> None:
        match message.payload:
            case {"text": str(text)}:
                self._terminal.show(f"{self._people.label(message.origin)} (to you): {printable(text, LONGEST)}")
            case _:
                pass

    def _hear(self, message: MessageReceived, name: str) -> None:
        self._tell(self._people.heard(message.origin, clean_name(name), message.timestamp, trio.current_time()))

    # --- what we tell -------------------------------------------------------------------------------------------------

    async def _keep_announcing(self) -> None:
        while True:
            with trio.move_on_after(ANNOUNCE_EVERY):
                await self._announce.wait()
            self._announce = trio.Event()
            kind, self._ask = "hello" if self._ask else "here", False
            await self._say_presence(kind)
            for change in self._people.expire(trio.current_time()):
                self._tell(change)
            await trio.sleep(ANNOUNCE_PAUSE)

    async def _say_presence(self, kind: str) -> None:
        try:
            payload: Any = {"presence": kind, "name": self._people.own_name}
            await self._mesh.broadcast(PRESENCE, payload, ttl=PRESENCE_TTL, receipts=False)
        except MeshError:  # the mesh is gone: its streams end too, and with them the chat
            return

    def _tell(self, change: Change | None) -> None:
        match change:
            case Joined():
                self._notice(f"{change.who} joined")
            case Left():
                self._notice(f"{change.who} is gone: {change.why}" if change.why != "left" else f"{change.who} left")
            case Renamed():
                self._notice(f"{change.old} is {change.who} now")
            case None:
                pass

    def _notice(self, text: str) -> None:
        for line in text.splitlines():
            self._terminal.show(f"* {printable(line, LONGEST)}", dim=True)


async def _each(stream: trio.abc.ReceiveChannel[Any], handle: Callable[[Any], None]) -> None:
    async for item in stream:
        handle(item)
