"""One Yamux stream whose flow control holds for both sides.

What libp2p gets wrong here: a writer polls for credit and gives up after 5 s (S5), an overrun of the receive window is
logged and buffered (S8), a read that is cancelled can lose the bytes it took (S10), streams are not counted (S11), and
a stream that was cut off reads as one that was finished (S13: ours, LIBP2P.md only warns of it).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    YamuxStream,
)

NOISE_TEXT_MAX = 65519
FRAME_BYTES = NOISE_TEXT_MAX - HEADER_SIZE
"""One Yamux frame fills exactly one Noise message."""
FRAMES_AT_ONCE = 4
"""In one write: what costs the most of a frame is the write, not its bytes. Others wait for 0.25 MB at most."""
WINDOW_BYTES_MAX = 4 << 20
"""Per stream; also the most a peer can make us buffer on it. It starts at 256 KiB and grows as we read."""
STREAMS_MAX = 128
"""Per connection, both directions: one control stream each way, the rest carries objects. The library has no limit."""


class Broken(trio.TooSlowError):
    """The connection cannot go on. `Yamux.handle_incoming` closes it on `TooSlowError` alone."""


class FlowControlBroken(Broken):
    """The peer took more than it was given."""


def frame(kind: int, flags: int, stream_id: int, value: int) -> bytes:
    """Return the header of a frame; `value` is the length of its data, or what that kind of frame carries instead."""
    return struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, value)


def _watched(name: str, on_set: Callable[[Any, Any], None]) -> Any:
    """An attribute that the library assigns in many places, and that we want to hear of."""
    slot = f"_watched_{name}"

    def get(self: Any) -> Any:
        return self.__dict__[slot]

    def put(self: Any, value: Any) -> None:
        on_set(self, value)
        self.__dict__[slot] = value

    return property(get, put)


def _wake_writer(stream: GridStream, _value: object) -> None:
    stream.room.set()


def _refuse_overrun(_stream: GridStream, window: int) -> None:
    if window < 0:
        raise FlowControlBroken("the peer exceeded its receive window")


def _note_finish(stream: GridStream, closed: object) -> None:
    # The library also assigns this when the connection ends, which it has noted before.
    if closed and not stream.conn.event_shutting_down.is_set():
        stream.finished = True


class GridStream(YamuxStream):
    """A stream as the library has it, and with limits.

    Attributes:
        room: set when a writer may look again whether it can go on.
        finished: whether the peer has said that nothing more will come.
        abandoned: whether nobody here will read what still comes.
    """

    conn: Any
    _pending_recv_release: int
    send_window = _watched("send_window", _wake_writer)
    send_closed = _watched("send_closed", _wake_writer)
    closed = _watched("closed", _wake_writer)
    recv_closed = _watched("recv_closed", _note_finish)
    recv_window = _watched("recv_window", _refuse_overrun)

    def __init__(self, stream_id: int, conn: Any, is_initiator: bool) -> None:  # noqa: FBT001 - the library calls it
        # S11: raised in the reader, so it ends the connection: who opens that many without closing has a fault.
        if not is_initiator and len(conn.streams) >= STREAMS_MAX:
            raise FlowControlBroken("the peer opened too many streams")
        self.room = trio.Event()
        self.finished = False
        self.abandoned = False
        super().__init__(stream_id, conn, is_initiator)

    async def write(self, data: bytes) -> None:
        """S5: wait for the reader as long as it takes, on an event.

        One call is never mixed with another on the same stream. A cancelled call may have sent a part: reset then.
        """
        view = memoryview(data)
        async with self.rw_lock.write_lock():
            while view:
                await self._wait_for_room()
                frames: list[bytes] = []
                while len(frames) < FRAMES_AT_ONCE and (size := min(self.send_window, FRAME_BYTES, len(view))) > 0:
                    self.send_window -= size
                    frames.append(frame(TYPE_DATA, 0, self.stream_id, size) + view[:size])
                    view = view[size:]
                await self.conn.write_frames(*frames)

    async def _wait_for_room(self) -> None:
        while True:
            if self.send_closed:
                raise MuxedStreamError("stream is closed for writing")
            if self.closed:
                raise MuxedStreamReset("stream was reset")
            if self.send_window > 0:
                return
            self.room = trio.Event()
            await self.room.wait()

    async def read(self, n: int | None = -1) -> bytes:
        """S13: the end is the end only if the peer said so; whatever else stops a stream is a reset."""
        buffer = self.conn.stream_buffers.get(self.stream_id)
        if n is not None and n > 0 and buffer and self._flows():
            await trio.lowlevel.checkpoint_if_cancelled()
            data = bytes(memoryview(buffer)[:n])  # the view is gone by the next line: else it could not shrink
            del buffer[:n]
            await self._auto_tune_and_send_window_update(bytes_read=len(data))
            return data
        try:
            return bytes(await super().read(n))
        except MuxedStreamEOF as error:
            if self.stream_id not in self.conn.streams:  # who was waiting while it was forgotten has remembered it
                self.conn.stream_events.pop(self.stream_id, None)
            if self.finished and not self.reset_received:
                raise
            raise MuxedStreamReset("stream was cut off") from error

    def _flows(self) -> bool:
        """Say whether there is nothing to be done with this stream but to read it."""
        return not (self.closed or self.recv_closed or self.reset_received or self.conn.event_shutting_down.is_set())

    async def reset(self) -> None:
        """S11: forget the stream at once, also when the peer has closed it before."""
        self.abandoned = True
        await super().reset()
        await self.conn._finalize_stream(self, fully_closed=True)

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        """Give credit by half windows; the original sends a frame for almost every read."""
        self._pending_recv_release += bytes_read
        if self._pending_recv_release < self.target_recv_window // 2:
            return
        growth = min(self.target_recv_window, WINDOW_BYTES_MAX - self.target_recv_window)
        credit = self._pending_recv_release + growth
        self._pending_recv_release = 0
        self.target_recv_window += growth
        self.recv_window += credit
        # S10: queued, not awaited: a read that is cancelled at this point would lose the bytes it already took.
        self.conn.queue_frame(frame(TYPE_WINDOW_UPDATE, 0, self.stream_id, credit))
