"""Scenarios: what happens to a mesh, in a small TOML file, for any number of peers; and how one is run.

    report = run(load_scenario("partition"), peers=30, max_peers=5, seed=1)
    assert not report.violations

A run has five phases. Peers *join* one after another, and the mesh *settles*. Then faults *rage*, while peers broadcast
and safety is watched. Then the faults stop, the mesh comes to *rest*, and liveness is required: one island, one ring,
and every broadcast everywhere that should be. At last all *leave*, and nothing may be left.

The shipped scenarios lie beside this module, and `load_scenario` takes a path as well. A file has the fields of
`Scenario`, a table `[conditions]` with those of `Conditions`, and an array of tables `[[faults]]` with those of the
faults of `p2pmesh.simulation.faults.plan`. Where a fault names peers, a scenario says which share of them: `share`
instead of `peers` or `count`, `shares` instead of `sides`; and `Churn` counts arrivals and departures for 100 peers.
What `Hostile` peers do may be a list, from which each draws, no two the same while there are enough; without one it is
that of all adversaries.
"""

from __future__ import annotations

import random
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from operator import attrgetter
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeAlias

import attrs
from attrs import field, frozen

from p2pmesh.config import MeshConfig
from p2pmesh.errors import ConfigError
from p2pmesh.simulation.discrete.fault_injector import FaultInjector
from p2pmesh.simulation.discrete.invariants import (
    check_at_most_once,
    check_delivery,
    check_islands,
    check_nothing_left,
    check_ring,
    expected,
    islands,
    members,
    ring_gaps,
    watch,
)
from p2pmesh.simulation.discrete.kernel import collector_paused
from p2pmesh.simulation.discrete.network import BareNetwork
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.plan import FaultPlan, fault_of
from p2pmesh.simulation.model.bounds import LOOK_EVERY
from p2pmesh.simulation.model.conditioner import Conditions, Constant, LogNormal, Measured, Uniform
from p2pmesh.simulation.report import Report, report_on

SCENARIOS: Final = (
    "quiet",
    "join-storm",
    "churn",
    "mass-failure",
    "partition",
    "flaky-links",
    "server-outage",
    "hostile",
)
"""The shipped ones."""
SLICE: Final = 0.5
"""Virtual seconds between two reports of progress."""
HELD: Final = 5.0
"""Seconds for which liveness has to hold until a mesh is at rest: as long as a silent peer goes unnoticed."""
FRESH: Final = 10.0
"""Seconds after which most of what a join causes is over."""
FRESH_WORK: Final = 40.0
"""Processor time that a peer takes in a second of these, in that of a second at rest; measured, for progress alone."""
BROADCAST_WORK: Final = 8.0
"""What one broadcast takes at each peer, in the same."""
HOSTILE: Final = 0.2
"""The share of peers that are hostile, unless somebody says otherwise: most are honest, or nothing is promised."""
PER: Final = 100
"""Peers that a scenario's rates of churn are meant for."""

Progress: TypeAlias = Callable[[str, float], None]
"""Called with the phase, and which share of the whole run's work is about done, from 0 to 1."""

_LATENCIES: Final[dict[str, type]] = {
    "constant": Constant,
    "uniform": Uniform,
    "log-normal": LogNormal,
    "measured": Measured,
}


def _positive(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int | float) or not value >= 0:
        raise ConfigError(f"{attribute.name} must be a number, 0 or more, not {value!r}")


@frozen(kw_only=True)
class Scenario:
    """What happens, for any number of peers. Times are virtual seconds."""

    name: str
    summary: str = ""
    join_every: float = field(default=0.02, validator=_positive)
    """Between two peers' joins."""
    settle: float = field(default=20.0, validator=_positive)
    """After the last join."""
    broadcasts: int = field(default=20, validator=_positive)
    broadcast_every: float = field(default=0.5, validator=_positive)
    ttl: float = field(default=60.0, validator=_positive)
    """Of each broadcast."""
    rest: float = field(default=60.0, validator=_positive)
    """Until liveness is required after the faults have stopped. Rest is over as soon as it has held for `HELD`."""
    probes: int = field(default=3, validator=_positive)
    """Broadcasts made at rest, which must reach all peers within `probe_within`."""
    probe_within: float = field(default=10.0, validator=_positive)
    conditions: Conditions = field(factory=Conditions)
    faults: tuple[dict[str, Any], ...] = ()

    def plan(self, peers: int, seed: int) -> FaultPlan:
        """The faults, for so many peers.

        Raises:
          ConfigError: if they make no sense, for so many peers at least.
        """
        rng = random.Random(f"scenario {self.name} {seed}")
        faults = [_for_peers(dict(fields), peers, rng) for fields in self.faults]
        plan = FaultPlan((fault_of(one) for fields in faults for one in _dealt(fields, rng)), seed=seed)
        plan.check(peers)
        return plan

    def against(self, kinds: Iterable[Adversary], share: float = HOSTILE) -> Scenario:
        """The same, but with a share of hostile peers of these kinds in place of its own."""
        hostile = {"kind": "hostile", "at": 1.0, "share": share, "does": [kind.value for kind in kinds]}
        return attrs.evolve(self, faults=(*(one for one in self.faults if one.get("kind") != "hostile"), hostile))


