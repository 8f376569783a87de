"""`p2pmesh demo`: a whole mesh on this machine, each peer its own process."""

from __future__ import annotations

import json
import logging

import click

from p2pmesh.cli.options import json_option, option

MOST_PEERS = 200
"""Below `ServerConfig.clients_per_address`; at about 60 MB each, memory ends before."""
LARGEST = 1024 * 1024
"""`MeshConfig.max_payload`."""


@click.command()
@option("--peers", type=click.IntRange(2, MOST_PEERS), default=5, help="How many processes.")
@option("--messages", type=click.IntRange(min=0), default=20, help="Broadcasts that each of them sends.")
@option("--max-peers", type=click.IntRange(min=1), default=3, help="Most links that each of them holds.")
@option("--payload", type=click.IntRange(0, LARGEST), default=100, metavar="BYTES", help="Size of a broadcast.")
@option("--rate", type=click.FloatRange(min=0, min_open=True), default=20.0, help="Broadcasts of each in a second.")
@option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, help="Seconds until it is given up.")
@option("--seed", default=None, help="Makes the peers' ids and choices repeatable.")
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
    as_json: bool,
) -> None:
    """Run a mesh on this machine and see whether everything arrives.

    Starts a signaling server and the peers, each its own process with real WebRTC over loopback. Once they are one mesh,
    each sends its broadcasts to all and a direct message to each neighbour. Needs no network.

    The exit status is 0 only if everything arrived, once, and every receipt says so.
    """
    import trio
    from rich.console import Console

    from p2pmesh.cli.demo_report import Plan, all_arrived
    from p2pmesh.cli.demo_stage import Demo
    from p2pmesh.cli.demo_view import print_summary, show

    if max_peers == 1 and peers > 2:
        raise click.UsageError("--max-peers 1 can't join more than 2 peers to one mesh: give it 2 or more")
    plan = Plan(peers, messages, max_peers, payload, rate, timeout, seed)
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
    click.get_current_context().exit(0 if all_arrived(summary) else 1)


@click.command("demo-peer", hidden=True)
def demo_peer() -> None:
    """One peer of the demo, under orders on stdin."""
    import trio

    from p2pmesh.cli.demo_peer import run_peer

    trio.run(run_peer)
