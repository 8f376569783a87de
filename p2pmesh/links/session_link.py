"""A link over any carrier: `LinkSession` decides, a `Carrier` brings packets over, `SessionLink` is the link.

Whatever makes a carrier (WebRTC, the simulator) makes the `SessionLink` once the carrier is open and the peer is known,
and then tells it what happens by three synchronous callbacks: `packet_received`, `drained`, `carrier_closed`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import trio

from p2pmesh.config import LinkConfig
from p2pmesh.errors import RemoteProtocolError
from p2pmesh.links.link import Link, LinkError, LinkProtocolError, LinkStats, LinkTimedOut, local_health
from p2pmesh.protocols.inputs import RemotePeer
from p2pmesh.protocols.link.legacy_session import LegacySession
from p2pmesh.protocols.link.session import LinkSession

ALARM_SLACK = 0.1
"""Seconds that a link's alarm may ring before its deadline: moving it with each packet costs more than that it rings
for nothing now and then, which in turn costs as much as a packet."""


class Carrier(abc.ABC):
    """What carries packets to one peer, whole, in order, each once: a data channel. Open when it is given to a link.

    All of it is called on Trio's thread. It may call back the link from within any of these methods.
    """

    @abc.abstractmethod
    def send_packet(self, packet: bytes | str) -> None:
        """Take a packet: bytes as a binary message, str as a text message. Never waits.

        Raises:
          LinkError: if the carrier is gone.
        """

    @property
    @abc.abstractmethod
    def buffered(self) -> int:
        """Bytes taken that have not left yet (`bufferedAmount`). When it falls to `LinkConfig.low_water`: `drained`."""

    @property
    @abc.abstractmethod
    def max_packet(self) -> int:
        """Largest packet it carries, in bytes."""

    @abc.abstractmethod
    async def flush(self) -> None:
        """Wait until all it took has left, as far as the carrier can tell, or it is gone. Raises nothing."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close now and for certain, also when cancelled, in bounded time. May drop what has not left. Idempotent."""


