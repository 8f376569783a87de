"""Bare peers: the cores of thousands of peers in one event loop of their own, without Trio.

Modules in reading order: `kernel` (clock, events, randomness, records, obstacles), `traffic`, `links`, `service`,
`node`, `delivery_log` and `call_log` (what applications sent and got), `network` (what a test drives), `prebuilt`
(large meshes at once), `fault_injector` (carries out a plan), `invariants`, `cost_meter` and `graph` (what to make of
it).

In go a seed, a config and calls of applications; out come deliveries, counters, a trace and its hash.
"""
