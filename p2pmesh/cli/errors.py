"""How commands end when something goes wrong: one line on stderr and an exit status, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import click

from p2pmesh.cli.sanitize import printable
from p2pmesh.errors import ConfigError, InvalidPeerId, MeshError

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""
_UNREAD = (BrokenPipeError, SystemExit)
"""Raised when nobody reads our output any more; rich makes the second out of the first."""
_LONGEST = 1000


class Commands(click.Group):
    """A group of commands whose failures are told in one line. Any other exception is a bug of ours."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeshError as error:
            _fail(error)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BaseExceptionGroup as group:
            _, bugs = group.split((MeshError, KeyboardInterrupt, *_UNREAD))
            if bugs is not None:
                raise
            errors = list(leaves(group))
            if any(isinstance(error, KeyboardInterrupt) for error in errors):
                ctx.exit(INTERRUPTED)
            for unread in errors:
                if isinstance(unread, _UNREAD):
                    raise unread from None  # click knows how to end then
            _fail(*errors)


def one_line(*errors: BaseException) -> str:
    """What these errors say, each once."""
    texts = (printable(str(error), _LONGEST).strip() or type(error).__name__ for error in errors)
    return "; ".join(dict.fromkeys(texts))


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The plain exceptions in a group of groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def _fail(*errors: BaseException) -> NoReturn:
    """End with what `errors` say: bad usage is status 2, all else 1."""
    text = one_line(*errors)
    if all(isinstance(error, ConfigError | InvalidPeerId) for error in errors):
        raise click.UsageError(text, click.get_current_context(silent=True)) from None
    raise click.ClickException(text) from None
