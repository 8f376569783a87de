"""What an application gives that is wrong raises where it gives it, and the mesh goes on."""

import enum
import inspect
import math
import re
import subprocess
import sys
from contextlib import contextmanager, suppress
from functools import partial

import attrs
import pytest
import trio

from p2pmesh import (
    ConfigError,
    Dht,
    Identity,
    Mesh,
    MeshConfig,
    MeshError,
    Receipt,
    Subscription,
    TransportConfig,
    open_mesh,
)
from p2pmesh.protocols.inputs import Subsystem
from p2pmesh.transports.memory import MemoryTransport
from p2pmesh.transports.registry import Registry
from p2pmesh.transports.websocket import WebSocketTransport
from tests.harness.cluster import Cluster, linked

AT_THE_CALLER = (MeshError, ValueError, TypeError)
"""What may come of a bad argument."""
ELSEWHERE = "f" * 40


class Text(str):  # noqa: FURB189
    """A text that is not what it says."""

    __slots__ = ()

    def __str__(self):
        raise RuntimeError("odd")

    def encode(self, *args, **kwargs):
        return 5

    def startswith(self, *args):
        raise RuntimeError("odd")


class Map(dict[str, int]):  # noqa: FURB189
    def items(self):
        raise RuntimeError("odd")


class Nameless:
    def __repr__(self):
        raise RuntimeError("odd")


class Number(enum.IntEnum):
    ONE = 1


def numbers():
    yield 1
    raise RuntimeError("odd")


ODD = {
    "none": lambda: None,
    "true": lambda: True,
    "zero": lambda: 0,
    "five": lambda: 5,
    "negative": lambda: -1,
    "huge": lambda: 10**30,
    "endless": lambda: 10**5000,
    "fraction": lambda: 1.5,
    "NaN": lambda: math.nan,
    "infinite": lambda: math.inf,
    "minus infinite": lambda: -math.inf,
    "enum": lambda: Number.ONE,
    "digit": lambda: "5",
    "empty": lambda: "",
    "NUL": lambda: "\0",
    "half a surrogate": lambda: "caf\udce9",
    "odd text": lambda: Text("text"),
    "odd id": lambda: Text(ELSEWHERE),
    "long text": lambda: "x" * 2000,
    "bytes": lambda: b"x",
    "bytearray": lambda: bytearray(b"z"),
    "memoryview": lambda: memoryview(b"abcd")[::2],
    "list": list,
    "list of it": lambda: [Number.ONE, "x", None],
    "map": lambda: {"a": [1]},
    "odd map": lambda: Map(a=1),
    "odd map within": lambda: {"a": Map(a=1)},
    "keys that are none": lambda: {5: 1},
    "set": lambda: {1},
    "range": lambda: range(3),
    "generator": numbers,
    "class": lambda: int,
    "object": object,
    "nameless": Nameless,
    "function": lambda: lambda *args: None,
}


@contextmanager
def one_line(of):
    """Whatever is wrong is told in one line, as an error that a caller can expect, or as its own."""
    told = ""
    try:
        yield
    except AT_THE_CALLER as error:
        told = str(error)
    except RuntimeError as error:
        if str(error) != "odd":
            raise
    assert "\n" not in told, of
    assert len(told) < 500, of


async def entered(context):
    async with context:
        await trio.sleep(0.1)


async def at_once(call, *args):
    call(*args)


