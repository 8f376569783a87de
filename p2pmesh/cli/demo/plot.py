"""Draws the overlay of a demo: its peers on the ring of ids, by their numbers, and their links."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from p2pmesh.cli.demo.report import Stage
from p2pmesh.cli.simulate.plot import INK, draw_overlay, place
from p2pmesh.keyspace import RING_SIZE
from p2pmesh.simulation.report import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMES: Final = 60
"""Peers whose numbers find room round the ring."""
CLOSE: Final = 0.012
"""Share of the ring within which the numbers of two peers would overlap."""


def draw(stage: Stage, path: Path) -> None:
    """Draw the links that the peers had, into a file in the format that its name ends with."""
    numbers = {peer.peer_id: peer.number for peer in stage.peers if peer.peer_id is not None}
    picture = Picture(
        positions={number: int(peer, 16) / RING_SIZE for peer, number in numbers.items()},
        edges=[(numbers[a], numbers[b]) for a, b in stage.links],
    )
    figure = Figure(figsize=(7, 7.4), dpi=130, facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1))
    axes = figure.add_subplot()
    draw_overlay(axes, picture, len(stage.islands()))
    if len(numbers) <= MOST_NAMES:
        _write_numbers(axes, picture)
    figure.savefig(path)


def _write_numbers(axes: Axes, picture: Picture) -> None:
    """Write the peers' numbers round the ring; of two that are close together, one stands further out."""
    before, is_out = -1.0, False
    for number, turn in sorted(picture.positions.items(), key=itemgetter(1)):
        is_out = not is_out and turn - before < CLOSE
        before = turn
        across, up = place(turn)
        away = 1.14 if is_out else 1.07
        axes.text(away * across, away * up, str(number), ha="center", va="center", fontsize=9, color=INK)
    axes.set_xlim(-1.18, 1.18)
    axes.set_ylim(-1.18, 1.18)
