"""`Future`: one of concurrent.futures that can be awaited and knows its task.

Rule: whoever takes a future out of the table of its job (`Tasks.take`, one `dict.pop`) decides it, and nobody else
does. So no lock is needed between the reader, which resolves, and a caller, who cancels; and the condition variable,
which costs more than all the rest of a future, is only made when somebody waits.
"""

import concurrent.futures
import contextlib
import math
import sys
import threading
from collections.abc import Generator
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from typing import Any, Protocol, TypeVar

from p2pgrid.client.notebook import shell
from p2pgrid.core import inside
from p2pgrid.core.errors import TaskCancelled
from p2pgrid.core.ids import job_name
from p2pgrid.core.ref import Ref

T = TypeVar("T")

_NUMBERS = frozenset({int, float, bool, complex, type(None)})
_TEXTS = frozenset({str, bytes})
_DONE = (FINISHED, CANCELLED_AND_NOTIFIED)


births = threading.Lock()
"""Held while a future gets its guard, and while one without a guard is decided; with one its state changes under it.

So whoever waits sees a future finish once, before or after: `as_completed` counts the finished under the guards of all.
"""


class Tasks(Protocol):
    """What a future needs of its job."""

    id: bytes

    def take(self, index: int) -> bool:
        """Give the caller, and nobody after it, the right to decide that future."""

    def cancel_task(self, index: int) -> None:
        """Tell the grid that the task is cancelled."""

    def durable(self, index: int) -> "concurrent.futures.Future[None]":
        """Return a future of the moment in which the grid holds the task."""

    def awaited(self) -> None:
        """Send what is held back: somebody waits."""

    def may_wait(self) -> None:
        """Raise RuntimeError in the one thread where waiting would never end."""

    def ask(self, verb: str, index: int) -> dict[str, Any]:
        """Return the node's answer about one task."""

    def put(self, value: object) -> Ref:
        """Give a value to the grid, as `Grid.put` does."""


