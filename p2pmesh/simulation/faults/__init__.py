"""What goes wrong in a simulation: faults as data, which either kind of simulation carries out.

Modules in reading order: `plan` (kinds of faults, plans, their text), `adversary` (what a hostile peer does) with
`hostile_peer`, `lies`, `mischief` and `grinding`.

In go a seed or the text of a plan; out come faults with their times, and what a hostile peer sends instead of the
truth. `discrete/fault_injector` and `full/fault_replay` carry plans out.
"""
