"""Who a peer is: an Ed25519 key pair, and the id that follows from it.

The id is the first 160 bits of SHA-256 of the public key, so the holder of the key owns the id and can prove it, and
nobody can choose an id at will. An *unverified* identity carries an id that no key backs: for tests, and to stand for
peers of the original project, whose ids are random.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections import OrderedDict
from contextvars import ContextVar, Token
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import field, frozen
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from p2pmesh.checks import file_path
from p2pmesh.errors import ConfigError, IdentityError
from p2pmesh.keyspace import ID_BITS, PeerId, parse_peer_id

PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64
_MAX_FILE = 64 * 1024
"""Far more than a PEM file has."""


@lru_cache(maxsize=1024)
def peer_id_of(public_key: bytes) -> PeerId:
    """The id that belongs to a raw 32-byte Ed25519 public key."""
    return PeerId(hashlib.sha256(public_key).digest()[: ID_BITS // 8].hex())


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is `public_key`'s over `data`; False, never an error, for malformed ones."""
    if len(public_key) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    memo = _memo.get()
    if memo is None:
        return _verify(public_key, signature, data)
    return memo.verify(public_key, signature, data)


def _verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Verify by libsodium: in half the time of OpenSSL, for each broadcast, and it refuses weak keys."""
    try:
        crypto_sign_open(signature + data, public_key)
    except BadSignatureError:
        return False
    return True


class SignatureMemo:
    """Within its `with` block each signature is verified once, and those made there are known to be right.

    For simulations, where thousands of peers of one process check the same broadcast. Whether a signature is right is a
    function of key, signature and data, all three of which are compared, so nothing that is false passes for right.
    """

    def __init__(self, limit: int = 65_536) -> None:
        """Remember at most `limit` outcomes, the latest."""
        self._limit = limit
        self._outcomes: OrderedDict[tuple[bytes, bytes, bytes], bool] = OrderedDict()
        self._tokens: list[Token[SignatureMemo | None]] = []

    def __len__(self) -> int:
        return len(self._outcomes)

    def __enter__(self) -> Self:
        self._tokens.append(_memo.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _memo.reset(self._tokens.pop())

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        """What `verify` says, from memory where it was asked before."""
        outcome = self._outcomes.get((public_key, signature, data))
        if outcome is None:
            outcome = _verify(public_key, signature, data)
            self.note(public_key, signature, data, outcome=outcome)
        return outcome

    def note(self, public_key: bytes, signature: bytes, data: bytes, *, outcome: bool) -> None:
        """Remember an outcome; the oldest goes if there are too many."""
        if len(self._outcomes) >= self._limit:
            self._outcomes.popitem(last=False)
        self._outcomes[public_key, signature, data] = outcome

    def sign(self, identity: Identity, data: bytes) -> bytes:
        """The signature of an identity, which is right."""
        signature = identity.true_signature(data)
        self.note(identity.public_key, signature, data, outcome=True)
        return signature


_memo: ContextVar[SignatureMemo | None] = ContextVar("p2pmesh signature memo", default=None)


@frozen(repr=False)
class Identity:
    """A key pair and its peer id. Make one with `generate`, `load_or_create`, `from_seed` or `unverified`."""

    peer_id: PeerId
    public_key: bytes
    verified: bool
    _key: Ed25519PrivateKey = field(eq=False)

    @classmethod
    def generate(cls) -> Self:
        """A new identity that lives as long as the process does."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The identity of a 32-byte seed: the same one each time, for tests and simulations."""
        if not isinstance(seed, bytes):  # never shown
            raise ConfigError(f"an identity's seed is bytes, not a {type(seed).__name__}")
        if len(seed) != PUBLIC_KEY_SIZE:
            raise IdentityError(f"an identity's seed has {PUBLIC_KEY_SIZE} bytes, not {len(seed)}")
        return cls._of(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def unverified(cls, peer_id: str) -> Self:
        """An identity with an id of the caller's choice, which other peers can't verify.

        Peers link to it only when their `LinkConfig.allow_unverified` is set.

        Raises:
          InvalidPeerId: if the id is not 40 lower-case hexadecimal digits.
        """
        identity = cls.generate()
        return cls(parse_peer_id(peer_id), identity.public_key, False, identity._key)

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str]) -> Self:
        """The identity kept in a PEM file (PKCS #8, unencrypted, mode 0600), made first if there is no such file.

        Blocks for as long as the disk does.

        Raises:
          IdentityError: if the file can't be read or written, holds no Ed25519 key, or others may read it.
          ConfigError: if that is no path.
        """
        path = file_path("an identity file", path)
        try:
            return cls._load(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise IdentityError(f"can't read the identity file {path!s:.200}: {error.strerror}") from error
        try:
            try:
                return cls._create(path)
            except FileExistsError:  # another process was faster
                return cls._load(path)
        except OSError as error:
            raise IdentityError(f"can't write the identity file {path!s:.200}: {error.strerror}") from error

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature (RFC 8032) over `data`. Callers prefix `data` with what it is for."""
        memo = _memo.get()
        return self.true_signature(data) if memo is None else memo.sign(self, data)

    def true_signature(self, data: bytes) -> bytes:
        """What `sign` gives outside of simulations."""
        return self._key.sign(data)

    def box_key(self) -> X25519PrivateKey:
        """The X25519 key that messages to this identity are sealed for. Derived, so a restart does not change it."""
        derived = HKDF(SHA256(), 32, salt=None, info=b"p2pmesh box v1").derive(self._key.private_bytes_raw())
        return X25519PrivateKey.from_private_bytes(derived)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id!r}, verified={self.verified})"  # never the key

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> Self:
        public = key.public_key().public_bytes_raw()
        return cls(peer_id_of(public), public, True, key)

    @classmethod
    def _load(cls, path: Path) -> Self:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise IdentityError(f"the identity file {path} can be read by others (mode {mode:o}): chmod 600 {path}")
            pem = file.read(_MAX_FILE)
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError(
                f"{path} is no identity file: expected an unencrypted Ed25519 key in PEM form"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise IdentityError(f"{path} holds a key of another kind: expected Ed25519")
        return cls._of(key)

    @classmethod
    def _create(cls, path: Path) -> Self:
        identity = cls.generate()
        pem = identity._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # Written beside and linked into place: nobody ever sees half a key, and an existing file is never replaced.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".identity.")  # with mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
        return identity
