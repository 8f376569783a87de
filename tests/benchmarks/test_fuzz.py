"""The fuzzer refuses and decodes some of what it makes, raises nothing else, and does the same for the same seed."""

from benchmarks.fuzz import measure


def test_a_few_frames():
    row = measure(3000, 5)
    assert row["broken"] == []
    assert row["raised_otherwise"] == 0
    assert min(row["decoded"], row["refused"], row["unknown"], row["packets_refused"]) > 0
    again = measure(3000, 5)
    assert {name: row[name] for name in ("decoded", "refused", "unknown", "packets_refused")} == {
        name: again[name] for name in ("decoded", "refused", "unknown", "packets_refused")
    }
