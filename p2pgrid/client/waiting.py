"""Waiting inside a task: its slot is lent meanwhile, or tasks that it waits for run below it, in its own process.

Outside of tasks nothing of this is used: whoever waits looks at `core.inside.host` first.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from p2pgrid.core import inside
from p2pgrid.core.inside import Task

Tasks = tuple[bytes, int, int]
"""Tasks [lo, hi) of a job."""


class Tells(Protocol):
    """The session of a task, which tells the node that it waits."""

    def waits(self, task: Task, tasks: Sequence[Tasks], *, may_run: bool) -> int:
        """Tell that a task waits for others; return the number of this wait."""

    def waited(self, number: int) -> None:
        """Tell that it waits no longer."""


_told: list[Tells] = []


def tell(session: Tells) -> None:
    """Have this session tell of every wait in this process."""
    _told[:] = [session]


@contextmanager
def waiting(
    tasks: Sequence[Tasks], ready: Callable[[], bool], timeout_s: float | None, *, blocks: bool = True
) -> Iterator[float | None]:
    """Wait for tasks, if this is a task: in the block what is left of it, which may be nothing any more.

    Args:
        tasks: what is waited for.
        ready: whether it has come.
        timeout_s: for how long at most; in the block it is what is left of that.
        blocks: whether nothing else may run in this thread meanwhile; else it is only told, and the block waits.
    """
    host = inside.host
    task = None if host is None else host.task()
    if host is None or task is None or not _told or ready():
        yield timeout_s
        return
    session = _told[0]
    may_run = blocks and host.may_run()
    number = session.waits(task, tasks, may_run=may_run)
    try:
        if may_run:
            began_s = monotonic()
            host.run_until(ready, timeout_s)
            timeout_s = None if timeout_s is None else max(0.0, timeout_s - (monotonic() - began_s))
        yield timeout_s
    finally:
        session.waited(number)


class Waiters(list[Any]):
    """Who waits for a future by way of `concurrent.futures.wait` or `as_completed`; these wait as a task does."""

    def __init__(self, task: Callable[[], tuple[bytes, int]]) -> None:
        """Be those of the future of a task."""
        super().__init__()
        self._task = task

    def append(self, waiter: Any) -> None:
        """Add one of those that wait on an event."""
        event = getattr(waiter, "event", None)
        if type(event) is threading.Event:
            event = waiter.event = _Event(event)
        if isinstance(event, _Event):
            event.tasks.append(self._task())
        super().append(waiter)


class _Event:
    """An event for which a task waits."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event
        self.tasks: list[tuple[bytes, int]] = []
        self.set, self.clear, self.is_set = event.set, event.clear, event.is_set

    def wait(self, timeout: float | None = None) -> bool:
        tasks = [(job, index, index + 1) for job, index in self.tasks]
        with waiting(tasks, self._event.is_set, timeout) as left_s:
            return self._event.wait(left_s)
