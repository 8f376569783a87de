"""Peers in virtual time on a graph of links, over each of which frames come in order."""

from __future__ import annotations

import itertools
from typing import TypeVar

import attrs

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.core import Effect, InspectLink, SendFrame
from p2pmesh.protocols.inputs import LinkDown, LinkLoad, LinkUp, Received
from p2pmesh.protocols.wiring import OWNERS
from p2pmesh.wire.messages import Message
from tests.harness.virtual_time import Net, Node, remote


@attrs.define(eq=False)
class LinkedNode(Node):
    """A peer and its links; the number of each tells it from those to the same peer before and after."""

    links: dict[PeerId, int] = attrs.field(factory=dict)


LinkedNodeT = TypeVar("LinkedNodeT", bound=LinkedNode)


class LinkedNet(Net[LinkedNodeT]):
    """Numbered peers. What becomes of a frame is for `transmit` to say, which may `deliver` it."""

    load = (0, 0, 0)
    """Of each link: frames, bytes, and bytes that have left, as `LinkLoad` tells."""

    def __init__(self, nodes: list[LinkedNodeT]) -> None:
        super().__init__()
        self.nodes = nodes
        self.by_id = {node.id: node for node in nodes}
        self._numbers = itertools.count(1)

    def link(self, a: int, b: int) -> None:
        if self.is_linked(a, b):
            return
        one, other = self.nodes[a], self.nodes[b]
        one.links[other.id] = other.links[one.id] = next(self._numbers)
        self.feed(one, LinkUp(remote(other.identity)))
        self.feed(other, LinkUp(remote(one.identity)))

    def is_linked(self, a: int, b: int) -> bool:
        return self.nodes[b].id in self.nodes[a].links

    def cut(self, a: int, b: int, reason: str = "cut") -> None:
        self.part(self.nodes[a], self.nodes[b], reason)

    def kill(self, number: int) -> None:
        """Its links end, and nothing that it has still under way arrives."""
        dead = self.nodes[number]
        for peer in list(dead.links):
            self.part(dead, self.by_id[peer], "killed")

    def part(self, one: LinkedNodeT, other: LinkedNodeT, reason: str) -> None:
        if one.links.pop(other.id, None) is None:
            return
        del other.links[one.id]
        self.feed(one, LinkDown(other.id, reason))
        self.feed(other, LinkDown(one.id, reason))

    def do(self, node: LinkedNodeT, effect: Effect) -> None:
        match effect:
            case SendFrame(peers, message):
                for peer in peers:
                    self.transmit(node, self.by_id[peer], message)
            case InspectLink(peer):
                self.feed(node, LinkLoad(peer, *self.load))
            case _:
                super().do(node, effect)

    def transmit(self, sender: LinkedNodeT, receiver: LinkedNodeT, message: Message) -> None:
        raise NotImplementedError

    def deliver(self, sender: LinkedNodeT, receiver: LinkedNodeT, message: Message, delay: float) -> None:
        """It comes after whatever is under way before it, if its link is still there."""
        link, owner = sender.links.get(receiver.id), OWNERS[type(message)]

        def arrive() -> None:
            if link is not None and sender.links.get(receiver.id) == link and owner in receiver.cores:
                self.feed(receiver, Received(sender.id, message), owner)

        self.in_order((sender.id, receiver.id), delay, arrive)
