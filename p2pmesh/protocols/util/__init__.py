"""What the cores share: time, bounded memory, rates.

`timers` (one heap for each core, back-off), `rtt` (how long answers take), `lru_table` (bounded tables), `rate_limiter`
(token buckets), `local_health` (how late we are ourselves). Plain values: time goes in, nothing has an effect.
"""
