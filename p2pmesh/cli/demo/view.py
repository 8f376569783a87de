"""The demo as text: a live table on a terminal, lines elsewhere, and a summary."""

from __future__ import annotations

from typing import Any

import trio
from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pmesh.cli.demo.report import Peer, Stage
from p2pmesh.keyspace import short

_FRAME = 0.1
"""Seconds between two looks at the stage."""


async def show(
    stage: Stage, console: Console, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Show the stage until cancelled."""
    task_status.started()
    if console.is_terminal:
        await _show_table(stage, console)
    else:
        await _show_lines(stage, console)


async def _show_table(stage: Stage, console: Console) -> None:
    with Live(_table(stage), console=console, auto_refresh=False) as live:
        try:
            while True:
                await trio.sleep(_FRAME)
                live.update(_table(stage), refresh=True)
        finally:
            live.update(_table(stage), refresh=True)


async def _show_lines(stage: Stage, console: Console) -> None:
    last = ""
    try:
        while True:
            last = _print_news(stage, console, last)
            await trio.sleep(_FRAME)
    finally:
        _print_news(stage, console, last)


def _print_news(stage: Stage, console: Console, last: str) -> str:
    news = headline(stage)
    if news != last:
        console.print(news, markup=False, highlight=False)
    return news


def headline(stage: Stage) -> str:
    """Where the demo is, in one line."""
    peers, plan = stage.peers, stage.plan
    ready = sum(peer.ready for peer in peers)
    if ready < plan.peers:
        return f"starting: {ready} of {plan.peers} processes ready"
    if stage.connected_s is None:
        joined = sum(peer.peer_id is not None for peer in peers)
        return f"connecting: {joined} of {plan.founders} joined, {len(stage.links)} links"
    if plan.kill_server and stage.newcomer_s is None:
        return f"connected in {stage.connected_s:.2f} s; the server is killed, and one more peer comes"
    if plan.partition is not None and stage.healed_s is None and any(peer.is_severed for peer in peers):
        what = f"parted for {plan.partition:g} s" if stage.islands_seen is None else "joined again"
        return f"connected in {stage.connected_s:.2f} s; {what}: {len(stage.islands())} islands, {_share(stage)}"
    return f"connected in {stage.connected_s:.2f} s by {len(stage.links)} links: {_share(stage)}"


def _share(stage: Stage) -> str:
    tenths = 10 * stage.delivered // stage.plan.deliveries if stage.plan.deliveries else 10
    return f"{10 * tenths}% delivered"


def _table(stage: Stage) -> Table:
    table = Table(title=headline(stage), title_justify="left")
    for heading in ("peer", "process", "state", "id", "links"):
        table.add_column(heading)
    for heading in ("sent", "settled", "received", "direct", *(["after the heal"] if stage.plan.partition else [])):
        table.add_column(heading, justify="right")
    for peer in stage.peers:
        table.add_row(*_row(stage, peer))
    return table


def _row(stage: Stage, peer: Peer) -> tuple[str, ...]:
    plan, progress = stage.plan, peer.progress
    numbers = {other.peer_id: other.number for other in stage.peers}
    neighbours = sorted(numbers.get(link, 0) for link in peer.links)
    return (
        str(peer.number),
        "" if peer.pid is None else str(peer.pid),
        _state(stage, peer),
        "" if peer.peer_id is None else short(peer.peer_id),
        " ".join(map(str, neighbours)),
        f"{progress.sent}/{plan.messages}",
        str(len(progress.reached)),
        f"{progress.delivered}/{plan.messages * (plan.peers - 1)}",
        str(progress.direct_received),
        *([str(progress.late)] if plan.partition else []),
    )


def _state(stage: Stage, peer: Peer) -> str:
    if peer.ended:
        return "ended"
    if not peer.ready:
        return "starting"
    if peer.peer_id is None:
        return "ready"
    if not peer.links:
        return "joined"
    if stage.connected_s is None or not peer.progress.sent:
        return "linked"
    return "done" if stage.is_done(peer) else "talking"


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The result as text."""
    for line in summary_lines(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The lines of the result."""
    connected, latency, receipts = summary["connected_s"], summary["latency_ms"], summary["receipts"]
    lines = [
        f"{summary['peers']} peers, {summary['links']} links, "
        + ("never connected" if connected is None else f"connected {connected:.2f} s after the last process's start"),
        f"broadcasts  {summary['delivered']} of {summary['expected']} deliveries, {summary['duplicates']} duplicates",
        f"direct      {summary['direct_ok']} of {summary['direct_total']} acknowledged, "
        f"{summary['direct_delivered']} delivered: from each peer to each other one",
        f"receipts    {receipts['delivered']} delivered to all, {receipts['failed']} not",
    ]
    if newcomer := summary["newcomer"]:
        lines.append(_newcomer_line(newcomer))
    if partition := summary["partition"]:
        lines += _partition_lines(partition)
    if latency["p50"] is not None:
        lines.append(f"latency     {latency['p50']:.1f} ms median, {latency['p99']:.1f} ms for the slowest 1%")
    return lines + [f"error: {error}" for error in summary["errors"]]


def _newcomer_line(newcomer: dict[str, Any]) -> str:
    links, linked = newcomer["links_through_mesh"], newcomer["linked_s"]
    when = "" if linked is None else f", the first within {linked:.2f} s"
    return f"no server   peer {newcomer['peer']} came after the server's end: {links} links through the mesh{when}"


def _partition_lines(partition: dict[str, Any]) -> list[str]:
    healed, caught_up = partition["healed_s"], partition["caught_up_s"]
    whole = "never one again" if healed is None else f"one again {healed:.1f} s after its end"
    everything = "not everything arrived" if caught_up is None else f"everything arrived within {caught_up:.1f} s"
    lines = [f"partition   {partition['islands']} islands after {partition['seconds']:g} s, {whole}, {everything}"]
    if partition["leaked"]:
        lines.append(f"            {partition['leaked']} deliveries came through it")
    return lines + [
        f"            peer {peer['peer']} (half {peer['half']}) has {peer['delivered']} of {peer['expected']}, "
        f"{peer['after_heal']} of them since the end"
        for peer in partition["peers"]
    ]
