"""`p2pmesh demo`: a whole mesh on this machine, each peer its own process."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from p2pmesh.cli.options import Number, json_option, option
from p2pmesh.cli.plots import PLOT, check_plot, drawing

MOST_PEERS = 200
"""Most peers: below `ServerConfig.clients_per_address`. At about 60 MB each, memory ends before."""
SMALLEST = 2
"""Peers that are a mesh; with one more, that can come late and find a peer that no server named."""
PARTITION = 12.0
"""Seconds of `--partition`: more than twice what links take to find that their peers are silent."""
HALVES = 4
"""Fewest peers with `--partition`: each half has more than one."""
LARGEST = 1024 * 1024
"""`MeshConfig.max_payload`."""


@click.command()
@option("--peers", type=click.IntRange(2, MOST_PEERS), default=5, help="How many processes.")
@option("--messages", type=click.IntRange(min=0), default=20, help="Broadcasts that each of them sends.")
@option("--max-peers", type=click.IntRange(min=1), default=3, help="Most links that each of them holds.")
@option("--payload", type=click.IntRange(0, LARGEST), default=100, metavar="BYTES", help="Size of a broadcast.")
@option("--rate", type=Number(min=0, min_open=True), default=20.0, help="Broadcasts of each in a second.")
@option("--timeout", type=Number(min=0, min_open=True), default=60.0, help="Seconds until it is given up.")
@option("--seed", default=None, help="Makes the peers' ids and choices repeatable.")
@option(
    "--kill-server", is_flag=True, help="Kill the signaling server once they are one mesh; then one more peer comes."
)
@option(
    "--partition",
    is_flag=False,
    flag_value=PARTITION,
    type=Number(min=1, max=300),
    default=None,
    metavar="[SECONDS]",
    help=f"Part them into two halves that can't reach each other, for {PARTITION:g} s if not said; then join them.",
)
@option(
    "--plot", type=PLOT, default=None, metavar="FILE.svg", help="Draw the overlay: the ring, and the links across it."
)
@json_option
def demo(
    *,
    peers: int,
    messages: int,
    max_peers: int,
    payload: int,
    rate: float,
    timeout: float,
    seed: str | None,
    kill_server: bool,
    partition: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run a mesh on this machine and see whether everything arrives.

    Starts a signaling server and the peers, each its own process with real WebRTC over loopback. Once they are one
    mesh, each sends its broadcasts to all, and a direct message to each other one. Needs no network.

    With --kill-server the last peer comes when the server is dead: it gets one link with the help of another server,
    which only the first peer knows of and which is killed as well, and makes the rest of its links through the mesh.

    With --partition, two halves of the peers lose each other's packets once they are one mesh, and the second half
    loses the signaling server, too. Each peer sends its broadcasts in that time; then the packets pass again, and all
    of them have to arrive everywhere.

    The exit status is 0 only if everything arrived, once, and every receipt says so.
    """
    import trio
    from rich.console import Console

    from p2pmesh.cli.demo.coordinator import Demo
    from p2pmesh.cli.demo.report import Plan, all_arrived
    from p2pmesh.cli.demo.view import print_summary, show

    if max_peers == 1 and peers > 2:
        raise click.UsageError("--max-peers 1 can't join more than 2 peers to one mesh: give it 2 or more")
    if kill_server and (peers <= SMALLEST or max_peers == 1):
        raise click.UsageError(
            f"--kill-server needs {SMALLEST + 1} peers or more, and 2 links or more for each of them"
        )
    if partition is not None and (peers < HALVES or kill_server):
        raise click.UsageError(f"--partition needs {HALVES} peers or more, and no --kill-server")
    if plot is not None:
        check_plot(plot)
    plan = Plan(peers, messages, max_peers, payload, rate, timeout, seed, kill_server, partition)
    production = Demo(plan, debug=logging.getLogger("p2pmesh").isEnabledFor(logging.DEBUG))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(show, production.stage, Console(stderr=True))
            await production.run()
            nursery.cancel_scope.cancel("the demo is over")

    trio.run(run)
    summary = production.stage.summary()
    if as_json:
        click.echo(json.dumps(summary))
    else:
        print_summary(summary, Console())
    if plot is not None:
        from p2pmesh.cli.demo.plot import draw

        with drawing(plot):
            draw(production.stage, plot)
    click.get_current_context().exit(0 if all_arrived(summary) else 1)


@click.command("demo-peer", hidden=True)
def demo_peer() -> None:
    """One peer of the demo, under orders on stdin."""
    import trio

    from p2pmesh.cli.demo.worker import run_peer

    trio.run(run_peer)


@click.command("demo-server", hidden=True)
def demo_server() -> None:
    """A signaling server of the demo, until its stdin ends."""
    import trio

    from p2pmesh.cli.demo.server import run_server

    trio.run(run_server)
