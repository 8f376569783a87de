"""`p2pmesh simulate`: a mesh of thousands in one process, in virtual time, with faults."""

from __future__ import annotations

import json
from pathlib import Path

import click

from p2pmesh.cli.options import json_option, option
from p2pmesh.cli.plots import PLOT, check_plot, drawing


@click.command()
@click.argument("scenario", default="quiet")
@option("--peers", type=click.IntRange(2, 100_000), default=100, metavar="N", help="How many peers.")
@option("--max-peers", type=click.IntRange(min=1), default=5, metavar="D", help="Most links that each of them holds.")
@option("--seed", type=int, default=0, help="The same seed gives the same run, to the last event.")
@option(
    "--adversary",
    "adversaries",
    multiple=True,
    metavar="KIND",
    help="What hostile peers do, a fifth of all, in place of the scenario's own: liar, black-hole, grinder, ...; "
    "may be given several times.",
)
@option(
    "--plot",
    type=PLOT,
    default=None,
    metavar="FILE.png",
    help="Draw delivery over time, hops, latencies and the overlay.",
)
@json_option
def simulate(
    *,
    scenario: str,
    peers: int,
    max_peers: int,
    seed: int,
    adversaries: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Simulate a mesh under a SCENARIO of faults, and see whether it delivers.

    All protocols of all peers run in this process, in virtual time, over links with the latencies and the faults of
    the scenario: quiet, join-storm, churn, mass-failure, partition, flaky-links, server-outage or hostile, or the
    path of a TOML file of your own.

    The exit status is 0 only if nothing happened that must not: every broadcast reached everybody, once.
    """
    if max_peers == 1 and peers > 2:
        raise click.UsageError("--max-peers 1 can't join more than 2 peers to one mesh: give it 2 or more")
    if plot is not None:
        check_plot(plot)
    from rich.console import Console

    from p2pmesh.cli.simulate.view import print_report, run_with_progress
    from p2pmesh.simulation.faults.adversary import adversary_of
    from p2pmesh.simulation.scenario import load_scenario

    errors = Console(stderr=True)
    loaded = load_scenario(scenario)
    if adversaries:
        loaded = loaded.against(map(adversary_of, adversaries))
    loaded.plan(peers, seed)  # what makes no sense is told before anything runs
    report = run_with_progress(loaded, peers=peers, max_peers=max_peers, seed=seed, console=errors, silent=as_json)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        print_report(report, Console())
    if plot is not None:
        _draw(report, plot)
    if report.violations:
        errors.print(report.account, markup=False, highlight=False, soft_wrap=True)
    click.get_current_context().exit(1 if report.violations else 0)


def _draw(report: object, path: Path) -> None:
    from p2pmesh.cli.simulate.plot import draw
    from p2pmesh.simulation.report import Report

    assert isinstance(report, Report)  # noqa: S101
    with drawing(path):
        draw(report, path)
