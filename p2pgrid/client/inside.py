"""`Grid()` inside a task: the grid that runs the task.

All tasks of a process share one session, whose sockets the node adopts. What a task starts belongs to it: it is kept
where the task runs, and ends with it (`Spec.parent`). When the task returns, what it has started and not waited for is
waited for, as at the end of a program; if it fails, that is cancelled.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

from p2pgrid.client.calls import Calls
from p2pgrid.client.connection import Connection, ConnectionLost, greet
from p2pgrid.client.grid import Grid, Shared
from p2pgrid.client.ledger import Ledger
from p2pgrid.client.pickling import Functions
from p2pgrid.client.receiver import Receiver
from p2pgrid.client.session import Session
from p2pgrid.client.stream import Stream
from p2pgrid.client.upload import Upload
from p2pgrid.client.waiting import Tasks, tell, waiting
from p2pgrid.core import inside
from p2pgrid.core.batch import TASKS_MAX
from p2pgrid.core.errors import GridError, NodeGone
from p2pgrid.core.inside import Host, Task
from p2pgrid.core.messages import WAIT, WAITED
from p2pgrid.core.options import NESTED_MAX, TaskOptions
from p2pgrid.core.prints import PRINTS
from p2pgrid.core.record import Spec, TaskOf
from p2pgrid.core.units import parse_duration
from p2pgrid.core.wire import frame

TIMEOUT_S = 10.0
WAITED_FOR_MAX = 1000
"""Ranges of tasks that the node is told of, of those that a task waits for at once."""


def _host() -> Host:
    assert inside.host is not None, "made in a worker child only"
    return inside.host


def _task() -> Task:
    """Return the task that asks. Raises GridError where none runs."""
    task = _host().task()
    if task is None:
        raise GridError(
            "a Grid inside a task is the task's own: here none runs, or this is another process that it has started",
            code="usage", next="use it in the task, and pass what comes out to the processes that it starts",
        )  # fmt: skip
    return task


class _Finder:
    """Finds the node that runs this process."""

    flags = ""

    def connect(self, hello: dict[str, Any]) -> Connection:
        """Return a connection. Raises NodeGone."""
        connection = self.again(hello)
        if connection is None:
            raise NodeGone(message="the node of this task takes no connection")
        return connection

    def again(self, hello: dict[str, Any]) -> Connection | None:
        """Return another connection, if it takes one."""
        try:
            return greet(_host().connect(), hello, TIMEOUT_S, "the node of this task")
        except (OSError, ConnectionLost):
            return None


class _Scope:
    """What one task has in the grid."""

    def __init__(self, session: "TaskSession") -> None:
        self.shared = Shared(session)
        self.shared.functions = session.functions
        self.receivers: list[Receiver] = []
        self.shut: weakref.WeakSet[Grid] = weakref.WeakSet()
        """Grids that this task has left; another one may use them."""

    def idle(self) -> bool:
        """Whether nothing is to come any more."""
        self.receivers = [one for one in self.receivers if not one.idle or isinstance(one, Calls)]
        return all(one.idle for one in self.receivers)


class _Ledger(Ledger):
    """What is on its way for all tasks of this process; who asks what of it is its own means the task that runs."""

    def __init__(self, scope: Callable[[], _Scope]) -> None:
        super().__init__(TIMEOUT_S)
        self._scope = scope

    def mine(self) -> list[Receiver]:
        """Return the receivers of the jobs that this task has submitted."""
        return [one for one in self._scope().receivers if one.mine]

    @property
    def idle(self) -> bool:
        """Whether nothing that this task has submitted is still to come."""
        return self._scope().idle()


class TaskSession(Session):
    """The session of all tasks of this process."""

    def __init__(self) -> None:
        """Connect with the node. Raises NodeGone."""
        self._scopes: dict[Task, _Scope] = {}
        self._numbers = 0
        self._made = threading.Lock()
        super().__init__(_Finder(), timeout_s=TIMEOUT_S, reconnect=False)
        self.ledger = _Ledger(self.scope)
        self.functions = Functions()
        tell(self)
        inside.at_end(self._over)

    def scope(self) -> _Scope:
        """Return what the task that asks has. Raises GridError where none runs."""
        task = _task()
        scope = self._scopes.get(task)
        if scope is None:
            with self._made:
                scope = self._scopes.get(task)
                if scope is None:
                    scope = self._scopes[task] = _Scope(self)
                    _host().opens()
        return scope

    def add(self, receiver: Receiver, upload: Upload | None = None) -> None:
        """Expect results; what tasks print that this one has started is shown where what it prints itself is."""
        receiver.show &= ~PRINTS
        if upload is not None:
            self.scope().receivers.append(receiver)
        super().add(receiver, upload)

    def leave(self) -> None:
        """Stay: the next task of this process may come."""

    def leave_when_idle(self) -> None:
        """Stay."""

    def moved(self) -> None:
        """Something has arrived."""
        _host().wake()

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, ready: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `ready()`, as any session does; tasks that this one has started run meanwhile."""
        self.may_wait()
        with waiting(self._awaited(self.scope()), ready, timeout_s) as left_s:
            return super().wait(ready, left_s)

    @staticmethod
    def _awaited(scope: _Scope) -> list[Tasks]:
        return [(one.job, 0, TASKS_MAX - 1) for one in scope.receivers if not one.idle]

    def waits(self, task: Task, tasks: Sequence[Tasks], *, may_run: bool) -> int:
        """Tell the node that a task waits for others."""
        spans: dict[bytes, list[int]] = {}
        for job, lo, hi in sorted(tasks[:WAITED_FOR_MAX]):
            flat = spans.setdefault(job, [])
            if flat and flat[-1] >= lo:
                flat[-1] = max(flat[-1], hi)
            else:
                flat += [lo, hi]
        with self.lock:
            self._numbers += 1
            number = self._numbers
            self.say(frame(WAIT, [number, task.job, task.place, may_run, list(spans.items())]))
        return number

    def waited(self, number: int) -> None:
        """Tell the node that it waits no longer."""
        with self.lock:
            self.say(frame(WAITED, [number]))

    # ---- the end of a task -------------------------------------------------------------------------------------------

    def _over(self, task: Task, failed: bool) -> None:  # noqa: FBT001 - as `inside.at_end` calls it
        scope = self._scopes.get(task)
        if scope is None:
            return
        try:
            for one in scope.receivers:
                if isinstance(one, Calls):
                    one.awaited()
                if isinstance(one, Stream) and not failed:
                    one.let_all_come()
            ours = [one for one in scope.receivers if not getattr(one, "detach", False)]
            if not failed:
                with (
                    contextlib.suppress(GridError),
                    waiting([(one.job, 0, TASKS_MAX - 1) for one in ours], lambda: _are_idle(ours), None) as left_s,
                ):
                    Session.wait(self, lambda: _are_idle(ours), left_s)
            for one in ours:
                if isinstance(one, Calls):
                    one.cancel_all()
                elif isinstance(one, Stream):
                    one.stop(cancel=True)
        finally:
            for one in scope.receivers:
                if isinstance(one, Calls):
                    one.close()
                self.remove(one)
                if not getattr(one, "detach", False):
                    self.drop(one.job)
            del self._scopes[task]


