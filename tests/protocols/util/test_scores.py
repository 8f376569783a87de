"""What speaks for and against peers, and how it is forgotten."""

import pytest

from p2pmesh.keyspace import PeerId
from p2pmesh.protocols.util.scores import HALF_LIFE, MOST_FIRST, Scores

A, B = PeerId("a" * 40), PeerId("b" * 40)


def score_of(scores, peer):
    return scores.snapshot([peer])[peer]["score"]


def test_a_stranger_owes_nothing():
    assert Scores().debt(A, 0.0) == 0
    assert score_of(Scores(), A) == 0


@pytest.mark.parametrize(
    ("evidence", "times", "bad"),
    [("first", 1, False), ("failures", 1, False), ("failures", 2, True), ("faults", 1, True)],
)
def test_what_speaks_against_a_peer_makes_debt(evidence, times, bad):
    scores = Scores()
    for _ in range(times):
        scores.add(A, evidence, 0.0)
    assert (scores.debt(A, 0.0) > 0) == bad
    assert scores.debt(B, 0.0) == 0


def test_one_failure_is_outweighed_by_good_work_and_a_habit_is_not():
    scores = Scores()
    for _ in range(1000):
        scores.add(A, "first", 0.0)
    assert score_of(scores, A) == MOST_FIRST
    scores.add(A, "failures", 0.0)
    assert score_of(scores, A) == MOST_FIRST
    for _ in range(4):
        scores.add(A, "failures", 0.0)
    assert scores.debt(A, 0.0) > 0


def test_two_faults_outweigh_any_credit():
    scores = Scores()
    for _ in range(1000):
        scores.add(A, "first", 0.0)
    scores.add(A, "faults", 0.0)
    assert scores.debt(A, 0.0) == 0
    scores.add(A, "faults", 0.0)
    assert scores.debt(A, 0.0) > 0


def test_all_is_forgotten_with_time():
    scores = Scores()
    for _ in range(4):
        scores.add(A, "faults", 0.0)
    before = scores.debt(A, 0.0)
    assert scores.debt(A, HALF_LIFE) == pytest.approx(before / 4)
    assert scores.debt(A, 20 * HALF_LIFE) < 1e-6


def test_more_peers_than_there_is_room_for_forget_the_oldest():
    scores = Scores(2)
    scores.add(A, "faults", 0.0)
    for n in range(2):
        scores.add(PeerId(f"{n:040x}"), "failures", 0.0)
    assert scores.debt(A, 0.0) == 0
