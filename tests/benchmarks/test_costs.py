"""`benchmarks/costs.py`: its figures are there, and exact in virtual time."""

import subprocess
import sys
from pathlib import Path

from benchmarks.costs_traffic import traffic

HERE = Path(__file__).resolve().parent.parent.parent


def test_a_mesh_is_charged_for_its_joins_its_rest_and_its_values():
    figures = traffic(4, 3, seed=1)
    assert figures["join_bytes"] > figures["rest_bytes_per_s"] > 0
    assert figures["stored_bytes_per_s"] > 0
    assert 0 <= figures["rest_dht_share"] <= 1
    assert figures["broadcast_100"] > 100
    assert sum(figures["join_kinds"].values()) >= figures["join_bytes"] - 1
    assert traffic(4, 3, seed=1) == figures


def test_a_section_that_is_not_there_is_named_with_those_that_are():
    command = [sys.executable, "benchmarks/costs.py", "traffik"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "traffik: there are traffic, start, idle" in done.stderr
