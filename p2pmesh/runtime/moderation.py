"""What the application does not want: peers that it has blocked, and broadcasts that its validators turn down.

The cores share the block list as one view: the overlay dials no blocked peer and turns its offers down, routing refuses
its messages, the DHT its records. Broadcasts are judged here, by their origin first, and then by the validator of their
topic, in the broadcast core's task.
"""

from __future__ import annotations

import logging
import os
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import asdict, define

from p2pmesh.errors import BlockListError
from p2pmesh.events import MessageReceived
from p2pmesh.keyspace import ID_DIGITS, PeerId, is_peer_id, short
from p2pmesh.moderation import Validator, Verdict

logger: Final = logging.getLogger(__name__)

_LINE = 2 * ID_DIGITS
"""Bytes of a line with an id: blanks and all, if the file was made by hand."""


class BlockList:
    """Ids of peers, in the order in which they were blocked; kept in a file if there is a path.

    The file has an id in each line. It is written beside and renamed into place, so nobody ever sees half a list.
    """

    def __init__(self, limit: int, path: Path | None = None) -> None:
        """Make it, with what the file has. A file that is not there is an empty list.

        Raises:
          BlockListError: if the file can't be read, or has anything but ids in it, or more than `limit`.
        """
        self._limit = limit
        self._path = path
        self._peers: dict[PeerId, None] = {} if path is None else dict.fromkeys(_read(path, limit))

    def __contains__(self, peer: object) -> bool:
        return peer in self._peers

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, peer: PeerId) -> None:
        """Block a peer. Blocking it twice does nothing.

        Raises:
          BlockListError: if the list is full, and if it can't be written: then the peer is blocked all the same.
        """
        if peer in self._peers:
            return
        if len(self._peers) >= self._limit:
            raise BlockListError(
                f"{self._limit} peers are blocked, as many as MeshConfig.max_blocked allows: unblock some, or raise it"
            )
        self._peers[peer] = None
        self._write()

    def remove(self, peer: PeerId) -> None:
        """Unblock a peer. One that is not blocked is left as it is.

        Raises:
          BlockListError: if the list can't be written: the peer is unblocked until it is read again.
        """
        if peer in self._peers:
            del self._peers[peer]
            self._write()

    def _write(self) -> None:
        path = self._path
        if path is None:
            return
        try:
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".blocked.")  # with mode 0600
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.writelines(f"{peer}\n" for peer in self._peers)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:  # interrupted, too: no half of a list stays beside the old one
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise BlockListError(f"can't write the block list {path!s:.200}: {error.strerror}") from error


def _read(path: Path, limit: int) -> list[PeerId]:
    try:
        with path.open("rb") as file:
            content = file.read(limit * _LINE + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BlockListError(f"can't read the block list {path!s:.200}: {error.strerror}") from error
    peers: dict[PeerId, None] = {}
    if len(content) <= limit * _LINE:
        for number, line in enumerate(content.decode("ascii", "replace").split("\n"), 1):
            if not line.strip():
                continue
            if not is_peer_id(line.strip()):
                raise BlockListError(
                    f"the block list {path!s:.200} is damaged: line {number} is not the id of a peer; mend or remove it"
                )
            peers[PeerId(line.strip())] = None
    if len(content) > limit * _LINE or len(peers) > limit:
        raise BlockListError(f"the block list {path!s:.200} is longer than MeshConfig.max_blocked allows: {limit} ids")
    return list(peers)


@define
class _Counts:
    blocked: int = 0
    """Broadcasts of peers that are blocked."""
    accepted: int = 0
    ignored: int = 0
    rejected: int = 0
    failed: int = 0
    """Times that a validator raised, or gave no verdict: these broadcasts are ignored, and counted there too."""


class Moderator:
    """Judges broadcasts for one peer."""

    def __init__(self, me: PeerId, blocked: BlockList) -> None:
        self.blocked: BlockList = blocked
        self._me = me
        self._validators: dict[str, Validator] = {}
        self._told: set[str] = set()
        self._counts = _Counts()

    def validate(self, topic: str, validator: Validator | None) -> None:
        """Let this validator judge a topic from now on, in the place of any other; None for no validator."""
        self._told.discard(topic)
        if validator is None:
            self._validators.pop(topic, None)
        else:
            self._validators[topic] = validator

    def judge(self, message: MessageReceived) -> Verdict:
        """What becomes of a broadcast of another peer."""
        if message.origin in self.blocked:
            self._counts.blocked += 1
            return Verdict.IGNORE
        validator = self._validators.get(message.topic)
        if validator is None:
            return Verdict.ACCEPT
        verdict = self._ask(validator, message)
        match verdict:
            case Verdict.ACCEPT:
                self._counts.accepted += 1
            case Verdict.IGNORE:
                self._counts.ignored += 1
            case Verdict.REJECT:
                self._counts.rejected += 1
        return verdict

    def snapshot(self) -> dict[str, Any]:
        """How much is blocked and validated, and what came of it."""
        return {
            "peers_blocked": len(self.blocked),
            "topics_validated": len(self._validators),
            **asdict(self._counts),
        }

    def _ask(self, validator: Validator, message: MessageReceived) -> Verdict:
        try:
            verdict = validator(message)
        except Exception as error:  # ruff: ignore[blind-except] - the application's own: its fault must not end the mesh
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._failed(message.topic, f"{type(error).__name__} at {where.filename}:{where.lineno}")
            return Verdict.IGNORE
        if not isinstance(verdict, Verdict):
            self._failed(message.topic, f"a {type(verdict).__name__} where a Verdict is due")
            return Verdict.IGNORE
        return verdict

    def _failed(self, topic: str, what: str) -> None:
        """Count it, and say so once for each validator: never what the error says, since that may quote the payload."""
        self._counts.failed += 1
        if topic not in self._told:
            self._told.add(topic)
            me = short(self._me)
            logger.warning("%s: the validator of %r failed, its broadcasts are ignored: %s", me, topic, what)
