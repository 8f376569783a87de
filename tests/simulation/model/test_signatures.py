"""Signatures of simulations: cheap, and as strict as true ones."""

from __future__ import annotations

from p2pmesh.identity import SIGNATURE_SIZE, Identity, verify
from p2pmesh.simulation.model.signatures import StandInSignatures

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))


def test_stand_ins_are_right_for_their_key_and_data_alone() -> None:
    with StandInSignatures():
        signature = ALICE.sign(b"hello")
        assert len(signature) == SIGNATURE_SIZE
        assert verify(ALICE.public_key, signature, b"hello")
        assert not verify(ALICE.public_key, signature, b"hullo")
        assert not verify(BOB.public_key, signature, b"hello")
        assert not verify(ALICE.public_key, bytes(SIGNATURE_SIZE), b"hello")


def test_true_signatures_are_right_among_stand_ins_too() -> None:
    signature = ALICE.sign(b"hello")
    with StandInSignatures():
        assert verify(ALICE.public_key, signature, b"hello")
        assert not verify(BOB.public_key, signature, b"hello")


def test_stand_ins_are_worth_nothing_outside() -> None:
    with StandInSignatures():
        signature = ALICE.sign(b"hello")
    assert not verify(ALICE.public_key, signature, b"hello")