# --- reading ----------------------------------------------------------------------------------------------------------


def load_scenario(name_or_path: str | Path) -> Scenario:
    """A scenario that is shipped, by its name, or any other, by the path of its file.

    Raises:
      ConfigError: if there is none, or the file makes no sense.
    """
    name = str(name_or_path)
    try:
        if name in SCENARIOS:
            text = resources.files(__package__).joinpath("scenarios", f"{name}.toml").read_text("utf-8")
        elif isinstance(name_or_path, Path) or name.endswith(".toml"):
            text = Path(name_or_path).read_text("utf-8")
        else:
            raise ConfigError(
                f"no scenario {name!r:.60}: there are {', '.join(SCENARIOS)}, or the path of a .toml file"
            )
    except OSError as error:
        raise ConfigError(f"can't read the scenario {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the scenario {name} is no text") from error
    return parse_scenario(text, name=name if name in SCENARIOS else Path(name).stem)


def parse_scenario(text: str, *, name: str) -> Scenario:
    """A scenario from its text.

    Raises:
      ConfigError: if it makes no sense.
    """
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the scenario {name} is no TOML: {error}") from error
    known = {attribute.name for attribute in attrs.fields(Scenario)} - {"name"}
    unknown = [key for key in fields if key not in known]
    if unknown:
        raise ConfigError(f"the scenario {name} has a field {unknown[0]!r:.40}: there are {', '.join(sorted(known))}")
    try:
        conditions = _conditions(fields.pop("conditions", {}))
        scenario = Scenario(name=name, conditions=conditions, faults=_tables(fields.pop("faults", [])), **fields)
        scenario.plan(1000, 0)  # whether the faults make sense at all
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"the scenario {name}: {error}") from error
    return scenario


def _tables(faults: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(faults, list) or not all(isinstance(fault, dict) for fault in faults):
        raise ConfigError("faults are an array of tables: [[faults]]")
    return tuple(faults)


def _conditions(fields: dict[str, Any]) -> Conditions:
    known = {attribute.name for attribute in attrs.fields(Conditions)}
    for key in fields:
        if key not in known:
            raise ConfigError(f"conditions have no {key!r:.40}: there are {', '.join(sorted(known))}")
    if "latency" in fields:
        table = dict(fields["latency"])
        kind = table.pop("kind", None)
        if kind not in _LATENCIES:
            raise ConfigError(f"{kind!r:.40} is no kind of latency: there are {', '.join(_LATENCIES)}")
        fields = {**fields, "latency": _LATENCIES[kind](**table)}
    return Conditions(**fields)


def _for_peers(fields: dict[str, Any], peers: int, rng: random.Random) -> dict[str, Any]:
    """Turn the shares of a scenario's fault into peers."""

    def some(share: float) -> list[int]:
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(f"a share is between 0 and 1, not {share!r:.40}")
        return sorted(rng.sample(range(peers), round(share * peers)))

    if "shares" in fields:
        order, sides = rng.sample(range(peers), peers), []
        for share in fields.pop("shares"):
            side = order[: len(some(share))]
            order = order[len(side) :]
            sides.append(sorted(side))
        fields["sides"] = sides
    if "share" in fields:
        chosen = some(fields.pop("share"))
        fields |= {"count": len(chosen)} if fields.get("kind") == "join-storm" else {"peers": chosen}
    if fields.get("kind") == "churn":
        for rate in ("arrivals", "departures"):
            if isinstance(fields.get(rate), int | float):
                fields[rate] *= peers / PER
    return fields


def _dealt(fields: dict[str, Any], rng: random.Random) -> Iterator[dict[str, Any]]:
    """A fault of hostile peers for each kind that is dealt to some of them; any other as it is."""
    kinds = fields.get("does", [one.value for one in Adversary])
    if fields.get("kind") != "hostile" or not isinstance(kinds, list) or not kinds:
        yield fields
        return
    order = rng.sample(kinds, len(kinds))
    for turn, kind in enumerate(order):
        peers = fields.get("peers", [])[turn :: len(order)]
        if peers:
            yield {**fields, "peers": peers, "does": kind}


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    scenario: Scenario, *, peers: int, max_peers: int = 5, seed: int = 0, progress: Progress | None = None
) -> Report:
    """Run a scenario with bare peers.

    Args:
      scenario: what happens.
      peers: how many there are to begin with.
      max_peers: links each of them may have.
      seed: of all randomness: the same report, wall time aside, comes of the same seed.
      progress: is told how far it is.

    Raises:
      ConfigError: if the numbers make no sense.
    """
    return Run(scenario, peers=peers, max_peers=max_peers, seed=seed, progress=progress).report()


