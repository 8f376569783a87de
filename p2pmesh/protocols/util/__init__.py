"""What the cores share: time, latency, bounds, windows.

Modules: `timers` (one heap for each core, back-off), `latency` (how long answers take, and how late we are ourselves),
`window` (what is on its way: messages, calls), `limits` (bounded tables, token buckets). Plain values: time goes in,
nothing has an effect.
"""
