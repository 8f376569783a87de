"""Proofs in offers, answers and joins: what is true passes, and whatever was changed on the way does not."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.identity import Identity
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.signaling.handshake import (
    sign_answer,
    sign_join,
    sign_offer,
    verify_answer,
    verify_join,
    verify_offer,
)
from p2pmesh.wire.messages import PROTOCOL_VERSION, RING, Description, Fingerprint, IceCandidate, Offer, Signal
from p2pmesh.wire.sdp import fingerprints_of, read_sdp, write_sdp
from p2pmesh.wire.signaling import Join
from tests.harness.virtual_time import NETWORK

ALICE, BOB, EVE = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
NOBODY = Identity.unverified("ab" * 20)


def fingerprint(n: int) -> str:
    return ":".join([f"{n:02X}"] * 32)


def description(kind: str, *prints: int) -> Description:
    return Description(
        ufrag="ufrag",
        pwd="0123456789abcdefghijAB",
        fingerprints=tuple(Fingerprint(value=bytes([n]) * 32) for n in prints),
        role="actpass" if kind == "offer" else "active",
        candidates=(IceCandidate(address=bytes([192, 0, 2, 1]), port=9),),
    )


OFFER = description("offer", 1)
ANSWER = description("answer", 2)


def signed_offer(identity: Identity, to: Identity, **said) -> Signal:
    return sign_offer(identity, to.peer_id, Offer(description=OFFER, **said), network=NETWORK)


def test_an_offer_is_verified_as_its_signers():
    signed = signed_offer(ALICE, BOB, links=2, purpose=RING)
    assert read_sdp(signed.sdp) == OFFER
    assert signed.p2pmesh is not None
    assert (signed.p2pmesh.links, signed.p2pmesh.purpose) == (2, RING)
    remote, read = verify_offer(signed, ALICE.peer_id, BOB.peer_id, network=NETWORK)
    assert remote == RemotePeer(ALICE.peer_id, verified=True, version=PROTOCOL_VERSION, public_key=ALICE.public_key)
    assert read == OFFER


def test_an_answer_is_verified_with_the_offer_it_answers():
    answer = sign_answer(BOB, ALICE.peer_id, ANSWER, OFFER, network=NETWORK)
    remote, read = verify_answer(answer, OFFER, BOB.peer_id, ALICE.peer_id, network=NETWORK)
    assert remote.verified
    assert read == ANSWER


def test_a_signal_without_a_proof_comes_from_the_original():
    expected = RemotePeer(ALICE.peer_id, verified=False, version=0)
    offer, answer = (Signal(type=kind, sdp=write_sdp(facts)) for kind, facts in (("offer", OFFER), ("answer", ANSWER)))
    assert verify_offer(offer, ALICE.peer_id, BOB.peer_id, network=NETWORK) == (expected, OFFER)
    assert verify_answer(answer, OFFER, ALICE.peer_id, BOB.peer_id, network=NETWORK) == (expected, ANSWER)


def test_a_key_that_is_not_of_the_id_is_ours_but_unverified():
    remote, _ = verify_offer(signed_offer(NOBODY, BOB), NOBODY.peer_id, BOB.peer_id, network=NETWORK)
    assert (remote.verified, remote.version) == (False, PROTOCOL_VERSION)


def swap(signal: Signal, n: int) -> Signal:
    return msgspec.structs.replace(signal, sdp=write_sdp(description(signal.type, n)))


def add(signal: Signal, line: str) -> Signal:
    return msgspec.structs.replace(signal, sdp=f"{line}\r\n{signal.sdp}")


SIGNED = signed_offer(ALICE, BOB, links=0)
assert SIGNED.p2pmesh is not None
assert SIGNED.sdp is not None
OTHER_LINE = f"a=fingerprint:sha-256 {fingerprint(9)}"


@pytest.mark.parametrize(
    ("signal", "sender", "receiver"),
    [
        pytest.param(swap(SIGNED, 9), ALICE, BOB, id="another fingerprint"),
        pytest.param(add(SIGNED, OTHER_LINE), ALICE, BOB, id="one fingerprint more"),
        pytest.param(add(SIGNED, f"s=x\x0b{OTHER_LINE}"), ALICE, BOB, id="a hidden fingerprint"),
        pytest.param(add(SIGNED, f" {OTHER_LINE}"), ALICE, BOB, id="an indented fingerprint"),
        pytest.param(add(SIGNED, "a=fingerprint:sha-256 zz"), ALICE, BOB, id="a malformed fingerprint"),
        pytest.param(SIGNED, EVE, BOB, id="another sender"),
        pytest.param(SIGNED, ALICE, EVE, id="another receiver"),
        pytest.param(msgspec.structs.replace(SIGNED, type="answer"), ALICE, BOB, id="another kind"),
        pytest.param(
            msgspec.structs.replace(SIGNED, sdp=SIGNED.sdp.replace("actpass", "active")), ALICE, BOB, id="another role"
        ),
        pytest.param(msgspec.structs.replace(SIGNED, sdp=None), ALICE, BOB, id="no description"),
        pytest.param(msgspec.structs.replace(SIGNED, sdp="v=0\r\n"), ALICE, BOB, id="no fingerprint"),
        *(
            pytest.param(
                msgspec.structs.replace(SIGNED, p2pmesh=msgspec.structs.replace(SIGNED.p2pmesh, **change)),
                ALICE,
                BOB,
                id=f"another {next(iter(change))}",
            )
            for change in (
                {"version": 2},
                {"links": 7},
                {"purpose": "pinned"},
                {"key": EVE.public_key},
                {"signature": bytes(64)},
            )
        ),
    ],
)
def test_a_changed_offer_is_refused(signal, sender, receiver):
    with pytest.raises(RemoteProtocolError):
        verify_offer(signal, sender.peer_id, receiver.peer_id, network=NETWORK)


def test_an_answer_is_no_answer_to_another_offer_nor_to_somebody_else():
    answer = sign_answer(BOB, ALICE.peer_id, ANSWER, OFFER, network=NETWORK)
    with pytest.raises(RemoteProtocolError):
        verify_answer(answer, description("offer", 7), BOB.peer_id, ALICE.peer_id, network=NETWORK)
    with pytest.raises(RemoteProtocolError):
        verify_answer(answer, OFFER, BOB.peer_id, EVE.peer_id, network=NETWORK)
    with pytest.raises(RemoteProtocolError):
        verify_answer(msgspec.structs.replace(answer, type="offer"), OFFER, BOB.peer_id, ALICE.peer_id, network=NETWORK)
    with pytest.raises(RemoteProtocolError):
        verify_offer(msgspec.structs.replace(answer, type="offer"), BOB.peer_id, ALICE.peer_id, network=NETWORK)


@given(st.text(max_size=300), st.integers(min_value=0, max_value=500))
def test_no_description_raises_anything_but_a_protocol_error(text, at):
    sdp = SIGNED.sdp or ""
    sdp = f"{sdp[:at]}{text}{sdp[at:]}"
    try:
        remote, read = verify_offer(
            msgspec.structs.replace(SIGNED, sdp=sdp), ALICE.peer_id, BOB.peer_id, network=NETWORK
        )
    except RemoteProtocolError:
        return
    assert remote.verified
    assert fingerprints_of(read) == fingerprints_of(OFFER)


def test_a_join_is_signed_over_room_id_and_time():
    join = sign_join(ALICE, "demo", 1_700_000_000_123, token="secret")
    assert (join.peer_id, join.room, join.token, join.version) == (ALICE.peer_id, "demo", "secret", PROTOCOL_VERSION)
    assert verify_join(join)
    for change in (
        {"room": "other"},
        {"timestamp": 1_700_000_000_124},
        {"peer_id": BOB.peer_id},
        {"public_key": BOB.public_key},
        {"signature": bytes(64)},
        {"public_key": None},
        {"timestamp": None},
        {"signature": None},
    ):
        assert not verify_join(msgspec.structs.replace(join, **change))


def test_an_absent_room_is_the_room_without_a_name():
    join = sign_join(ALICE, "", 1)
    assert verify_join(msgspec.structs.replace(join, room=None))


def test_an_unverified_identity_joins_unsigned():
    join = sign_join(NOBODY, "demo", 1)
    assert join.public_key is None
    assert join.signature is None
    assert not verify_join(join)
    assert not verify_join(Join(peer_id=NOBODY.peer_id))
