"""`async def` tasks in the worker child: up to 100 of a segment at once, on one event loop that stays.

The shared page has room for one index: it names the task that runs longest, which is the one a time limit means. What
a task prints and what `pg.current()` says are exact, by a context variable. Imported only when the first such function
comes: asyncio costs 40 ms.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic, process_time
from typing import Any

from p2pgrid.core import current
from p2pgrid.node import worker_results as results
from p2pgrid.node.page import INDEX, MANY, START
from p2pgrid.node.worker_tasks import Work

IN_FLIGHT_MAX = 100

Call = Callable[[int], Awaitable[Any]]
"""Starts the task at this place of the segment."""


_loop = asyncio.new_event_loop()
"""Never set as the thread's current one, so a plain task's `asyncio.run` works as anywhere. It stays: what a function
keeps between its tasks (a session, a lock) is bound to its loop."""


def run(work: Work, lo: int, hi: int, call: Call) -> int:
    """Run tasks [lo, hi); return the first that was not started."""
    segment = _Segment(work, lo, hi, call)
    work.page.words[MANY] = 1
    try:
        _loop.run_until_complete(segment.run())
    finally:
        work.page.words[MANY] = 0
    return segment.next


class _Segment:
    def __init__(self, work: Work, lo: int, hi: int, call: Call) -> None:
        self._work = work
        self._lo = lo
        self._hi = hi
        self._call = call
        self._since: dict[int, float] = {}  # tasks in flight, oldest first
        self._accounted = process_time()
        self.next = lo

    async def run(self) -> None:
        """Run everything, then end what the tasks left behind on the loop."""
        starts = self._starts()
        lanes = [asyncio.ensure_future(self._lane(starts)) for _ in range(min(IN_FLIGHT_MAX, self._hi - self._lo))]
        await asyncio.gather(*lanes)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()

    def _starts(self) -> Iterator[int]:
        while self.next < self._hi and not self._work.recalled():
            self.next += 1
            yield self.next - 1

    async def _lane(self, starts: Iterator[int]) -> None:
        for index in starts:
            self._started(index)
            task = asyncio.get_running_loop().create_task(self._one(index), context=contextvars.copy_context())
            self._ended(index, await task)

    async def _one(self, index: int) -> bytes | results.Placed | BaseException:
        current.task_index.set(index)
        try:
            return self._work.report.encoded(await self._call(index - self._lo))
        except BaseException as error:  # noqa: BLE001 - the task's outcome; asyncio would let SystemExit stop the loop
            return error

    def _started(self, index: int) -> None:
        self._since[index] = monotonic()
        self._show_oldest()

    def _ended(self, index: int, outcome: bytes | results.Placed | BaseException) -> None:
        work, now = self._work, monotonic()
        if isinstance(outcome, BaseException):
            work.report.failed(index, results.failure(outcome, skip_frames=1))
        else:
            work.report.returned(index, outcome)
        work.tidy(index, shared=len(self._since) > 1)
        # What waits costs nothing: by its processor time a grain holds as many of them as can be in flight together.
        used = process_time()
        work.report.busy_s += used - self._accounted
        self._accounted = used
        work.report.send_if_due(now)
        del self._since[index]
        self._show_oldest()

    def _show_oldest(self) -> None:
        oldest = next(iter(self._since), None)
        if oldest is not None:
            self._work.page.floats[START] = self._since[oldest]
            self._work.page.words[INDEX] = oldest