CALLS = {
    "broadcast topic": lambda mesh, other, odd: mesh.broadcast(odd, 1),
    "broadcast payload": lambda mesh, other, odd: mesh.broadcast("t", odd),
    "broadcast payload within": lambda mesh, other, odd: mesh.broadcast("t", {"a": [odd]}),
    "broadcast ttl": lambda mesh, other, odd: mesh.broadcast("t", 1, ttl=odd),
    "broadcast max_hops": lambda mesh, other, odd: mesh.broadcast("t", 1, max_hops=odd),
    "broadcast receipts": lambda mesh, other, odd: mesh.broadcast("t", 1, receipts=odd),
    "send peer_id": lambda mesh, other, odd: mesh.send(odd, 1),
    "send payload": lambda mesh, other, odd: mesh.send(other.peer_id, odd),
    "connect peer_id": lambda mesh, other, odd: mesh.connect(odd),
    "disconnect peer_id": lambda mesh, other, odd: mesh.disconnect(odd),
    "block peer_id": lambda mesh, other, odd: mesh.block(odd),
    "unblock peer_id": lambda mesh, other, odd: mesh.unblock(odd),
    "validate topic": lambda mesh, other, odd: at_once(mesh.validate, odd, None),
    "validate validator": lambda mesh, other, odd: at_once(mesh.validate, "t", odd),
    "put key": lambda mesh, other, odd: mesh.dht.put(odd, 1),
    "put value": lambda mesh, other, odd: mesh.dht.put("k", odd),
    "put ttl": lambda mesh, other, odd: mesh.dht.put("k", 1, ttl=odd),
    "put owned": lambda mesh, other, odd: mesh.dht.put("k", 1, owned=odd),
    "delete key": lambda mesh, other, odd: mesh.dht.delete(odd),
    "delete owned": lambda mesh, other, odd: mesh.dht.delete("k", owned=odd),
    "get_all key": lambda mesh, other, odd: mesh.dht.get_all(odd),
    "get owner": lambda mesh, other, odd: mesh.dht.get("k", owner=odd),
    "get key": lambda mesh, other, odd: mesh.dht.get(odd),
    "get publisher": lambda mesh, other, odd: mesh.dht.get("k", publisher=odd),
    "find_node target": lambda mesh, other, odd: mesh.dht.find_node(odd),
    "subscribe topic": lambda mesh, other, odd: entered(mesh.subscribe(odd)),
    "subscribe topic, with history": lambda mesh, other, odd: entered(mesh.subscribe(odd, history=5)),
    "subscribe ordered": lambda mesh, other, odd: entered(mesh.subscribe(ordered=odd)),
    "subscribe history": lambda mesh, other, odd: entered(mesh.subscribe("t", history=odd)),
    "subscribe buffer": lambda mesh, other, odd: entered(mesh.subscribe("t", buffer=odd)),
    "messages buffer": lambda mesh, other, odd: entered(mesh.messages(buffer=odd)),
    "linked count": lambda mesh, other, odd: mesh.linked(odd),
    "events buffer": lambda mesh, other, odd: entered(mesh.events(buffer=odd)),
}


def test_every_argument_of_every_call_is_tried():
    parameters = {
        f"{name} {parameter}"
        for owner in (Mesh, Dht, Receipt)
        for name, method in vars(owner).items()
        if inspect.isfunction(method) and not name.startswith("_")
        for parameter in list(inspect.signature(method).parameters)[1:]
    }
    assert parameters <= set(CALLS)


@pytest.mark.parametrize("call", CALLS)
async def test_no_argument_of_a_call_ends_the_mesh(autojump_clock, call):
    """One mesh, one parameter, every value. An error that came up in a task of the mesh would end the block."""
    async with Cluster() as world:
        mesh, other = await world.join(2)
        await linked(mesh, other)
        links = other.snapshot()["links"]["opened"]
        for name, make in ODD.items():
            with one_line(name), trio.move_on_after(60):
                await CALLS[call](mesh, other, make())
        with trio.fail_after(30):
            async with other.subscribe("alive?") as stream:
                await mesh.broadcast("alive?", True)
                await stream.receive()
        assert other.snapshot()["links"]["opened"] == links, "and no link is lost over it"


OPTIONS = [
    name
    for name, parameter in inspect.signature(open_mesh).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
]


@pytest.mark.parametrize("option", ["transport", *OPTIONS])
async def test_no_option_of_a_mesh_ends_in_anything_but_a_line(autojump_clock, option):
    async with Cluster() as world:
        for name, make in ODD.items():
            odd = make()
            options = {} if option == "transport" else {option: odd}
            transports = (odd,) if option == "transport" else ("memory://here",)
            options = {"dialer": world.network.dialer(world.identity(9).peer_id)} | options
            with one_line(name), trio.move_on_after(1):
                await entered(open_mesh(*transports, **options))


def fields():
    """Of all configs of a mesh; `ice_servers` and the server's own have tests beside theirs."""
    for kind in {
        TransportConfig,
        MeshConfig,
        *(type(part) for part in attrs.asdict(MeshConfig(), recurse=False).values()),
    }:
        if attrs.has(kind):
            yield from ((kind, field.name) for field in attrs.fields(kind) if field.name != "ice_servers")


