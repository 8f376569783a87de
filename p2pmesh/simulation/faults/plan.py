"""What goes wrong in a simulation, when, and with which peers: a plan that a seed makes, that prints and reads back.

    plan = FaultPlan.generate(seed=7, peers=20, seconds=60)
    print(plan)
    assert FaultPlan.parse(str(plan)) == plan

Printed, a plan has one line for each fault, its time first; `parse` reads it back, so a failure can be replayed from
its message. Peers are numbers in the order in which they came, counted round among those that are there when the fault
comes: so a plan fits any number of peers, and stays meaningful when Hypothesis shrinks it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from p2pmesh.errors import ConfigError
from p2pmesh.simulation.faults.adversary import Adversary

Peers: TypeAlias = tuple[int, ...]


class _Fault(Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What all faults have: `at`, in seconds since the plan began."""

    at: float

    @property
    def until(self) -> float:
        """When it is over."""
        return self.at + float(getattr(self, "seconds", 0.0))

    @property
    def victims(self) -> int:
        """How many peers it names."""
        return len(getattr(self, "peers", ()))


class Partition(_Fault, frozen=True, kw_only=True, tag="partition"):
    """Nothing passes between the sides, or only from the first to the others."""

    seconds: float
    sides: tuple[Peers, ...]
    one_way: bool = False
    partial: bool = False
    """Peers on no side reach all sides; else they are on the first."""
    keeps_service: bool = False
    """Whether all sides reach the signaling service; else only the first does."""

    @property
    def victims(self) -> int:
        return sum(map(len, self.sides))


class Crash(_Fault, frozen=True, kw_only=True, tag="crash"):
    """The processes of these peers end at once, without a word."""

    peers: Peers


class Freeze(_Fault, frozen=True, kw_only=True, tag="freeze"):
    """The processes of these peers stop, and go on later."""

    seconds: float
    peers: Peers


class Slow(_Fault, frozen=True, kw_only=True, tag="slow"):
    """The machine has too much to do: these peers stop and go, each by itself, again and again."""

    seconds: float
    peers: Peers
    stops: float = 0.5
    """Seconds that a stop lasts on average."""
    runs: float = 0.05
    """Seconds on average until the next."""


class Restart(_Fault, frozen=True, kw_only=True, tag="restart"):
    """These peers crash and come back after a pause, with the same identity or a fresh one."""

    peers: Peers
    seconds: float = 0.0
    fresh: bool = False


class JoinStorm(_Fault, frozen=True, kw_only=True, tag="join-storm"):
    """Many newcomers within some seconds."""

    count: int
    seconds: float = 0.0
    clock_offset: float = 0.0


class Churn(_Fault, frozen=True, kw_only=True, tag="churn"):
    """Peers come and go as Poisson processes, at these rates per second; `crashes` is the share that crashes."""

    seconds: float
    arrivals: float
    departures: float
    crashes: float = 0.5


class Outage(_Fault, frozen=True, kw_only=True, tag="outage"):
    """The signaling service is down, and comes back knowing nobody."""

    seconds: float


class Bad(_Fault, frozen=True, kw_only=True, tag="bad-links"):
    """The links of these peers are slow or lossy, and break now and then."""

    seconds: float
    peers: Peers
    latency: float = 0.3
    loss: float = 0.05
    bandwidth: float = 64 * 1024.0
    breaks: float = 0.0


class Nat(_Fault, frozen=True, kw_only=True, tag="nat"):
    """These peers are behind an address translator of this type from now on; open links stay open."""

    peers: Peers
    type: Literal["cone", "symmetric"] = "symmetric"


class Hostile(_Fault, frozen=True, kw_only=True, tag="hostile"):
    """These peers turn against the others."""

    peers: Peers
    does: Adversary


Fault: TypeAlias = Partition | Crash | Freeze | Slow | Restart | JoinStorm | Churn | Outage | Bad | Nat | Hostile
KINDS: Final[dict[str, type]] = {kind.__struct_config__.tag: kind for kind in get_args(Fault)}