class SessionLink(Link):
    """The link over a carrier.

    Its first packet goes out as it is made, so make it when the carrier is open. Keep packets that came before, and
    give them to `packet_received` in their order. The three callbacks never raise, and do nothing after the link is
    over.
    """

    def __init__(self, carrier: Carrier, peer: RemotePeer, config: LinkConfig, max_frame: int) -> None:
        self._carrier = carrier
        self._peer = peer
        self._config = config
        self._session = (
            LegacySession(config, trio.current_time(), local_health())
            if peer.version == 0
            else LinkSession(config, max_frame, carrier.max_packet, trio.current_time(), local_health())
        )
        self._sending = [False, False]
        self._receiving = False
        self._room = (trio.lowlevel.ParkingLot(), trio.lowlevel.ParkingLot())
        self._arrived = trio.lowlevel.ParkingLot()
        self._alarm: trio.CancelScope | None = None
        self._pumping = False
        self._carrier_full = False
        self._closed = False
        self._over = False
        self._error: LinkError | None = None
        self._done = trio.Event()
        self._is_silent = False
        self._on_silence: Callable[[bool], None] | None = None
        self._pump()

    @property
    def peer(self) -> RemotePeer:
        return self._peer

    @property
    def carrier(self) -> Carrier:
        """What carries its packets."""
        return self._carrier

    @property
    def max_frame(self) -> int:
        return self._session.max_frame

    @property
    def stats(self) -> LinkStats:
        session = self._session
        return LinkStats(
            bytes_sent=session.bytes_sent,
            bytes_received=session.bytes_received,
            frames_sent=session.frames_sent,
            frames_received=session.frames_received,
            packets_sent=session.packets_sent,
            packets_received=session.packets_received,
            pings_sent=session.pings_sent,
            queued_bytes=session.queued_bytes,
            buffered_bytes=self._carrier.buffered,
            unread_bytes=session.unread_bytes,
            send_credit=session.send_credit,
            round_trip=session.round_trip,
        )

    # --- the application's side ---------------------------------------------------------------------------------------

    async def send(self, value: bytes, *, urgent: bool = False) -> None:
        if self._sending[urgent]:
            raise trio.BusyResourceError("another task is sending on this link")
        self._sending[urgent] = True
        try:
            self._session.check(value)
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_sendable()
            waited = False
            while not self._session.has_room(urgent=urgent):
                await self._room[urgent].park()
                waited = True
                self._check_sendable()
            self._session.check(value)  # the peer may have said meanwhile that it takes less
            self._session.queue(value, urgent=urgent)
            self._pump()
            if not waited:  # the frame goes first, other tasks after it: half a round trip's latency is at stake
                await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._sending[urgent] = False
        if self._error is not None:
            raise self._error

    def send_nowait(self, value: bytes, *, urgent: bool = False, patient: bool = False) -> bool:
        session = self._session
        if self._sending[urgent] or self._closed or self._over or session.peer_ended:
            return False
        session.check(value)
        if not session.has_room(urgent=urgent):
            return False
        session.queue(value, urgent=urgent, patient_until=self._patience_ends() if patient else None)
        return True

    def flush(self) -> None:
        self._pump()

    def watch(self, on_silence: Callable[[bool], None], probe: Callable[[], bytes] | None = None) -> None:
        self._on_silence = on_silence
        if isinstance(self._session, LegacySession):
            self._session.probe = probe
            self._pump()

    def _patience_ends(self) -> float:
        return trio.current_time() + self._config.patience

    async def receive(self) -> bytes:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this link")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            waited = False
            while (frame := self._take()) is None:
                await self._arrived.park()
                waited = True
            if not waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return frame
        finally:
            self._receiving = False

    def receive_nowait(self) -> bytes | None:
        frame = None if self._receiving or self._closed else self._session.take()
        if frame is not None and self._session.credit_due:
            self._pump()
        return frame

    def _take(self) -> bytes | None:
        if self._closed:
            raise trio.ClosedResourceError("this link is closed")
        frame = self._session.take()
        if frame is None:
            self._check_receivable()
        elif self._session.credit_due:
            self._pump()
        return frame

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()
        try:
            while not self._done.is_set():
                with trio.CancelScope(deadline=self._session.next_deadline()) as self._alarm:
                    await self._done.wait()
                self._expire()
        finally:
            self._alarm = None

    async def aclose(self) -> None:
        self._closed = True
        self._wake_all()
        try:
            if not self._over:
                self._session.finish()
                self._pump()
            with trio.move_on_after(self._config.close_timeout):
                await self._done.wait()
                if not self._over:
                    await self._carrier.flush()
        finally:
            self._end()
            with trio.move_on_after(self._config.close_timeout, shield=True):
                await self._carrier.aclose()

    # --- the carrier's side -------------------------------------------------------------------------------------------

    def packet_received(self, packet: bytes | str) -> None:
        """A packet came: bytes for a binary message, str for a text message."""
        if self._over:
            return
        try:
            self._session.receive_packet(packet, trio.current_time())
        except RemoteProtocolError as error:
            self._fail(LinkProtocolError(str(error)))
            return
        if self._is_silent:
            self._tell_silence()
        if self._arrived:
            self._arrived.unpark_all()
        self._pump()

    def drained(self) -> None:
        """What the carrier holds has fallen to `LinkConfig.low_water`."""
        self._carrier_full = False
        self._pump()

    def carrier_closed(self, error: LinkError | None) -> None:
        """The carrier is gone: the peer closed it (None), or it failed."""
        if self._over:
            return
        if error is None and self._session.frame_begun:
            error = LinkError("the peer closed the link in the middle of a frame")
        if error is None or self._closed or self._session.peer_ended:
            self._end()
        else:
            self._fail(error)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Give the carrier what it has room for, and wake whom that concerns. To be called after each input."""
        if self._pumping or self._over:
            return
        session, carrier = self._session, self._carrier
        self._pumping = True
        try:
            now = trio.current_time()
            while not self._carrier_full:
                packet = session.next_packet(now, hold=self._alarm is not None)
                if packet is None:
                    break
                carrier.send_packet(packet)
                self._carrier_full = carrier.buffered >= self._config.high_water
        except LinkError as error:
            self._fail(error)
            return
        finally:
            self._pumping = False
        if session.finished:
            self._done.set()
        for urgent, lot in enumerate(self._room):
            if lot and (session.peer_ended or session.has_room(urgent=bool(urgent))):
                lot.unpark_all()
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Let `run` wake in time; a deadline that moved away by little is looked at when the old one comes."""
        alarm = self._alarm
        if alarm is not None:
            deadline = self._session.next_deadline()
            if not 0 <= deadline - alarm.deadline <= ALARM_SLACK:
                alarm.deadline = deadline

    def _expire(self) -> None:
        if self._over:
            return
        silent_for = self._session.expire(trio.current_time(), self._carrier.buffered)
        if silent_for is None:
            self._tell_silence()
            self._pump()
        else:
            self._fail(LinkTimedOut(silent_for))

    def _tell_silence(self) -> None:
        """Tell that the peer has fallen silent, or speaks again, where that is news."""
        silent = self._session.silent
        if silent != self._is_silent:
            self._is_silent = silent
            if self._on_silence is not None:
                self._on_silence(silent)

    def _fail(self, error: LinkError) -> None:
        if not self._over:
            self._error = error
            self._end()

    def _end(self) -> None:
        """Nothing passes any more, in either direction; what has been received can still be taken."""
        self._over = True
        self._done.set()
        self._wake_all()

    def _wake_all(self) -> None:
        self._arrived.unpark_all()
        for lot in self._room:
            lot.unpark_all()

    def _check_sendable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this link is closed")
        if self._error is not None:
            raise self._error
        if self._over or self._session.peer_ended:
            raise LinkError("the peer closed the link")

    def _check_receivable(self) -> None:
        """Nothing has arrived: will anything?"""
        if self._error is not None:
            raise self._error
        if self._over or self._session.peer_ended:
            raise trio.EndOfChannel
