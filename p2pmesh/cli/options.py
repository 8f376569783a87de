"""Options in one style: every one can come from the environment, and `--help` says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound="Callable[..., Any]")

DEFAULT_URL = "ws://localhost:8080"
"""Where `p2pmesh serve` listens by default."""


def option(*declarations: str, **attributes: Any) -> Callable[[F], F]:
    """A `click.option` whose help shows its default and its environment variable."""
    return click.option(*declarations, **{"show_envvar": True, "show_default": True} | attributes)


json_option: Final = option(
    "--json",
    "as_json",
    is_flag=True,
    envvar="P2PMESH_JSON",
    help="Print one JSON object on stdout, for programs to read.",
)
