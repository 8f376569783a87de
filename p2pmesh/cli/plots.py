"""Pictures that commands draw.

What `--plot` takes is checked before anything runs; a picture that can't be written ends in one plain line.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

PLOTS: Final = (".png", ".svg", ".pdf")
"""Formats, by the endings of files' names."""
PLOT: Final = click.Path(dir_okay=False, path_type=Path)


def check_plot(path: Path) -> None:
    """Check before a long run that a picture can be drawn.

    Raises:
      click.UsageError: if it can't.
    """
    if path.suffix.lower() not in PLOTS:
        raise click.UsageError(f"--plot draws {', '.join(PLOTS)}, not {path.suffix or 'a file without an ending'}")
    if not path.parent.is_dir():
        raise click.UsageError(f"--plot can't write {path}: there is no directory {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install 'p2pmesh[plot]', in a checkout '.[plot]'")


@contextmanager
def drawing(path: Path) -> Iterator[None]:
    """A block that writes a picture to a file.

    Raises:
      click.ClickException: if the file can't be written.
    """
    try:
        yield
    except OSError as error:
        raise click.ClickException(f"can't write {path}: {error.strerror or error}") from error
