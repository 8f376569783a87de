"""A simulation as text: a bar while it runs, and a table when it is over."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from p2pmesh.simulation.report import Report
from p2pmesh.simulation.scenario import Scenario, run

_MOST_VIOLATIONS = 10
"""Violations that are shown; the JSON has all of them."""


def run_with_progress(
    scenario: Scenario, *, peers: int, max_peers: int, seed: int, console: Console, silent: bool = False
) -> Report:
    """Run a scenario, with a bar on a terminal that says how long it will take, and in silence elsewhere."""
    columns = (
        TextColumn("{task.fields[scenario]} [dim]{task.description:<7}"),
        BarColumn(bar_width=40),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=silent or not console.is_terminal) as bar:
        task = bar.add_task("join", total=1.0, scenario=f"{scenario.name}, {peers} peers")

        def progress(phase: str, done: float) -> None:
            bar.update(task, description=phase, completed=done)

        return run(scenario, peers=peers, max_peers=max_peers, seed=seed, progress=progress)


def print_report(report: Report, console: Console) -> None:
    """The result as text."""
    title = f"{report.scenario}: {report.peers} peers of {report.max_peers} links, seed {report.seed}"
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    for violation in report.violations[:_MOST_VIOLATIONS]:
        console.print(f"violated: {violation}", style="red", markup=False, highlight=False, soft_wrap=True)
    hidden = len(report.violations) - _MOST_VIOLATIONS
    if hidden > 0:
        console.print(f"and {hidden} violations more", style="red", highlight=False)


def rows(report: Report) -> list[tuple[str, str]]:
    """The figures, each with its name, in words."""
    hops, latency = report.last_hop, report.latency_s
    speed = f"{report.events / report.wall_s if report.wall_s else 0.0:,.0f} a second"
    return [
        ("mesh", f"{report.joined:,} joined, {_count(report.islands, 'island')}, {_count(report.ring_cycles, 'ring')}"),
        ("broadcasts", f"{report.broadcasts:,}, {report.receipts_exact:,} of them with an exact receipt"),
        ("delivered", f"{report.delivered:,} of {report.expected:,}, {report.reliability:.4%}"),
        ("redundancy", f"{report.redundancy:.2f} copies too many per delivery"),
        ("last hop", f"{hops['mean']:.1f} on average, {hops['max']:g} at most"),
        ("latency", f"{latency['p50'] * 1000:.0f} ms median, {latency['p99'] * 1000:.0f} ms for the slowest 1%"),
        ("control", f"{report.control_bytes_per_peer_s:,.0f} bytes per peer and second"),
        ("time", f"{report.virtual_s:,.1f} s simulated in {report.wall_s:.1f} s: {report.events:,} events, {speed}"),
        ("trace", report.trace_hash),
        ("violations", f"{len(report.violations):,}" if report.violations else "none"),
    ]  # fmt: skip


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
