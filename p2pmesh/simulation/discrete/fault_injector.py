"""Carries out a fault plan on a network of bare peers, and ends all faults when their time is over."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final, assert_never

from p2pmesh.identity import Identity
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.grinding import ground
from p2pmesh.simulation.faults.plan import (
    Bad,
    Churn,
    Crash,
    Fault,
    FaultPlan,
    Freeze,
    Hostile,
    JoinStorm,
    Nat,
    Outage,
    Partition,
    Peers,
    Restart,
    Slow,
)
from p2pmesh.simulation.model.conditioner import Conditions, Constant
from p2pmesh.simulation.model.obstacles import Cut

FEWEST: Final = 2
"""Peers that faults leave alive: one peer is no mesh."""


class FaultInjector:
    """The faults of one plan, on a network, from now on until `end`."""

    def __init__(self, net: BareNetwork, plan: FaultPlan) -> None:
        self.net = net
        self.plan = plan
        self._rng = random.Random(net.rng.getrandbits(64))
        self._cuts: list[Cut] = []
        self._outages = 0
        self._over = False
        for fault in plan.faults:
            net.after(fault.at, self._begin, fault)

    def end(self) -> None:
        """End all faults that can end: partitions heal, frozen peers thaw, the service comes up.

        Peers that are gone stay gone, and hostile peers stay hostile.
        """
        net = self.net
        self._over = True
        net.heal()
        for node in net.living():
            if node.is_frozen:
                net.thaw(node)
        net.condition(net.nodes, None)
        net.nats.clear()
        net.service.start()

    def peers(self, numbers: Peers) -> list[BareNode]:
        """The peers that these numbers stand for: counted round among the living."""
        living = self.net.living()
        return list(dict.fromkeys(living[number % len(living)] for number in numbers)) if living else []

    # --- each kind ----------------------------------------------------------------------------------------------------

    def _begin(self, fault: Fault, _: object) -> None:
        if self._over:
            return
        net = self.net
        match fault:
            case Partition():
                self._part(fault)
            case Crash():
                for node in self.peers(fault.peers):
                    self._crash(node)
            case Freeze():
                nodes = self.peers(fault.peers)
                for node in nodes:
                    net.freeze(node)
                net.after(fault.seconds, self._thaw, nodes)
            case Slow():
                for node in self.peers(fault.peers):
                    self._go(node, (fault, net.now + fault.seconds))
            case Restart():
                nodes = [node for node in self.peers(fault.peers) if self._crash(node)]
                net.after(fault.seconds, self._come_back, nodes, fault.fresh)
            case JoinStorm():
                for number in range(fault.count):
                    net.after(fault.seconds * number / fault.count, self._join, fault.clock_offset)
            case Churn():
                ends = net.now + fault.seconds
                self._next(fault.arrivals, ends, self._arrive)
                self._next(fault.departures, ends, self._depart, fault.crashes)
            case Outage():
                self._outages += 1
                net.service.stop()
                net.after(fault.seconds, self._bring_up, None)
            case Bad():
                self._spoil(fault)
            case Nat():
                for node in self.peers(fault.peers):
                    net.nats[node.number] = fault.type
            case Hostile():
                self._turn(self.peers(fault.peers), fault.does)
            case _:
                assert_never(fault)

    def _part(self, fault: Partition) -> None:
        sides = {node.number: side for side, peers in enumerate(fault.sides) for node in self.peers(peers)}
        rest = None if fault.partial else 0
        cut = Cut(sides, one_way=fault.one_way, rest=rest, keeps_service=fault.keeps_service)
        self.net.cut(cut)
        self.net.after(fault.seconds, self._heal, cut)

    def _heal(self, cut: Cut, _: object) -> None:
        if cut in self.net.cuts:
            self.net.heal(cut)

    def _crash(self, node: BareNode) -> bool:
        if len(self.net.living()) <= FEWEST:
            return False
        self.net.stop(node)
        return True

    def _turn(self, nodes: list[BareNode], adversary: Adversary) -> None:
        if not adversary.comes_anew:
            for node in nodes:
                self.net.turn_hostile(node, adversary)
            return
        nodes = [node for node in nodes if self._crash(node)]
        for node, identity in zip(nodes, self._identities(adversary, len(nodes)), strict=True):
            self.net.add(identity=identity, config=node.config, hostile=adversary)

    def _identities(self, adversary: Adversary, count: int) -> Sequence[Identity | None]:
        """Of those that come: ground near one of the others, or drawn as anybody's."""
        victims = [node.peer_id for node in self.net.living() if node.hostile is None]
        if adversary is not Adversary.GRINDER or not victims:
            return [None] * count
        return ground(self._rng.choice(victims), count, self.net.plot.everybody)

    def _thaw(self, nodes: list[BareNode], _: object) -> None:
        for node in nodes:
            self.net.thaw(node)

    def _go(self, node: BareNode, slow: tuple[Slow, float]) -> None:
        """Let a slow peer run for a moment."""
        if not self._over:
            self.net.thaw(node)
            self.net.after(self._rng.expovariate(1 / slow[0].runs), self._stop, node, slow)

    def _stop(self, node: BareNode, slow: tuple[Slow, float]) -> None:
        """Stop a slow peer for a while, unless its time as such is over."""
        if self.net.now < slow[1] and not self._over:
            self.net.freeze(node)
            self.net.after(self._rng.expovariate(1 / slow[0].stops), self._go, node, slow)

    def _come_back(self, nodes: list[BareNode], fresh: bool) -> None:  # an action of the queue
        for node in nodes:
            if not self._over:
                self.net.restart(node, fresh=fresh)

    def _join(self, clock_offset: float, _: object) -> None:
        if not self._over:
            self.net.add(clock_offset=clock_offset)

    def _next(self, rate: float, ends: float, action: Any, detail: Any = None) -> None:
        """Schedule the next event of a Poisson process."""
        wait = self._rng.expovariate(rate) if rate > 0 else float("inf")
        if self.net.now + wait < ends and not self._over:
            self.net.after(wait, self._happen, (rate, ends, action, detail))

    def _happen(self, what: tuple[float, float, Any, Any], _: object) -> None:
        rate, ends, action, detail = what
        if not self._over:
            action(detail)
            self._next(rate, ends, action, detail)

    def _arrive(self, _: object) -> None:
        self.net.add()

    def _depart(self, crashes: float) -> None:
        living = [node for node in self.net.living() if not node.is_leaving]
        if len(living) <= FEWEST:
            return
        node = self._rng.choice(living)
        if self._rng.random() < crashes or node.is_frozen:
            self.net.stop(node)
        else:
            node.leave()

    def _bring_up(self, *_: object) -> None:
        self._outages -= 1
        if self._outages <= 0:
            self.net.service.start()

    def _spoil(self, fault: Bad) -> None:
        nodes = self.peers(fault.peers)
        bad = Conditions(
            latency=Constant(fault.latency),
            jitter=fault.latency / 4,
            loss=fault.loss,
            bandwidth=fault.bandwidth,
            breaks=fault.breaks,
        )
        self.net.condition(nodes, bad)
        self.net.after(fault.seconds, self._mend, nodes)

    def _mend(self, nodes: list[BareNode], _: object) -> None:
        self.net.condition(nodes, None)