class Run:
    """A scenario's run, with the faults of a `plan` in place of its own if there is one.

    `phases` goes through it; a network and the plan are there to look at on the way.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        peers: int,
        max_peers: int,
        seed: int = 0,
        plan: FaultPlan | None = None,
        progress: Progress | None = None,
    ) -> None:
        if peers < 2:
            raise ConfigError(f"a mesh takes 2 peers or more, not {peers}")
        self._scenario = scenario
        self._peers = peers
        self._max_peers = max_peers
        self._progress = progress or (lambda phase, done: None)
        self.plan: FaultPlan = scenario.plan(peers, seed) if plan is None else plan
        config = MeshConfig(max_peers=max_peers)
        self.net: BareNetwork = BareNetwork(
            seed, config=config, conditions=scenario.conditions, strict=False, sample_sizes=True
        )
        self.net.plan = self.plan
        raging = max(scenario.broadcasts * scenario.broadcast_every, self.plan.ends)
        self._raging = raging
        lasts = peers * scenario.join_every + scenario.settle + raging + scenario.rest + scenario.probe_within
        broadcasts = scenario.broadcasts + scenario.probes
        self._whole = peers * (lasts + FRESH * FRESH_WORK + broadcasts * BROADCAST_WORK)
        self._done = 0.0

    def report(self) -> Report:
        """Go through all phases."""
        with collector_paused():
            return self._report()

    def _report(self) -> Report:
        began = perf_counter()
        for _ in self.phases():
            pass
        report = report_on(
            self.net,
            scenario=self._scenario.name,
            peers=self._peers,
            max_peers=self._max_peers,
            wall_s=0.0,
            without=self._hostile(),
        )
        self.net.close()
        check_nothing_left(self.net)
        self._progress("done", 1.0)
        return attrs.evolve(
            report,
            wall_s=perf_counter() - began,
            violations=tuple(map(str, self.net.violations)),
            account=self.net.account,
        )

    def phases(self) -> Iterator[str]:
        """Go through the phases but the last, and give the name of each when it is over."""
        scenario, net = self._scenario, self.net
        watch(net)
        for _ in range(self._peers):
            net.add()
            self._pass("join", scenario.join_every)
        yield "join"
        self._pass("settle", scenario.settle)
        check_islands(net)
        check_ring(net)
        yield "settle"
        injector = FaultInjector(net, self.plan)
        ends = net.now + self._raging
        for _ in range(scenario.broadcasts):
            self._broadcast()
            self._pass("rage", scenario.broadcast_every)
        self._pass("rage", max(0.0, ends - net.now))
        injector.end()
        yield "rage"
        quiet_since = net.now
        self._rest()
        check_islands(net, without=self._hostile())
        check_ring(net, without=self._hostile())
        yield "rest"
        for _ in range(scenario.probes):
            self._broadcast()
        self._pass("probe", scenario.probe_within)
        check_at_most_once(net)
        check_delivery(net, quiet_since=quiet_since, within=scenario.probe_within, without=self._hostile())
        yield "probe"

    def _rest(self) -> None:
        """Let the mesh come to rest: until liveness has held for `HELD`, or the time for that is over."""
        ends = self.net.now + self._scenario.rest
        held = 0.0
        while self.net.now < ends and held < HELD:
            step = min(LOOK_EVERY, ends - self.net.now)
            self._pass("rest", step)
            held = held + step if self._is_live() else 0.0
        self._done += (ends - self.net.now) * len(self.net.nodes)

    def _is_live(self) -> bool:
        """Whether the mesh is one, every broadcast is everywhere, and its origin knows, where nobody lies to it."""
        net, hostile = self.net, self._hostile()
        return (
            (bool(hostile) or all(broadcast.reached == broadcast.count for broadcast in net.delivery_log))
            and all(all(map(broadcast.has, expected(net, broadcast, hostile))) for broadcast in net.delivery_log)
            and not ring_gaps(net, hostile)
            and len(islands(net, hostile)) <= 1
        )

    def _broadcast(self) -> None:
        origins = members(self.net, self._hostile())
        if origins:
            self._done += BROADCAST_WORK * len(origins)
            self.net.publish(
                self.net.rng.choice(origins),
                f"broadcast {len(self.net.delivery_log.broadcasts)}",
                ttl=self._scenario.ttl,
            )

    def _hostile(self) -> list[int]:
        return [node.number for node in self.net.nodes if _is_hostile(node)]

    def _pass(self, phase: str, seconds: float) -> None:
        net = self.net
        ends = net.now + seconds
        while (began := net.now) < ends:
            net.run_until(min(ends, began + SLICE))
            fresh = len(net.nodes) - bisect_left(net.nodes, net.now - FRESH, key=attrgetter("since"))
            self._done += (net.now - began) * (len(net.nodes) + fresh * FRESH_WORK)
            self._progress(phase, min(1.0, self._done / self._whole))


def _is_hostile(node: BareNode) -> bool:
    return isinstance(node.hostile, Adversary)
