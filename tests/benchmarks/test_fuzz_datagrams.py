"""Datagrams from anybody end no link: the nightly fuzzer, shortened."""

from __future__ import annotations

import pytest

from benchmarks.fuzz_datagrams import BATCH, GROWTH, measure

pytestmark = pytest.mark.webrtc


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_that_is_malformed_gets_past_the_guards(seed: int) -> None:
    row = await measure(10 * BATCH, seed)
    assert row["broken"] == []
    assert row["dropped"] > 5 * BATCH, "they are counted"
    assert row["grown_mib"] < GROWTH
