"""A network in a box: whole meshes in virtual time, with faults drawn from a seed.

Two rungs, one and the same protocol cores:

- *full meshes*: `simulate` runs an async function in virtual time, and `simulated_meshes` gives it real `open_mesh` peers
  over simulated links. For tests of applications, and hundreds of peers.
- *bare peers*: `BareNetwork` drives the cores of thousands of peers without Trio. For tests of protocols, and for
  figures: `run(load_scenario("churn"), peers=1000)`, or `p2pmesh simulate churn --peers 1000`.

`docs/simulation.md` shows both.
"""

from p2pmesh.simulation.assembly import assemble
from p2pmesh.simulation.bare import BareNetwork, InvariantViolated, Violation
from p2pmesh.simulation.bare_node import BareNode
from p2pmesh.simulation.calls import Call, Sending
from p2pmesh.simulation.conditioner import Conditions, Constant, LogNormal, Measured, Uniform
from p2pmesh.simulation.faults import (
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
)
from p2pmesh.simulation.graph import Graph, Hops
from p2pmesh.simulation.havoc import Havoc
from p2pmesh.simulation.hostile import Hostility
from p2pmesh.simulation.ledger import Broadcast
from p2pmesh.simulation.meshes import simulated_meshes
from p2pmesh.simulation.meter import Reading, read_meter
from p2pmesh.simulation.network import NEARBY, SimDialer, SimNetwork
from p2pmesh.simulation.obstacles import Cut
from p2pmesh.simulation.report import Picture, Report
from p2pmesh.simulation.scenario import SCENARIOS, Run, Scenario, load_scenario, parse_scenario, run
from p2pmesh.simulation.scheduling import simulate
from p2pmesh.simulation.world import World

__all__ = [
    "NEARBY",
    "SCENARIOS",
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
    "FaultPlan",
    "Freeze",
    "Graph",
    "Havoc",
    "Hops",
    "Hostile",
    "Hostility",
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
