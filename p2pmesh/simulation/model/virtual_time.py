"""Virtual time, and the same order of tasks in each run with the same seed."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar, TypeVarTuple

import trio
from trio._core import _run as _trio_run
from trio.testing import MockClock

from p2pmesh.identity import SignatureMemo

COLLECT_AFTER: Final = 100_000
"""New objects between two runs of the cycle collector: Python's own 700 suits small programs."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def simulate(main: Callable[[*Ts], Awaitable[T]], *args: *Ts, seed: int = 0) -> T:
    """Run an async function in virtual time: whenever all tasks wait, the clock jumps to what comes next.

    Like `trio.run`, with the clock at 0 and the order of tasks a function of the seed. It is an ordinary call, so it
    works in any test, also in one of Hypothesis. Nothing in the function may wait for the outside world: files, sockets
    and threads take no virtual time.

    Args:
      main: the function.
      args: its positional arguments.
      seed: of the order in which tasks run that could run at once. Give `simulated_meshes` the same one.

    Returns:
      What the function returned.
    """
    with deterministic_scheduling(seed), SignatureMemo(), _patient_collector():
        return trio.run(main, *args, clock=MockClock(autojump_threshold=0))


@contextmanager
def _patient_collector() -> Iterator[None]:
    """Let the cycle collector run less often: it walks all peers each time, which took a third of large runs."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def deterministic_scheduling(seed: int) -> Iterator[None]:
    """Let Trio shuffle tasks by the seed, in every `trio.run` of the block.

    Trio has this switch for Hypothesis, and no other door to it. Should a later Trio have none of it, then runs still
    keep virtual time but differ in the order of tasks.
    """
    switch, shuffler = "_ALLOW_DETERMINISTIC_SCHEDULING", getattr(_trio_run, "_r", None)
    if shuffler is None or not hasattr(_trio_run, switch):  # pragma: no cover  # a Trio to come
        yield
        return
    before, state = getattr(_trio_run, switch), shuffler.getstate()
    setattr(_trio_run, switch, True)
    shuffler.seed(seed)
    try:
        yield
    finally:
        setattr(_trio_run, switch, before)
        shuffler.setstate(state)
