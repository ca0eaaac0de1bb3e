"""One Yamux connection that survives cancelled writes, busy pipes and silent peers (S4, S6, S9).

`install` puts it into libp2p. The three names it replaces belong to the process, not to a host: libp2p's negotiation of
multiplexers builds `Yamux` by that name whatever `muxer_opt` says (stream_muxer/muxer_multistream.py:143).
"""

from __future__ import annotations

import logging
import random
from collections import deque
from typing import Any

import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.yamux import yamux

from p2pgrid.node.net.sealed import Sealed
from p2pgrid.node.net.streams import WINDOW_BYTES_MAX, Broken, FlowControlBroken, GridStream, frame
from p2pgrid.node.net.tcp import unacknowledged_bytes

KEEPALIVE_S = 9.0
"""Every connection is asked this often: with PONG_TIMEOUT_S the longest that ends one with a frozen process within 16 s
(S6). Machines that vanish are the kernel's to notice, and whom to count on is what the grid's own probes say …"""
PINGS_PER_S_MAX = 2
"""… or less often where there are many: a ping costs both sides about 0.7 ms of CPU together."""
PONG_TIMEOUT_S = 6.0
BODY_TIMEOUT_S = 30.0
"""For the rest of a frame that has begun, as in the library."""
REPLIES_MAX = 4096
"""Frames that we owe a peer which does not read."""

log = logging.getLogger(__name__)


def install() -> None:
    """Replace the library's connection and stream in this process; doing it again changes nothing."""
    yamux.YamuxStream = GridStream
    yamux.MAX_WINDOW_SIZE = WINDOW_BYTES_MAX  # S8: also the largest frame that is read before it is judged
    muxer_multistream.Yamux = GridYamux


class GridYamux(yamux.Yamux):
    open_count = 0
    """Connections of this process, which share the pings it may send."""
    _ping_id: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sealed = Sealed(self.secured_conn, self)
        self._reader: trio.lowlevel.Task | None = None
        self._replies: deque[bytes] = deque()
        self._replies_due = trio.Event()
        self._heard_s = 0.0

    async def _handle_incoming_with_ready_signal(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        self._reader = trio.lowlevel.current_task()
        self._nursery.start_soon(self._send_replies)
        await super()._handle_incoming_with_ready_signal(task_status)

    async def _read_data_body(self, length: int) -> bytes:
        """S13: a connection that breaks within a frame is broken; the library only finishes the frame's stream."""
        self._heard_s = trio.current_time()
        try:
            with trio.fail_after(BODY_TIMEOUT_S):
                return await self._sealed.read_body(length)
        except Exception as error:
            raise Broken("the connection ended within a frame") from error

    def take(self, stream_id: int, data: memoryview) -> bool:
        """Let a stream be read: what the library does with a data frame that has no flags."""
        stream, buffer = self.streams.get(stream_id), self.stream_buffers.get(stream_id)
        if stream is None or buffer is None or self.streams_lock.locked() or self.event_shutting_down.is_set():
            return False
        self._heard_s = trio.current_time()
        buffer += data
        stream.recv_window -= len(data)
        self.stream_events[stream_id].set()
        return True

    def _finalize_stream_locked(self, stream: GridStream, *, fully_closed: bool) -> None:
        """S11: forget a stream that nobody will read, and tell who is reading it.

        The library keeps one with unread data for another minute, where it counts, and lets its reader wait for ever.
        """
        if fully_closed and (stream.reset_received or stream.abandoned):
            self.stream_buffers.get(stream.stream_id, bytearray()).clear()
        if fully_closed and (reader := self.stream_events.get(stream.stream_id)) is not None:
            reader.set()
        super()._finalize_stream_locked(stream, fully_closed=fully_closed)

    # ---- writing ----------------------------------------------------------------------------------------------------

    async def _write_frame(self, data: bytes) -> None:
        """S9: the reader only queues what it has to answer. Two readers that both wait to write wait for ever."""
        if trio.lowlevel.current_task() is not self._reader:
            await self.write_frames(data)
            return
        if len(self._replies) >= REPLIES_MAX:
            raise FlowControlBroken("the peer asks and does not read the answers")
        self.queue_frame(data)

    def queue_frame(self, data: bytes) -> None:
        """Send this soon, without waiting for it."""
        self._replies.append(data)
        self._replies_due.set()

    async def write_frames(self, *frames: bytes) -> None:
        """S4: half a frame, or a Noise nonce without its message, ruins the connection for every stream on it.

        So a write to a stuck peer outlives its cancellation, until TCP_USER_TIMEOUT, the keepalive or a missed pong
        ends the connection. Nothing that must be prompt may await a write.
        """
        async with self._write_lock:
            with trio.CancelScope(shield=True):
                due = [*self._replies, *frames]  # in this order: the acknowledgement of a stream precedes its data
                self._replies.clear()
                if due:
                    await self._sealed.write(due)
        await trio.lowlevel.checkpoint()

    async def _send_replies(self) -> None:
        try:
            while True:
                await self._replies_due.wait()
                self._replies_due = trio.Event()
                await self.write_frames()
        except (IOException, RawConnError) as error:
            log.debug("reply not sent: %r", error)  # the reader meets the same end

    # ---- silence ----------------------------------------------------------------------------------------------------

    async def _measure_rtt_loop(self) -> None:
        """S6: the original pings, too, but draws no conclusion from silence."""
        GridYamux.open_count += 1
        try:
            await trio.sleep(random.uniform(0.05, 1) * KEEPALIVE_S)  # connections of one moment do not ping in step
            while await self._peer_answers():
                await self._silence(max(KEEPALIVE_S, GridYamux.open_count / PINGS_PER_S_MAX))
            log.info("peer %s is silent: closed", self.peer_id)
        finally:
            GridYamux.open_count -= 1

    async def _silence(self, seconds: float) -> None:
        """Wait until nothing has come for so long: whoever speaks need not be asked whether it is there."""
        self._heard_s = trio.current_time()
        while (left_s := self._heard_s + seconds - trio.current_time()) > 0:  # noqa: ASYNC110 - longer with every frame
            await trio.sleep(left_s)

    async def _peer_answers(self) -> bool:
        self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
        self._ping_event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_ping)
            with trio.move_on_after(PONG_TIMEOUT_S):
                await self._ping_event.wait()
            # On a slow link the question may still be queued: as long as bytes are unacknowledged, TCP decides.
            while not self._ping_event.is_set() and unacknowledged_bytes(self.secured_conn):
                with trio.move_on_after(1):
                    await self._ping_event.wait()
            if not self._ping_event.is_set():
                await self.secured_conn.close()  # frees writers stuck in the kernel; the reader then cleans up
            nursery.cancel_scope.cancel()
        return bool(self._ping_event.is_set())

    async def _send_ping(self) -> None:
        self._ping_sent_time = trio.current_time()
        try:
            await self._write_frame(frame(yamux.TYPE_PING, yamux.FLAG_SYN, 0, self._ping_id))
        except (IOException, RawConnError) as error:
            log.debug("ping not sent: %r", error)
