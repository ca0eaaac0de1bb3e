"""A task that uses the grid, in the worker child: its way to the daemon, and what runs below it while it waits.

The library in the task (`p2pgrid.client.inside`) speaks with the daemon over sockets of its own, which this file has it
adopt by the *door*, a socket pair that carries nothing but descriptors. When the task waits for others that it has
started, the daemon may send some of these to be run in this very process, below it (leapfrogging: the slot is not idle,
and a chain of tasks needs no more than one). All that a task has made of the process is put aside meanwhile.

Imported by every child: standard library only.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import resource
import select
import signal
import socket
import sys
import threading
from _signal import getsignal  # type: ignore[import-not-found]  # as in `worker`
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from p2pgrid.core import current, inside
from p2pgrid.core.inside import Task
from p2pgrid.node.page import INDEX, LOOK, MANY, NONE, RUN, START, Page
from p2pgrid.node.worker_output import Output
from p2pgrid.node.worker_report import Report

BELOW_MAX = 100
"""Tasks that run below each other in one process."""
STACK_LOOK_FROM = 8
"""From so many on, it is looked whether the stack has room."""
STACK_USUAL = 8 << 20
FRAMES = 1000
"""Of Python, for each of them: as many as a task of its own process has."""
LOOK_S = 0.5


class Takes(Protocol):
    """What the worker does with what has come."""

    def take_waiting(self, at: tuple[int, int]) -> bool:
        """Do the next thing that has come from the daemon, while this task waits; return whether there was one."""

    def receive(self) -> None:
        """Read what has come from the daemon."""


class Inside:
    """The `Host` of this process."""

    def __init__(self, door: socket.socket, sock: socket.socket, page: Page, worker: Takes) -> None:
        """Hand descriptors out by `door`; what is to be done comes from `sock`."""
        self.below = 0
        """How many tasks of this process wait and have another one below them."""
        self.served: tuple[bytes, frozenset[str]] | None = None
        self.reports: list[Report] = []
        """Of the runs that have begun and not ended, innermost last."""
        self._door = door
        self._page = page
        self._worker = worker
        self._pid = os.getpid()
        self._main = threading.get_ident()
        self._wakes, self._waker = os.pipe()
        os.set_blocking(self._wakes, False)
        os.set_blocking(self._waker, False)
        self._waits = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._poll.register(self._wakes, select.POLLIN)
        inside.provide(self)

    # ---- for the library ---------------------------------------------------------------------------------------------

    def task(self) -> Task | None:
        """Return the task that asks."""
        run, index = current.entered(), current.running_index()
        if run is None or index is None or os.getpid() != self._pid:
            return None
        return Task(run.job16, index, run.attempt)

    def nested(self) -> int:
        """Return how many tasks are above the one that asks."""
        run = current.entered()
        return 0 if run is None else run.nested

    def tree(self) -> tuple[bytes, frozenset[str]] | None:
        """Return the source tree that this process serves."""
        return self.served

    def connect(self) -> socket.socket:
        """Return a new socket to the daemon. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._door, [b"\0"], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    def opens(self) -> None:
        """The task that asks uses the grid."""
        task = self.task()
        if task is not None:
            inside.open_tasks[task] = None
            self._page.words[LOOK] = 1  # a slice of fast tasks ends behind it

    def may_run(self) -> bool:
        """Whether the caller may run others below it: only where a task runs by itself, and while there is room."""
        if threading.get_ident() != self._main or self._page.words[MANY] or self._page.words[INDEX] == NONE:
            return False
        return self.below < BELOW_MAX and (self.below < STACK_LOOK_FROM or _stack_has_room())

    def run_until(self, ready: Callable[[], bool], timeout_s: float | None) -> None:
        """Run what comes to be run below this task, until it is ready."""
        words, report = self._page.words, self.reports[-1]
        at = words[RUN], words[INDEX]
        began_s = monotonic()
        until_s = None if timeout_s is None else began_s + timeout_s
        report.flush()  # what has ended before is not held up
        self._waits += 1
        try:
            while not ready():
                if self._worker.take_waiting(at):
                    continue
                left_s = LOOK_S if until_s is None else min(LOOK_S, until_s - monotonic())
                if left_s <= 0:
                    return
                for fd, _ in self._poll.poll(left_s * 1000):
                    if fd == self._wakes:
                        with contextlib.suppress(BlockingIOError):
                            os.read(fd, 4096)
                    else:
                        self._worker.receive()
        finally:
            self._waits -= 1
            report.busy_s -= monotonic() - began_s

    def wake(self) -> None:
        """Have a task that waits look whether it is ready."""
        if self._waits:
            with contextlib.suppress(BlockingIOError):  # it is full of such words already
                os.write(self._waker, b"\0")

    # ---- for the worker ----------------------------------------------------------------------------------------------

    def forked(self) -> None:
        """A task has forked: the child of the fork has no way to the daemon."""
        self._door.close()


def _stack_has_room() -> bool:
    """Say whether less than half of the stack was ever used. Where that cannot be asked, the count has to do."""
    most = resource.getrlimit(resource.RLIMIT_STACK)[0]
    most = STACK_USUAL if most in (resource.RLIM_INFINITY, 0) else most
    try:
        status = Path("/proc/self/status").read_text()
        used = int(status.partition("VmStk:")[2].split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return True
    return used < most // 2


@contextlib.contextmanager
def put_aside(page: Page, output: Output, environment: Mapping[str, str]) -> Iterator[None]:
    """Take away what the task that waits has made of this process, and bring it back as it was."""
    words, floats = page.words, page.floats
    run, index, start = words[RUN], words[INDEX], floats[START]
    entered = current.entered()
    folder = _folder()
    streams = sys.stdout, sys.stderr
    alarm = signal.setitimer(signal.ITIMER_REAL, 0)  # its time stands still: it must not hit another task
    handlers = {number: getsignal(number) for number in signal.valid_signals()}
    frames = sys.getrecursionlimit()
    had = dict(os.environ)
    output.settle(run, index)
    if had != environment:
        _become(environment)
    sys.setrecursionlimit(frames + FRAMES)
    page.clear()
    try:
        yield
    finally:
        sys.setrecursionlimit(frames)
        if dict(os.environ) != had:
            _become(had)
        for number, handler in handlers.items():
            if getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
        sys.stdout, sys.stderr = streams
        with contextlib.suppress(OSError):  # it was removed meanwhile
            os.chdir(folder)
        current.enter(entered)
        floats[START] = start
        words[RUN] = run
        words[INDEX] = index
        if alarm[0]:
            signal.setitimer(signal.ITIMER_REAL, *alarm)


def below(function: Callable[..., None], *args: Any) -> None:
    """Call a function with no context variable of the task that waits."""
    contextvars.Context().run(function, *args)


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a plain text
    except OSError:
        return os.sep


def _become(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