class Future(concurrent.futures.Future[Any]):
    """The result of one task, now or later.

    A future of `concurrent.futures` in everything; besides, it can be awaited under asyncio and trio. Cancelling the
    awaiting task cancels this one.
    """

    # Defaults on the class, so that making one of 60,000 a second costs two assignments.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _guard: threading.Condition | None = None
    _place: tuple[str, int] | None = None

    def __init__(self, tasks: Tasks, index: int) -> None:
        """Belong to task `index` of a job. Made by the grid only."""
        self._tasks = tasks
        self._index = index

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """What waiters wait on, with their lists; `concurrent.futures` takes it before it looks at anything else."""
        guard = self._guard
        if guard is None:
            with births:
                guard = self._guard
                if guard is None:
                    self._waiters: list[Any] = [] if inside.host is None else self._in_task()
                    self._done_callbacks: list[Any] = []
                    guard = self._guard = threading.Condition()
            if self._state is PENDING:
                self._tasks.awaited()
        return guard

    # ---- deciding: only after `Tasks.take` ---------------------------------------------------------------------------

    def decide(self, result: Any, exception: BaseException | None, place: tuple[str, int] | None) -> None:
        """Become done; `place` is the node that ran it, and the attempt."""
        self._place = place
        if isinstance(exception, TaskCancelled):
            self._exception = exception
            self._settle(CANCELLED_AND_NOTIFIED)
            return
        self._result = result
        self._exception = exception
        self._settle(FINISHED)

    def set_cancelled(self) -> None:
        """Become cancelled."""
        self._settle(CANCELLED_AND_NOTIFIED)

    def _settle(self, state: str) -> None:
        with births:
            if self._guard is None:
                self._state = state
                return
        self.announce(state)

    def announce(self, state: str) -> None:
        """Set the state of a future that somebody waits for, wake them and call who asked to be called."""
        guard = self._guard
        assert guard is not None
        with guard:
            self._state = state
            for waiter in self._waiters:
                if self._state is CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None:
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            guard.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]

    # ---- as in concurrent.futures ------------------------------------------------------------------------------------

    def cancel(self) -> bool:
        """Cancel the task, running or not: True unless it is done. Its process is killed, the state is set at once."""
        if self._state in _DONE:
            return self._state is CANCELLED_AND_NOTIFIED
        if not self._tasks.take(self._index):
            # The reader is deciding it in this very moment.
            concurrent.futures.wait([self])
            return self._state is CANCELLED_AND_NOTIFIED
        self.set_cancelled()
        self._tasks.cancel_task(self._index)
        return True

    def cancelled(self) -> bool:
        """Say whether it was cancelled."""
        return self._state is CANCELLED_AND_NOTIFIED

    def done(self) -> bool:
        """Say whether it has a result or an error, or was cancelled."""
        return self._state in _DONE

    def running(self) -> bool:
        """Say whether the task runs now; this asks the node, as `state` does."""
        return self._state is PENDING and self.state == "running"

    def result(self, timeout: float | None = None) -> Any:
        """Return what the task returned, or raise what it raised.

        Raises:
            TimeoutError: it is not done after `timeout` seconds.
            TaskCancelled: it was cancelled.
        """
        if self._state is not FINISHED:
            self._wait(timeout)
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                # The traceback would hold this frame, and with it the future and its result.
                self = None  # type: ignore[assignment]  # noqa: PLW0642
        return self._result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None. Raises as `result` if it is not done or was cancelled."""
        if self._state is not FINISHED:
            self._wait(timeout)
        return self._exception

    def _wait(self, timeout: float | None) -> None:
        if self._state is PENDING:
            self._tasks.may_wait()
        guard = self._condition
        try:
            if inside.host is not None:
                self._wait_in_task(guard, timeout)
            else:
                self._block(guard, timeout)
        except KeyboardInterrupt:
            if shell() is not None:  # the cell is over, and the program goes on: nobody else would cancel it
                self.cancel()
            raise
        if self._state is CANCELLED_AND_NOTIFIED:
            raise self._exception or TaskCancelled(f"task {self.id} was cancelled")

    def _block(self, guard: threading.Condition, timeout: float | None) -> None:
        with guard:
            if not guard.wait_for(self.done, timeout):
                raise TimeoutError

    def _wait_in_task(self, guard: threading.Condition, timeout: float | None) -> None:
        from p2pgrid.client.waiting import waiting

        with waiting([(*self.task, self._index + 1)], self.done, timeout) as left_s:
            self._block(guard, left_s)

    def _in_task(self) -> list[Any]:
        from p2pgrid.client.waiting import Waiters

        return Waiters(lambda: self.task)

    def set_running_or_notify_cancel(self) -> bool:
        """Not for us: the grid alone decides."""
        raise NotImplementedError

    def set_result(self, result: Any) -> None:
        """Not for us: the grid alone decides."""
        raise NotImplementedError

    def set_exception(self, exception: BaseException | None) -> None:
        """Not for us: the grid alone decides."""
        raise NotImplementedError

    def __reduce__(self) -> Any:
        """Refuse to be pickled by others than the Grid, which replaces it among the arguments of a task."""
        msg = "a Future cannot be pickled: pass it to a Grid as an argument, or its .id, which Grid.future takes"
        raise TypeError(msg)

    # ---- as an argument ----------------------------------------------------------------------------------------------

    @property
    def task(self) -> tuple[bytes, int]:
        """The job and the index, as they travel."""
        return self._tasks.id, self._index

    def known(self, most: int) -> tuple[Any, ...]:
        """Return `(value,)` if the task has returned a number or a text of at most `most` bytes, else `()`."""
        value = self._result
        if self._state is not FINISHED or self._exception is not None:
            return ()
        kind = type(value)
        if kind in _NUMBERS or (kind in _TEXTS and len(value) <= most):
            return (value,)
        return ()

    def sent(self) -> None:
        """Make sure that the grid knows the task."""
        self._tasks.awaited()

    def __repr__(self) -> str:
        """Show id and state, without asking anyone."""
        if self._state is PENDING:
            state = "pending"
        elif self._state is CANCELLED_AND_NOTIFIED:
            state = "cancelled"
        else:
            state = "done" if self._exception is None else f"failed with {type(self._exception).__name__}"
        return f"<Future {self.id} {state}>"

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait for the result under asyncio or trio."""
        return wait_async(self).__await__()

    # ---- what the grid adds ------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The task's name everywhere: `calm-river-42/17`."""
        return f"{job_name(self._tasks.id)}/{self._index}"

    @property
    def index(self) -> int:
        """The place of the task in its job."""
        return self._index

    @property
    def ref(self) -> Ref:
        """The Ref of its value, once there is one: with keep="ref" the result itself, else of the value, put here."""
        value = self.result()
        return value if isinstance(value, Ref) else self._tasks.put(value)

    @property
    def durable(self) -> "concurrent.futures.Future[None]":
        """A future that is done once the grid holds the task: the program may die, the task will not."""
        return self._tasks.durable(self._index)

    @property
    def state(self) -> str:
        """`waiting queued running done failed cancelled`; asks the node while it is not done."""
        if self._state is CANCELLED_AND_NOTIFIED:
            return "cancelled"
        if self._state is FINISHED:
            return "done" if self._exception is None else "failed"
        return str(self._ask("show")["task"]["state"])

    @property
    def node(self) -> str | None:
        """The name of the node that ran it, or runs it now."""
        if self._place is not None:
            return self._place[0]
        return self._ask("show")["task"]["node"] or None

    @property
    def attempts(self) -> int:
        """How often it was started."""
        if self._place is not None:
            return self._place[1]
        return int(self._ask("show")["task"]["attempts"])

    def logs(self) -> str:
        """Return the last 64 KiB of what the task printed."""
        return b"".join(text for index, text in self._ask("logs")["logs"] if index == self._index).decode(
            errors="replace"
        )

    def explain(self) -> str:
        """Return why it is in its state, in words."""
        return "\n".join(self._ask("explain")["lines"])

    def _ask(self, verb: str) -> dict[str, Any]:
        self._tasks.awaited()
        return self._tasks.ask(verb, self._index)


