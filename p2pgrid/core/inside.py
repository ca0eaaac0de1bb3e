"""What the process of a task offers to the library in it, so that a task can use the grid (`p2pgrid.client.inside`).

The two do not import each other: the worker child provides a `Host`, and the library says here whom to tell when a task
that has used the grid is over. Standard library only, and light: every worker child imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol


class Task(NamedTuple):
    """One attempt of a task that runs in this process."""

    job: bytes
    place: int
    """Its index in the job."""
    attempt: int


class Host(Protocol):
    """The worker child, as the library in it sees it."""

    def task(self) -> Task | None:
        """Return the task that asks; None between tasks, and in processes that a task has forked."""

    def nested(self) -> int:
        """Return how many tasks are above it, each started by the one before it."""

    def tree(self) -> tuple[bytes, frozenset[str]] | None:
        """Return the source tree that this process serves: its id, and the names of what is in it; None: none."""

    def connect(self) -> Any:
        """Return a new socket to the daemon. Raises OSError."""

    def may_run(self) -> bool:
        """Whether the caller may run other tasks below the one that it is, in `run_until`."""

    def run_until(self, ready: Callable[[], bool], timeout_s: float | None) -> None:
        """Run what the daemon sends to be run below this task until it is ready, or so many seconds have gone."""

    def wake(self) -> None:
        """Something has arrived: who is in `run_until` shall look whether it is ready. From any thread."""

    def opens(self) -> None:
        """The task that asks uses the grid: `leave` is called when it is over, before the next one begins."""


host: Host | None = None
"""Set in a worker child, None in any other process."""

open_tasks: dict[Task, None] = {}
"""Tasks of this process that have used the grid and are not over."""

_leave: list[Callable[[Task, bool], None]] = []


def provide(one: Host) -> None:
    """Say that this process is a worker child."""
    global host  # noqa: PLW0603 - there is one per process
    host = one


def at_end(leave: Callable[[Task, bool], None]) -> None:
    """Have this called for each of `open_tasks` when it is over, with whether it failed."""
    _leave[:] = [leave]


def over(task: Task, *, failed: bool) -> None:
    """A task is over: what it has started is waited for, or cancelled if it failed."""
    if task in open_tasks:
        for leave in _leave:
            leave(task, failed)
        open_tasks.pop(task, None)
