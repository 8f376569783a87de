"""The Trio shell: drives the sans-IO cores of one peer, and carries out their effects.

Modules, in reading order: `node` (one peer put together; effects are carried out here), `driver` (runs one core),
`linkkeeper` (opens, reads and writes links), `services` (connections to signaling services), `calls` (the application's
calls into the cores), `bus` and `ordered` (events out to the application), `supervisor` (how tasks end, how they are
retried). In: calls, frames, signaling messages. Out: the same, and events. Blocking goes up only: see `driver`.
"""
