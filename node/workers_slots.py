"""Slots of the pool: what each does, when it has no child, and what to do with children that do not start."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

import trio

from p2pgrid.node.page import START, Progress
from p2pgrid.node.workers_child import Child


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker does now, for `status` and the verb `workers`."""

    worker: int
    pid: int | None
    state: str  # "starting" | "idle" | "busy" | "stopped" | "resting"
    job: bytes | None
    index: int | None
    running_s: float
    progress: Progress | None


class Failures:
    """Deaths of the children of one slot before they were ready."""

    def __init__(self, most: int, within_s: float, pause_s: float, pause_max_s: float) -> None:
        """After `most` deaths in a row within that time the next try waits; twice as long each time."""
        self._failed = deque[float](maxlen=most)
        self._within_s = within_s
        self._first_s = self._pause_s = pause_s
        self._pause_max_s = pause_max_s

    def succeeded(self) -> None:
        """A child was ready: all is forgotten."""
        self._failed.clear()
        self._pause_s = self._first_s

    def failed(self, now: float) -> float:
        """A child was not; return how long to wait before the next."""
        self._failed.append(now)
        if len(self._failed) < (self._failed.maxlen or 0) or now - self._failed[0] >= self._within_s + self._pause_s:
            return 0.0
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, self._pause_max_s)
        return pause_s


class Rest:
    """Slots that have no child while there is nothing to do (preset `edge`); the machine takes them for ready."""

    def __init__(self, after_s: float | None) -> None:
        """`after_s`: how long no slot has had work when all go to rest; None: none ever does."""
        self.after_s = after_s
        self._alarms: dict[int, trio.Event] = {}
        self._worked_at_s = 0.0

    def begin(self, worker: int) -> None:
        """A slot rests from now on."""
        self._alarms[worker] = trio.Event()

    def end(self, worker: int) -> bool:
        """There is work for a slot; return whether it rested."""
        alarm = self._alarms.pop(worker, None)
        if alarm is not None:
            self._worked_at_s = monotonic()
            alarm.set()
        return alarm is not None

    def end_all(self) -> None:
        """The pool stops."""
        for worker in list(self._alarms):
            self.end(worker)

    def __contains__(self, worker: object) -> bool:
        return worker in self._alarms

    async def over(self, worker: int) -> None:
        """Wait as long as a slot rests."""
        if worker in self._alarms:
            await self._alarms[worker].wait()

    def due(self, children: Iterable[Child], now: float) -> bool:
        """Whether all may go to rest: none has worked for so long. Asked now and then."""
        if self.after_s is None or any(child.runs or not child.ready for child in children):
            self._worked_at_s = now
            return False
        return now - self._worked_at_s > self.after_s


def state_of(worker: int, child: Child | None, *, rests: bool) -> WorkerState:
    """Say what a slot does now."""
    if child is None:
        return WorkerState(worker, None, "resting" if rests else "stopped", None, None, 0.0, None)
    running = child.running()
    if running is None:
        return WorkerState(worker, child.process.pid, "idle" if child.ready else "starting", None, None, 0.0, None)
    run, index = running
    running_s = max(0.0, monotonic() - child.page.floats[START])
    return WorkerState(worker, child.process.pid, "busy", child.runs[run].job, index, running_s, child.page.progress())
