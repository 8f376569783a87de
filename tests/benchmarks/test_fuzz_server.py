"""The server's fuzzer finds nothing, and reaches what it is for: pages, upgrades, messages, relays, TLS."""

from benchmarks.fuzz_server import measure


def test_a_few_heads_frames_and_handshakes():
    row = measure(2000, 12_000, 120, 5)
    assert row["broken"] == []
    assert row["failures"] == 0
    assert row["left"] == 0
    reached = ("answered_101", "answered_200", "answered_400", "messages", "joins", "relayed")
    assert min(row[name] for name in reached) > 0