def _are_idle(receivers: Sequence[Receiver]) -> bool:
    return all(one.idle for one in receivers)


_sessions: list[TaskSession] = []
_first = threading.Lock()


def session() -> TaskSession:
    """Return the session of this process; the first that asks makes it."""
    with _first:
        if not _sessions or _sessions[0].over or _sessions[0].down is not None:
            _task()
            _sessions[:] = [TaskSession()]
        return _sessions[0]


class TaskGrid(Grid):
    """What `Grid()` is inside a task."""

    def __init__(
        self,
        dir: Any = None,  # noqa: A002 - the contract's name
        *,
        join: str | None = None,
        embedded: bool | None = None,
        reconnect: bool = True,
        timeout: float = TIMEOUT_S,
        unpickle: Literal["members", "never"] = "members",
    ) -> None:
        """Be the grid that runs this task.

        Raises:
            GridError: another one was asked for, or there is no task here.
        """
        del reconnect, timeout
        named = [
            name for name, given in (
                ("dir", dir is not None), ("join", join is not None), ("embedded", bool(embedded)),
                ("unpickle", unpickle != "members"),
            ) if given
        ]  # fmt: skip
        if named:
            raise GridError(
                f"inside a task Grid() is the grid that runs it: {named[0]}= cannot be chosen there",
                code="usage", next="say Grid() and no more",
            )  # fmt: skip
        self._share(Shared(session()), TaskOptions(), is_view=False)

    def _share(self, shared: Shared, options: TaskOptions, *, is_view: bool) -> None:
        assert isinstance(shared.session, TaskSession)
        self._session: TaskSession = shared.session
        self._functions = self._session.functions
        self._options = options
        self._is_view = is_view
        self._own = None
        self._wires: dict[int, dict[str, Any]] = {}
        self._overlapping = None
        self._key = options.name, options.detach, parse_duration(options.keep_for), options.copies

    # What a Grid has once, this one has for each task: it may be made by one, or by a module, and used by many.

    @property
    def _shared(self) -> Shared:  # type: ignore[override]
        return self._session.scope().shared

    @property
    def _calls(self) -> Calls | None:
        return self._shared.calls.get(self._key)

    @_calls.setter
    def _calls(self, calls: Calls | None) -> None:
        assert self._shared.calls[self._key] is calls, "kept by whoever opened it"

    @property
    def _shut(self) -> bool:
        return self in self._session.scope().shut

    @_shut.setter
    def _shut(self, shut: bool) -> None:
        assert shut, "it is only ever shut"
        self._session.scope().shut.add(self)

    @property
    def _wire(self) -> dict[str, Any]:  # type: ignore[override]
        nested = _host().nested() + 1
        if nested > NESTED_MAX:
            msg = (
                f"tasks have started tasks {NESTED_MAX} deep, and it goes no deeper; next: "
                "return what is left to do, and let the task above start it"
            )
            raise RecursionError(msg)
        wire = self._wires.get(nested)
        if wire is None:
            wire = self._wires[nested] = {**self._options.to_wire(), "nested": nested}
        return wire

    def _spec(self, kind: str, *, detach: bool = False) -> Spec:
        spec = super()._spec(kind, detach=detach)
        return spec if spec.detach else replace(spec, parent=TaskOf(*_task()))

    def __repr__(self) -> str:
        return f"<Grid {self._session.welcome.grid} inside a task>"


def unpickled(options: dict[str, Any]) -> Grid:
    """Return what a Grid is that was pickled with a function: the grid that runs the task.

    Raises:
        TypeError: this is no task.
    """
    if inside.host is None:
        _refuse()
    grid = TaskGrid()
    return grid.options(**options) if options else grid


def _refuse() -> NoReturn:
    msg = "a Grid that was pickled is the grid of the task that unpickles it, and this is no task"
    raise TypeError(msg)
