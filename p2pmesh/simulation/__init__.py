"""A network in a box: whole meshes in virtual time, with faults drawn from a seed.

Two kinds, with the same protocol cores:

- *full meshes*: `simulate` runs an async function in virtual time, and `simulated_meshes` gives it real `open_mesh`
  peers over simulated links. For tests of applications, and hundreds of peers.
- *bare peers*: `BareNetwork` drives the cores of thousands of peers without Trio. For tests of protocols, and for
  figures: `run(load_scenario("churn"), peers=60)`, or `p2pmesh simulate churn --peers 60`.

Packages in reading order: `model`, `faults`, `discrete` (bare peers), `full`; then `report` and `scenario`.
`docs/simulation.md` shows both kinds.
"""

from p2pmesh.simulation.discrete.call_log import Call, Sending
from p2pmesh.simulation.discrete.cost_meter import Reading, read_meter
from p2pmesh.simulation.discrete.delivery_log import Broadcast
from p2pmesh.simulation.discrete.fault_injector import FaultInjector
from p2pmesh.simulation.discrete.graph import Graph, Hops
from p2pmesh.simulation.discrete.network import BareNetwork, InvariantViolated, Violation
from p2pmesh.simulation.discrete.node import BareNode
from p2pmesh.simulation.discrete.prebuilt import assemble
from p2pmesh.simulation.faults.adversary import Adversary
from p2pmesh.simulation.faults.plan import (
    Bad,
    Churn,
    Crash,
    FaultPlan,
    Freeze,
    Hostile,
    JoinStorm,
    Nat,
    Outage,
    Partition,
    Restart,
    Slow,
)
from p2pmesh.simulation.full.meshes import simulated_meshes
from p2pmesh.simulation.full.network import NEARBY, SimDialer, SimNetwork
from p2pmesh.simulation.full.world import World
from p2pmesh.simulation.model.conditioner import Conditions, Constant, LogNormal, Measured, Uniform
from p2pmesh.simulation.model.obstacles import Cut
from p2pmesh.simulation.model.virtual_time import simulate
from p2pmesh.simulation.report import Picture, Report
from p2pmesh.simulation.scenario import SCENARIOS, Run, Scenario, load_scenario, parse_scenario, run

__all__ = [
    "NEARBY",
    "SCENARIOS",
    "Adversary",
    "Bad",
    "BareNetwork",
    "BareNode",
    "Broadcast",
    "Call",
    "Churn",
    "Conditions",
    "Constant",
    "Crash",
    "Cut",
    "FaultInjector",
    "FaultPlan",
    "Freeze",
    "Graph",
    "Hops",
    "Hostile",
    "InvariantViolated",
    "JoinStorm",
    "LogNormal",
    "Measured",
    "Nat",
    "Outage",
    "Partition",
    "Picture",
    "Reading",
    "Report",
    "Restart",
    "Run",
    "Scenario",
    "Sending",
    "SimDialer",
    "SimNetwork",
    "Slow",
    "Uniform",
    "Violation",
    "World",
    "assemble",
    "load_scenario",
    "parse_scenario",
    "read_meter",
    "run",
    "simulate",
    "simulated_meshes",
]