@pytest.mark.parametrize(("kind", "field"), sorted(fields(), key=str))
def test_a_config_takes_nothing_that_it_is_not_for(kind, field):
    given = {"name": "memory"} if kind is TransportConfig else {}
    default = getattr(kind(**given), field)
    for name, make in ODD.items():
        odd = make()
        config = None
        with one_line(name), suppress(ConfigError):
            config = kind(**given | {field: odd})
        if config is None:
            continue
        assert getattr(config, field) is odd
        assert default is None or isinstance(odd, (int, float) if isinstance(default, float) else type(default)), name
        assert default is None or isinstance(default, bool) == isinstance(odd, bool), name
        assert not (isinstance(odd, float) and math.isnan(odd)), name


OTHERS = {
    "Identity.from_seed": Identity.from_seed,
    "Identity.unverified": Identity.unverified,
    "Identity.load_or_create": Identity.load_or_create,
    "Subscription": Subscription,
    "MemoryTransport url": MemoryTransport,
    "MemoryTransport name": lambda odd: MemoryTransport(name=odd),
    "MemoryTransport hub": lambda odd: MemoryTransport(hub=odd),
    "WebSocketTransport url": WebSocketTransport,
    **{
        f"WebSocketTransport {name}": partial(lambda name, odd: WebSocketTransport("ws://here", **{name: odd}), name)
        for name in ("name", "ssl_context", "headers", "max_message", "ping_after", "ping_patience")
    },
    "register name": lambda odd: Registry().register(odd, MemoryTransport),
    "register make": lambda odd: Registry().register("one", odd),
    "register schemes": lambda odd: Registry().register("one", MemoryTransport, schemes=odd),
    "make_transport": Registry().make,
}


@pytest.mark.parametrize("call", OTHERS)
def test_what_else_takes_arguments_refuses_odd_ones(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)  # some are names that a file can have
    for name, make in ODD.items():
        with one_line(name):
            OTHERS[call](make())


async def test_what_a_core_raises_over_a_call_goes_to_that_call(autojump_clock, monkeypatch):
    async with Cluster() as world:
        mesh, other = await world.join(2)
        await linked(mesh, other)
        core = mesh._node.drivers[Subsystem.BROADCAST]._core
        with monkeypatch.context() as patch:
            patch.setattr(core, "_publisher", None)
            with pytest.raises(AttributeError) as caught:
                await mesh.broadcast("t", 1)
        assert any("bug" in note for note in caught.value.__notes__)
        async with other.subscribe("t") as stream:
            await mesh.broadcast("t", 2)
            with trio.fail_after(10):
                assert (await stream.receive()).payload == 2


OUTSIDE = """
import asyncio
from p2pmesh import open_mesh, open_signaling_server

async def main():
    async with {}:
        print("in")

asyncio.run(main())
"""


@pytest.mark.parametrize("call", ["open_mesh('memory://here')", "open_signaling_server()"])
def test_outside_of_trio_a_line_says_what_to_do(call):
    done = subprocess.run([sys.executable, "-c", OUTSIDE.format(call)], capture_output=True, text=True)
    assert done.stdout == ""
    assert re.fullmatch(r".*ConfigError: open_\w+ runs on Trio: .*to_thread\(trio\.run.*", done.stderr.splitlines()[-1])


GUEST = """
import asyncio, trio
from p2pmesh import open_mesh

async def guest():
    async with open_mesh("memory://here"):
        print("a mesh")

async def host():
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    soon = loop.call_soon_threadsafe
    trio.lowlevel.start_guest_run(guest, run_sync_soon_threadsafe=soon, done_callback=done.set_result)
    (await done).unwrap()

asyncio.run(host())
"""


def test_a_guest_of_asyncio_is_told_to_use_a_thread():
    done = subprocess.run([sys.executable, "-c", GUEST], capture_output=True, text=True)
    assert done.stdout == ""
    assert "ConfigError: WebRTC links can't run" in done.stderr.splitlines()[-1]
    assert "to_thread" in done.stderr.splitlines()[-1]
