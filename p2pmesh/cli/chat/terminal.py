"""The user's end of the chat: lines in without blocking Trio, lines out without tearing what is being typed."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import click
import trio

from p2pmesh.cli.line_reader import LineReader

try:
    import readline  # once imported, `input` lets the user edit the line
except ImportError:  # not on Windows
    readline = None  # type: ignore[assignment]

PROMPT = "> "


class Terminal(Protocol):
    """Where the user is."""

    interactive: bool
    """Whether this is a terminal rather than a pipe."""

    def show(self, line: str, *, dim: bool = False) -> None:
        """Print a line."""

    async def read(self) -> str | None:
        """The next line that comes in, None once there are no more."""


class Pipe:
    """Plain lines, for when standard input or output is no terminal."""

    interactive = False

    def __init__(self, descriptor: int = 0) -> None:
        self._reader = LineReader(descriptor)

    def show(self, line: str, *, dim: bool = False) -> None:
        click.echo(line, color=False)

    async def read(self) -> str | None:
        line = await self._reader.read()
        return None if line is None else line.decode(errors="replace").removesuffix("\r")


class Screen:
    """A terminal. What arrives while the user types is printed above that line."""

    interactive = True

    def __init__(self) -> None:
        self._reading = False

    def show(self, line: str, *, dim: bool = False) -> None:
        text = click.style(line, dim=True) if dim else line
        click.echo(f"\r\x1b[K{text}\n{self._typed()}", nl=False)

    async def read(self) -> str | None:
        self._reading = True
        try:
            return await trio.to_thread.run_sync(input, PROMPT, abandon_on_cancel=True)
        except EOFError:
            return None
        finally:
            self._reading = False

    def _typed(self) -> str:
        """The line that is being typed."""
        if not self._reading:
            return ""
        return f"{PROMPT}{readline.get_line_buffer()}" if readline is not None else PROMPT


@asynccontextmanager
async def open_terminal() -> AsyncGenerator[Terminal]:
    """The terminal of this process, restored when the block ends."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield Pipe()
        return
    with _settings_restored():
        try:
            yield Screen()
        finally:
            click.echo()


@contextmanager
def _settings_restored() -> Generator[None]:
    """Restore the mode: a thread abandoned in `input` leaves readline's, which shows no typing."""
    try:
        import termios
    except ImportError:  # not on Windows, which has no such modes
        yield
        return
    before = termios.tcgetattr(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
