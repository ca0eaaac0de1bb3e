"""The bulk stream of one connection: large frames, in order, in slices, and never so many bytes that control waits.

How many bytes have arrived is not asked of the kernel: whatever was written before a PING of the control stream has
arrived when its PONG does, since both travel on one connection. So one exchange says both how far bulk has got and what
control pays for it; `pacing.Window` decides from the second how much may be under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from p2pgrid.node.net.pacing import WINDOW_MIN, Window
from p2pgrid.node.net.streams import FRAME_BYTES, FRAMES_AT_ONCE

SLICE_BYTES = FRAMES_AT_ONCE * FRAME_BYTES


class Bulk:
    """What one peer is still to be sent in bulk.

    Attributes:
        queued_bytes: not yet written.
        written: bytes ever written; a PING notes it, its PONG acknowledges it.
    """

    def __init__(self, ping: Callable[[], object], unacknowledged: Callable[[], int]) -> None:
        self.window = Window()
        self.queued_bytes = 0
        self.written = 0
        self._ping = ping
        self._unacknowledged = unacknowledged
        self._queue: deque[bytes | memoryview] = deque()
        self._acknowledged = 0
        self._asked = 0  # what `written` was at the last PING
        self._measuring = False  # a PING that tells the idle round trip is on its way
        self._held = False  # the window held us back since it last changed
        self._crossed = False  # at the last PING, the kernel had got most of what was under way across
        self._news = trio.Event()
        self._empty = trio.Event()
        self._empty.set()
        self._left = trio.Event()

    @property
    def under_way(self) -> int:
        """Bytes that were written and not acknowledged."""
        return self.written - self._acknowledged

    @property
    def _part(self) -> int:
        """What a PING follows, a third of the window: while its PONG comes back, the rest keeps the link busy."""
        return max(self.window.bytes // 3, WINDOW_MIN)

    def put(self, data: bytes | memoryview) -> None:
        if not data:
            return
        self._queue.append(data)
        self.queued_bytes += len(data)
        if self._empty.is_set():
            self._empty = trio.Event()
        self._news.set()

    def acknowledged(self, written: int, round_trip_s: float, sent_at: float, *, alone: bool) -> None:
        """A PONG has come: its PING left at `sent_at`, when so much was written; `alone`: with nothing under way."""
        before, now = self.window.bytes, trio.current_time()
        self._acknowledged = max(self._acknowledged, written)
        self.window.measured(round_trip_s, sent_at, now, alone=alone, filled=self._held, crossed=self._crossed)
        self._held = self._held and self.window.bytes == before
        self._measuring = self._measuring and not alone
        self._news.set()

    async def drained(self) -> None:
        """Wait until all has been written."""
        while self.queued_bytes:
            await self._empty.wait()

    async def left(self) -> None:
        """Wait until something more has been written, or nothing will be."""
        if self._left.is_set():
            self._left = trio.Event()
        await self._left.wait()

    def stop(self) -> None:
        """Nothing more will be written: the link has ended."""
        self._left.set()

    async def write_all(self, write: Callable[[memoryview], Awaitable[Any]]) -> None:
        """Write what is queued and what will be, for ever."""
        while True:
            while not self.queued_bytes:
                await self._wait()
            size = min(self.queued_bytes, SLICE_BYTES, self._part)
            await self._room(size)
            self.written += size
            await write(self._slice(size))
            self.queued_bytes -= size
            self._left.set()
            if self.written - self._asked >= self._part or not self.queued_bytes:
                self._ask()
            if not self.queued_bytes:
                self._empty.set()

    def _slice(self, size: int) -> memoryview:
        """Take so much of the queue: the end of a frame goes with the beginning of the next."""
        parts: list[memoryview] = []
        while size:
            first = memoryview(self._queue.popleft())
            parts.append(first[:size])
            if len(first) > size:
                self._queue.appendleft(first[size:])
            size -= len(parts[-1])
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    async def _room(self, size: int) -> None:
        """Wait until so many bytes more may be under way."""
        if self.window.is_stale(trio.current_time()) and not self._measuring:
            while self.under_way:
                await self._wait()
            self._measuring = True
            self._ask()
            while self._measuring:  # what is written meanwhile would overtake the PING, which another task writes
                await self._wait()
        while self.under_way and self.under_way + size > self.window.bytes:
            self._held = True
            await self._wait()

    async def _wait(self) -> None:
        if self._asked < self.written:
            self._ask()  # nothing else would tell us that it has arrived
        self._news = trio.Event()
        await self._news.wait()

    def _ask(self) -> None:
        self._asked = self.written
        self._crossed = self._unacknowledged() < self.under_way // 4
        self._ping()
