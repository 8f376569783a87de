"""Identities: an id follows from a key, and the file that keeps the key keeps it to its owner."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh.errors import IdentityError, InvalidPeerId
from p2pmesh.identity import PUBLIC_KEY_SIZE, SIGNATURE_SIZE, Identity, peer_id_of, verify
from p2pmesh.keyspace import is_peer_id

ALICE = Identity.from_seed(b"a" * 32)
BOB = Identity.from_seed(b"b" * 32)


@given(st.binary(min_size=32, max_size=32))
def test_the_id_is_the_first_160_bits_of_the_keys_hash(seed: bytes) -> None:
    identity = Identity.from_seed(seed)
    assert identity.peer_id == hashlib.sha256(identity.public_key).hexdigest()[:40] == peer_id_of(identity.public_key)
    assert is_peer_id(identity.peer_id)
    assert identity.verified


def test_a_seed_gives_the_same_identity_each_time_and_generate_a_new_one() -> None:
    assert Identity.from_seed(b"a" * 32) == ALICE != BOB
    assert Identity.generate() != Identity.generate()


@pytest.mark.parametrize("seed", [b"", b"a" * 31, b"a" * 33])
def test_a_seed_has_32_bytes(seed: bytes) -> None:
    with pytest.raises(IdentityError, match="32 bytes"):
        Identity.from_seed(seed)


def test_an_unverified_identity_has_the_id_of_ones_choice() -> None:
    identity = Identity.unverified("ab" * 20)
    assert identity.peer_id == "ab" * 20
    assert not identity.verified
    with pytest.raises(InvalidPeerId):
        Identity.unverified("nobody")


def test_an_identity_does_not_show_its_key() -> None:
    assert repr(ALICE) == f"Identity({ALICE.peer_id!r}, verified=True)"


# --- signatures -------------------------------------------------------------------------------------------------------


@given(st.binary())
def test_a_signature_is_its_signers_over_this_data(data: bytes) -> None:
    signature = ALICE.sign(data)
    assert len(signature) == SIGNATURE_SIZE
    assert verify(ALICE.public_key, signature, data)
    assert not verify(ALICE.public_key, signature, data + b"x")
    assert not verify(BOB.public_key, signature, data)


@given(st.integers(0, SIGNATURE_SIZE * 8 - 1))
def test_a_changed_bit_spoils_a_signature(bit: int) -> None:
    signature = bytearray(ALICE.sign(b"data"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not verify(ALICE.public_key, bytes(signature), b"data")


@given(st.binary(max_size=70), st.binary(max_size=70), st.binary())
def test_garbage_is_no_signature_and_no_error(key: bytes, signature: bytes, data: bytes) -> None:
    assert not verify(key, signature, data)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64), st.binary())
def test_garbage_of_the_right_size_is_no_error(key: bytes, signature: bytes, data: bytes) -> None:
    assert verify(key, signature, data) in {True, False}


@pytest.mark.parametrize("byte", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_degenerate_keys_sign_nothing(byte: int) -> None:
    key = bytes([byte]) * PUBLIC_KEY_SIZE
    assert not verify(key, bytes(SIGNATURE_SIZE), b"")
    assert not verify(key, key + bytes(SIGNATURE_SIZE - PUBLIC_KEY_SIZE), b"")
    assert not verify(key, ALICE.sign(b""), b"")


# --- the file ---------------------------------------------------------------------------------------------------------


def pem(key: Any, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)  # type: ignore[no-any-return]


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_missing_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Identity.load_or_create(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"], "nothing else is left"


def test_a_file_gives_the_same_identity_each_time(tmp_path: Path) -> None:
    made = Identity.load_or_create(str(tmp_path / "key"))
    assert Identity.load_or_create(tmp_path / "key") == made
    assert verify(made.public_key, Identity.load_or_create(tmp_path / "key").sign(b"x"), b"x")


def test_any_ed25519_key_in_pem_form_will_do(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(b"a" * 32)
    assert Identity.load_or_create(written(tmp_path / "key", pem(key))) == ALICE
    assert Identity.load_or_create(written(tmp_path / "strict", pem(key), 0o400)) == ALICE


@pytest.mark.skipif(os.name != "posix", reason="needs file modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o601, 0o777])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "key", pem(ed25519.Ed25519PrivateKey.generate()), mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        Identity.load_or_create(path)


@pytest.mark.parametrize(
    "key",
    [
        x25519.X25519PrivateKey.generate(),
        ed448.Ed448PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 1024),
    ],
    ids=lambda key: type(key).__name__,
)
def test_a_key_of_another_kind_is_refused(tmp_path: Path, key: object) -> None:
    with pytest.raises(IdentityError, match="expected Ed25519"):
        Identity.load_or_create(written(tmp_path / "key", pem(key)))


def public_pem() -> bytes:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\x00" * 1000,
        b"x" * 1_000_000,
        pem(ed25519.Ed25519PrivateKey.generate())[:60],
        pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
        public_pem(),
    ],
    ids=["empty", "text", "zeros", "large", "cut", "encrypted", "public"],
)
def test_garbage_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "key", content)
    with pytest.raises(IdentityError, match="no identity file"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_path_that_can_not_be_used_is_an_identity_error(tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for path in (tmp_path, tmp_path / "missing" / "key", tmp_path / ("x" * 300), tmp_path / "nowhere"):
        with pytest.raises(IdentityError, match="identity file"):
            Identity.load_or_create(path)


def test_creators_at_the_same_time_end_with_one_identity(tmp_path: Path) -> None:
    creators = 8
    for attempt in range(5):
        path, barrier = tmp_path / f"key{attempt}", Barrier(creators)

        def create(path: Path = path, barrier: Barrier = barrier) -> Identity:
            barrier.wait()
            return Identity.load_or_create(path)

        with ThreadPoolExecutor(creators) as pool:
            identities = [future.result() for future in [pool.submit(create) for _ in range(creators)]]
        assert len({identity.peer_id for identity in identities}) == 1
        assert Identity.load_or_create(path) == identities[0]
    assert len(list(tmp_path.iterdir())) == 5, "nothing else is left"
