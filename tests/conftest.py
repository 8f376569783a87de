"""Hypothesis profiles: `dev` for every day, `ci` the same each time, `soak` for a night. Chosen by HYPOTHESIS_PROFILE."""

import os

from hypothesis import HealthCheck, settings

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)

settings.register_profile("dev", max_examples=50, deadline=None, print_blob=True, suppress_health_check=SLOW)
settings.register_profile(
    "ci", max_examples=50, derandomize=True, deadline=None, print_blob=True, suppress_health_check=SLOW
)
settings.register_profile(
    "soak", max_examples=2000, stateful_step_count=80, deadline=None, print_blob=True, suppress_health_check=SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