async def wait_async(future: "concurrent.futures.Future[T]") -> T:
    """Return the result of a future under the event loop that runs now; whoever is cancelled meanwhile cancels it."""
    try:
        await until_done(future)
    finally:
        if not future.done():
            future.cancel()
    # Not `asyncio.wrap_future`: under it a task that somebody else cancelled looks as if the waiter were cancelled.
    return future.result()


async def until_done(future: "concurrent.futures.Future[Any]", timeout_s: float | None = None) -> None:
    """Return once a future is done; others of the event loop run meanwhile. Whatever happens here leaves it alone.

    Raises:
        TimeoutError: it is not done after `timeout_s`.
        RuntimeError: neither asyncio nor trio runs in this thread.
    """
    if inside.host is not None:
        from p2pgrid.client.waiting import waiting

        tasks = [(*future.task, future.index + 1)] if isinstance(future, Future) else []
        with waiting(tasks, future.done, timeout_s, blocks=False):
            await _until_done(future, timeout_s)
    else:
        await _until_done(future, timeout_s)


async def _until_done(future: "concurrent.futures.Future[Any]", timeout_s: float | None) -> None:
    trio = sys.modules.get("trio")
    if trio is not None and _runs(trio):
        await _in_trio(future, timeout_s, trio)
        return
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        msg = "no event loop runs in this thread: use .result()"
        raise RuntimeError(msg)
    await _in_asyncio(future, timeout_s, asyncio)


def _runs(trio: Any) -> bool:
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


async def _in_trio(future: "concurrent.futures.Future[Any]", timeout_s: float | None, trio: Any) -> None:
    token = trio.lowlevel.current_trio_token()
    done = trio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # trio ended first, and the waiter with it
            token.run_sync_soon(done.set)

    future.add_done_callback(wake)
    with trio.move_on_after(math.inf if timeout_s is None else max(timeout_s, 0.0)) as scope:
        await done.wait()
    if scope.cancelled_caught:
        raise TimeoutError


async def _in_asyncio(future: "concurrent.futures.Future[Any]", timeout_s: float | None, asyncio: Any) -> None:
    loop = asyncio.get_running_loop()
    if future.done():
        return
    done = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed first, and the waiter went with it
            loop.call_soon_threadsafe(done.set)

    future.add_done_callback(wake)
    async with asyncio.timeout(timeout_s):
        await done.wait()
