"""Options in one style: every one can come from the environment, and `--help` says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound="Callable[..., Any]")

DEFAULT_URL = "ws://localhost:8080"
"""Where `p2pmesh serve` listens by default."""


class Number(click.FloatRange):
    """A number in a range; NaN is none, and nothing is endless."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


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
