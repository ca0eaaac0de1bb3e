"""`async def` tasks in the worker child: up to 100 of a run at once, on one event loop that stays.

The shared page has room for one index: it names the task that runs longest, which is the one a time limit means. What
a task prints and what `pg.current()` says are exact, by a context variable. Imported only when the first such function
comes: asyncio costs 40 ms.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from time import monotonic, process_time
from typing import Any

from p2pgrid.core import current, inside
from p2pgrid.core.segments import Segment
from p2pgrid.node import worker_results as results
from p2pgrid.node.page import INDEX, MANY, START
from p2pgrid.node.worker_report import INTERVAL_S
from p2pgrid.node.worker_tasks import Work

IN_FLIGHT_MAX = 100

Call = Callable[[int], Awaitable[Any]]
"""Starts the task at this place of the segment."""

Part = tuple[Segment, Call]

_loop = asyncio.new_event_loop()
"""Never set as the thread's current one, so a plain task's `asyncio.run` works as anywhere. It stays: what a function
keeps between its tasks (a session, a lock) is bound to its loop."""


def run(work: Work, segment: Segment, call: Call, more: Callable[[], Part | None]) -> tuple[int, Segment]:
    """Run the tasks of a segment and, without a pause, of those that `more` gives.

    Return the first task that was not started, and the segment it is of (or the end of the last one).
    """
    lanes = _Lanes(work, segment, call, more)
    work.page.words[MANY] = 1
    try:
        _loop.run_until_complete(lanes.run())
    finally:
        work.page.words[MANY] = 0
    return lanes.next, lanes.segment


class _Lanes:
    def __init__(self, work: Work, segment: Segment, call: Call, more: Callable[[], Part | None]) -> None:
        self._work = work
        self._call = call
        self._more = more
        self._since: dict[int, float] = {}  # tasks in flight, oldest first
        self._accounted = process_time()
        self._due: asyncio.TimerHandle | None = None
        """Sends what was too early to be sent when its task ended: the next one to end may take an hour."""
        self.segment = segment
        self.next = segment.lo

    async def run(self) -> None:
        """Run everything, then end what the tasks left behind on the loop."""
        starts = self._starts()
        lanes = [asyncio.ensure_future(self._lane(starts)) for _ in range(IN_FLIGHT_MAX)]
        await asyncio.gather(*lanes)
        if self._due is not None:
            self._due.cancel()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()

    def _starts(self) -> Iterator[tuple[int, Call, int]]:
        """Yield index, call and place of each task."""
        while not self._work.recalled():
            if self.next == self.segment.hi:
                part = self._more()
                if part is None:
                    return
                self.segment, self._call = part
                self.next = self.segment.lo
            self.next += 1
            yield self.next - 1, self._call, self.next - 1 - self.segment.lo

    async def _lane(self, starts: Iterator[tuple[int, Call, int]]) -> None:
        for index, call, place in starts:
            self._started(index)
            one = self._one(index, call, place)
            task = asyncio.get_running_loop().create_task(one, context=contextvars.copy_context())
            self._ended(index, await task)

    async def _one(self, index: int, call: Call, place: int) -> bytes | results.Placed | BaseException:
        current.task_index.set(index)
        failed = True
        try:
            value = await call(place)
            failed = False
        except BaseException as error:  # noqa: BLE001 - the task's outcome; asyncio would let SystemExit stop the loop
            value = error
        if inside.open_tasks:
            task = inside.Task(self._work.job, index, self._work.attempt)
            await _loop.run_in_executor(None, partial(inside.over, task, failed=failed))
        try:
            return value if failed else self._work.report.encoded(value)
        except BaseException as error:  # noqa: BLE001 - as above: it cannot be pickled
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
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(INTERVAL_S, self._send)
        del self._since[index]
        self._show_oldest()

    def _send(self) -> None:
        self._due = None
        self._work.report.flush()

    def _show_oldest(self) -> None:
        oldest = next(iter(self._since), None)
        if oldest is not None:
            self._work.page.floats[START] = self._since[oldest]
            self._work.page.words[INDEX] = oldest
