"""A scenario in virtual time, run and reported: `p2pmesh simulate`.

`command` has the options and runs `p2pmesh.simulation.scenario`; `view` shows the report, and `plot` draws the mesh.
"""
