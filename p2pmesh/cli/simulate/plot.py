"""Draws a simulation: delivery over time, hops and latencies, and the overlay on the ring of ids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from p2pmesh.simulation.report import Picture, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#22303c"
SOFT: Final = "#8796a5"
GRID: Final = "#e6ebf0"
BLUE: Final = "#2f6fb0"
ORANGE: Final = "#e08a3c"
Point: TypeAlias = tuple[float, float]
_NEARLY_ALL: Final = 0.99
_BINS: Final = 40
_STEPS: Final = 16
"""Straight pieces of a curve."""
_NEXT_ON_RING: Final = 1.5
"""Factor on the mean gap between peers, up to which a link is drawn as one of the ring."""


def draw(report: Report, path: Path) -> None:
    """Draw a report into a file, in the format that its name ends with."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(13, 7.6), dpi=130, facecolor="white", layout=layout)
    panes = figure.subplot_mosaic([["curve", "overlay"], ["bottom", "overlay"]], width_ratios=[1, 1.12])
    spec = panes["bottom"].get_subplotspec()
    assert spec is not None  # noqa: S101  # made by subplot_mosaic
    panes["bottom"].remove()
    lower = spec.subgridspec(1, 2, wspace=0.08)
    _draw_curve(panes["curve"], report.picture)
    _draw_hops(figure.add_subplot(lower[0]), report.picture)
    _draw_latencies(figure.add_subplot(lower[1]), report)
    draw_overlay(panes["overlay"], report.picture, report.islands)
    figure.suptitle(_headline(report), x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")
    figure.savefig(path)


def _headline(report: Report) -> str:
    found = len(report.violations)
    verdict = "no violations" if not found else "1 violation" if found == 1 else f"{found} violations"
    return (
        f"{report.scenario}   {report.peers:,} peers, {report.max_peers} links each, seed {report.seed}   "
        f"{report.reliability:.2%} delivered, {verdict}"
    )


def _style(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(across, fontsize=9, color=SOFT)
    axes.tick_params(colors=SOFT, labelsize=8.5, length=0)
    axes.grid(axis="y", color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, fontsize=10, transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_curve(axes: Axes, picture: Picture) -> None:
    _style(axes, "Delivery over time", "since the broadcast")
    if not picture.curve:
        _nothing(axes, "nothing was delivered")
        return
    times = [0.0, *(time for time, _ in picture.curve)]
    shares = [0.0, *(share for _, share in picture.curve)]
    axes.fill_between(times, shares, color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(times, shares, color=BLUE, linewidth=2)
    last = times[-1]
    shown = min(last, 1.6 * next(time for time, share in zip(times, shares, strict=True) if share >= _NEARLY_ALL))
    if shown < last:  # a few stragglers should not press the rest against the axis
        axes.annotate(
            f"100% after {_seconds(last)}",
            (shown, 1.0),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=SOFT,
        )
    for share in (0.5, _NEARLY_ALL):
        at = next(time for time, part in zip(times, shares, strict=True) if part >= share)
        axes.plot([at], [share], "o", color=BLUE, markersize=5)
        late = at > shown * 0.7
        axes.annotate(
            f"{share:.0%} after {_seconds(at)}",
            (shown if late else at, share),
            xytext=(0, -26) if late else (9, -13),
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=9,
            color=INK,
        )
    axes.set_xlim(0, shown * 1.02 or 1)
    axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))


def _draw_hops(axes: Axes, picture: Picture) -> None:
    _style(axes, "Hops", "links crossed by a delivery")
    if not picture.hops:
        _nothing(axes, "none")
        return
    whole = sum(picture.hops.values())
    mean = sum(hops * count for hops, count in picture.hops.items()) / whole
    axes.bar(list(picture.hops), [count / whole for count in picture.hops.values()], width=0.8, color=BLUE)
    axes.axvline(mean, color=ORANGE, linewidth=1.5)
    _name_line(axes, mean, f"mean {mean:.1f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_latencies(axes: Axes, report: Report) -> None:
    _style(axes, "Latencies", "since the broadcast")
    latencies, slow = report.picture.latencies, report.latency_s["p99"]
    if not latencies:
        _nothing(axes, "none")
        return
    body = [latency for latency in latencies if latency <= slow * 1.3]
    weights = [1 / len(latencies)] * len(body)
    axes.hist(body, bins=_BINS, weights=weights, color=BLUE, edgecolor="white", linewidth=0.4)
    median = report.latency_s["p50"]
    axes.axvline(median, color=ORANGE, linewidth=1.5)
    _name_line(axes, median, f"median {_seconds(median)}")
    beyond = len(latencies) - len(body)
    if beyond >= len(latencies) / 1000:
        axes.text(
            0.98, 0.84, f"{beyond / len(latencies):.1%} later still", ha="right", fontsize=8.5, color=SOFT,
            transform=axes.transAxes,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _name_line(axes: Axes, at: float, text: str) -> None:
    """Write beside a vertical line what it stands for, on its roomier side, above the bars."""
    low, high = axes.get_xlim()
    on_right = at - low < (high - low) / 2
    axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
    axes.annotate(
        text,
        (at, 0.94),
        xycoords=("data", "axes fraction"),
        xytext=(5 if on_right else -5, 0),
        textcoords="offset points",
        ha="left" if on_right else "right",
        fontsize=9,
        color=INK,
    )


def draw_overlay(axes: Axes, picture: Picture, islands: int) -> None:
    """Draw the peers on the ring of ids, and their links."""
    places = {number: place(turn) for number, turn in picture.positions.items()}
    edges = [(a, b) for a, b in picture.edges if a in places and b in places]
    near_enough = _NEXT_ON_RING / max(1, len(places))
    ranks = {number: rank for rank, number in enumerate(sorted(places, key=picture.positions.__getitem__))}
    ring: list[tuple[Point, Point]] = []
    long_links: list[list[Point]] = []
    for a, b in edges:
        apart = abs(ranks[a] - ranks[b])
        beside = min(apart, len(ranks) - apart) / max(1, len(ranks)) <= near_enough
        if beside:
            ring.append((places[a], places[b]))
        else:
            long_links.append(_bow(places[a], places[b]))
    faint = min(0.75, max(0.04, 60 / math.sqrt(1 + 40 * len(long_links))))
    axes.add_collection(LineCollection(long_links, colors=BLUE, linewidths=0.8, alpha=faint))
    axes.add_collection(LineCollection(ring, colors=ORANGE, linewidths=1.8, capstyle="round"))
    if places:
        across, up = zip(*places.values(), strict=True)
        size = min(46.0, max(1.0, 4200 / len(places)))
        axes.scatter(across, up, s=size, color=INK, zorder=3, linewidths=0)
    axes.set_title("The overlay, on the ring of ids", loc="left", fontsize=11, color=INK)
    axes.set_aspect("equal", anchor="N")
    axes.set_xlim(-1.06, 1.06)
    axes.set_ylim(-1.06, 1.06)
    axes.axis("off")
    legend = f"{len(ring):,} links along the ring, {len(long_links):,} across it, {islands:,} "
    legend += "island" if islands == 1 else "islands"
    axes.text(0.5, -0.015, legend, ha="center", va="top", fontsize=9, color=SOFT, transform=axes.transAxes)


def place(turn: float) -> Point:
    """A point on the circle, clockwise from the top."""
    return math.sin(2 * math.pi * turn), math.cos(2 * math.pi * turn)


def _bow(a: Point, b: Point) -> list[Point]:
    """A curve from one point of the circle to another, bent inwards, so that short ones show too."""
    middle_x, middle_y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    height = max(0.1, 0.95 - 1.3 * math.dist(a, b) / 2) / max(1e-6, math.hypot(middle_x, middle_y))
    middle = (middle_x * height, middle_y * height)

    def at(share: float) -> Point:
        near, bent, far = (1 - share) ** 2, 2 * share * (1 - share), share**2
        return near * a[0] + bent * middle[0] + far * b[0], near * a[1] + bent * middle[1] + far * b[1]

    return [at(step / _STEPS) for step in range(_STEPS + 1)]


def _seconds(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.3g} s"
