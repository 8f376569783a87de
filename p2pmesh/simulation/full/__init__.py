"""Whole meshes: real `open_mesh` peers in virtual time, over simulated links and a signaling service in memory.

Modules in reading order: `meshes` (the way in), `world` (what a test drives), `hosts` (the peers of a world), `network`
and `carrier` (simulated links), `service_transport` (the way to the service), `fault_replay` (carries out a plan),
`adversarial_mesh` (a hostile peer), `live_invariants` (what is watched).

In go seeds, conditions, faults and parts of applications; out come real `Mesh` objects, violations and a trace.
"""
