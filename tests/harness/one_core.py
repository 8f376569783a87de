"""One sans-IO core alone with a clock, which moves only when a test says so."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

from p2pmesh.protocols.core import Core, Emit, Notify, Reply
from p2pmesh.protocols.notices import Input

CoreT = TypeVar("CoreT", bound=Core)


class OneCore(Generic[CoreT]):
    """The core under test; `effects` are those of the last input, or of the last while that has passed."""

    def __init__(self, core: CoreT, now: float = 0.0) -> None:
        self.core = core
        self.now = now
        self.effects: list[Any] = []

    def __call__(self, event: Input) -> list[Any]:
        return self.feed(event).effects

    def feed(self, event: Input) -> Self:
        self.effects = self.core.handle(event, self.now)
        return self

    def wait(self, seconds: float) -> Self:
        return self.wait_until(self.now + seconds)

    def wait_until(self, end: float) -> Self:
        """Every deadline is kept to the instant."""
        gathered: list[Any] = []
        while self.core.next_deadline() <= end:
            self.now = max(self.now, self.core.next_deadline())
            gathered += self.core.expire(self.now)
        self.now, self.effects = end, gathered
        return self

    def got(self, kind: type) -> list[Any]:
        """The effects of one kind."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def events(self) -> list[Any]:
        return [effect.event for effect in self.got(Emit)]

    @property
    def told(self) -> list[Any]:
        """What other cores were told."""
        return [effect.input for effect in self.got(Notify)]

    @property
    def replies(self) -> dict[int, Reply]:
        return {reply.call: reply for reply in self.got(Reply)}

    def count(self, name: str) -> int:
        return int(self.core.snapshot()[name])
