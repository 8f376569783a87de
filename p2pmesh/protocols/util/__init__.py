"""What the cores share: time, bounded memory, rates, geometry of the ring.

Modules: `timers` (one heap for each core, back-off), `window` (what is on its way: messages, calls), `lru_table`
(bounded tables), `rate_limiter` (token buckets), `rtt` (how long answers take), `local_health` (how late we are
ourselves), `ring_geometry`. Plain values and pure functions: time goes in, nothing has an effect.
"""
