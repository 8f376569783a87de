"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE, and what the garbage collector looks at.

`quick` takes a seventh of the examples, for every day; `ci` takes all of them, the same each time; `soak` is for a
night.
"""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.examples import ALL

settings.register_profile(
    "quick",
    max_examples=ALL // 7,
    derandomize=bool(os.environ.get("CI")),
    deadline=None,
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
settings.register_profile("ci", settings.get_profile("quick"), max_examples=ALL, derandomize=True)
settings.register_profile(
    "soak", settings.get_profile("quick"), max_examples=40 * ALL, stateful_step_count=80, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Thousands of collected tests stay to the end: looking through them again and again took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