class FaultPlan:
    """Faults in the order of their times."""

    def __init__(self, faults: Iterable[Fault] = (), *, seed: int | None = None) -> None:
        """Make a plan; `seed` says where it came from, for the record."""
        self.faults: tuple[Fault, ...] = tuple(sorted(faults, key=lambda fault: fault.at))
        self.seed = seed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FaultPlan) and self.faults == other.faults

    def __hash__(self) -> int:
        return hash(self.faults)

    def __repr__(self) -> str:
        return f"FaultPlan.parse({str(self)!r})"

    def __str__(self) -> str:
        return "\n".join(map(_line, self.faults))

    @property
    def ends(self) -> float:
        """When the last fault is over."""
        return max((fault.until for fault in self.faults), default=0.0)

    @classmethod
    def parse(cls, text: str) -> FaultPlan:
        """Read a plan as it prints.

        Raises:
          ConfigError: if a line is no fault.
        """
        lines = (line.strip() for line in text.splitlines())
        return cls(_fault(line) for line in lines if line and not line.startswith("#"))

    @classmethod
    def generate(cls, seed: int, *, peers: int, seconds: float, faults: int = 6, hostile: bool = False) -> FaultPlan:
        """A plan of this many faults within this many seconds, for about this many peers.

        Of the peers, about two thirds are never touched by a fault that ends their process, or makes them hostile.
        """
        rng = random.Random(f"fault plan {seed}")
        kinds = [kind for kind in KINDS.values() if hostile or kind is not Hostile]
        return cls((_drawn(rng.choice(kinds), rng, peers, seconds) for _ in range(faults)), seed=seed)

    def check(self, peers: int) -> None:
        """Raise `ConfigError` if the plan makes no sense for this many peers."""
        for fault in self.faults:
            if fault.at < 0 or fault.until < fault.at:
                raise ConfigError(f"a fault's times must not be negative: {_line(fault)}")
            if fault.victims > peers:
                raise ConfigError(
                    f"a {fault.__struct_config__.tag} of {fault.victims} peers, but there are {peers}: "
                    "name fewer, or simulate more"
                )


def _line(fault: Fault) -> str:
    fields: dict[str, Any] = msgspec.to_builtins(fault)
    kind, at = fields.pop("kind"), fields.pop("at")
    defaults = {field.name: field.default for field in msgspec.structs.fields(fault)}
    parts = [
        f"{name}={msgspec.json.encode(value).decode()}"
        for name, value in fields.items()
        if getattr(fault, name) != defaults[name]
    ]
    return " ".join([f"{at!r}", kind, *parts])


def _fault(line: str) -> Fault:
    try:
        at, kind, *parts = line.split(" ")
        fields = dict(part.split("=", 1) for part in parts)
        values = {name: msgspec.json.decode(value) for name, value in fields.items()}
        return fault_of({"kind": kind, "at": float(at), **values})
    except (ValueError, msgspec.MsgspecError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{line!r:.100} is no fault: a line is its time, its kind and its fields, {error}") from error


def fault_of(fields: dict[str, Any]) -> Fault:
    """A fault from its fields, as TOML and JSON write them.

    Raises:
      ConfigError: if they make none.
    """
    if fields.get("kind") not in KINDS:
        raise ConfigError(f"{fields.get('kind')!r:.40} is no kind of fault: there are {', '.join(KINDS)}")
    try:
        fault: Fault = msgspec.convert(fields, Fault)
    except msgspec.ValidationError as error:
        raise ConfigError(f"a bad {fields['kind']}: {error}") from error
    return fault


def _drawn(kind: type, rng: random.Random, peers: int, seconds: float) -> Fault:
    """A fault of this kind that begins and ends within the time."""
    at = round(rng.uniform(0, seconds / 2), 3)
    lasts = round(rng.uniform(0.5, seconds / 2), 3)
    third = max(1, peers // 3)

    def some(most: int) -> Peers:
        return tuple(sorted(rng.sample(range(peers), rng.randint(1, max(1, min(most, peers))))))

    def last_third() -> Peers:
        """Faults that end processes keep to these, so that peers are left to deliver to."""
        return tuple(peers - 1 - number for number in sorted(rng.sample(range(third), rng.randint(1, third))))

    if kind is Partition:
        side = some(peers // 2)
        partial = peers > 4 and rng.random() < 0.3
        rest = tuple(number for number in range(peers) if number not in side)
        sides = (rest[: len(rest) // 2] if partial else rest, side)
        return Partition(
            at=at,
            seconds=lasts,
            sides=sides,
            one_way=rng.random() < 0.3,
            partial=partial,
            keeps_service=rng.random() < 0.5,
        )
    if kind is Crash:
        return Crash(at=at, peers=last_third())
    if kind is Freeze:
        return Freeze(at=at, seconds=lasts, peers=some(third))
    if kind is Slow:
        return Slow(at=at, seconds=lasts, peers=some(peers))
    if kind is Restart:
        return Restart(at=at, seconds=lasts, peers=last_third(), fresh=rng.random() < 0.5)
    if kind is JoinStorm:
        offset = round(rng.uniform(-60, 60), 1)
        return JoinStorm(at=at, count=rng.randint(1, third), seconds=round(rng.uniform(0, 2), 3), clock_offset=offset)
    if kind is Churn:
        return Churn(at=at, seconds=lasts, arrivals=0.2, departures=0.1)
    if kind is Outage:
        return Outage(at=at, seconds=lasts)
    if kind is Bad:
        return Bad(at=at, seconds=lasts, peers=some(third), loss=0.1, breaks=0.002)
    if kind is Nat:
        return Nat(at=at, peers=some(third))
    return Hostile(at=at, peers=last_third(), does=rng.choice(list(Adversary)))
