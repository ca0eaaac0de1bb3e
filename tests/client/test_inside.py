"""`Grid()` inside a task, as the library sees it: a host in place of the worker child, a scripted node behind it."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait

import pytest

import p2pgrid as pg
from p2pgrid.client import inside as library
from p2pgrid.client import waiting
from p2pgrid.client.session import Session
from p2pgrid.core import inside
from p2pgrid.core import messages as m
from p2pgrid.core.batch import decode_batch
from p2pgrid.core.errors import GridError
from p2pgrid.core.inside import Task
from p2pgrid.core.options import NESTED_MAX
from p2pgrid.core.record import TaskOf, unpack_spec
from tests.client.scripted import ScriptedNode

TASK = Task(b"j" * 16, 3, 2)


class FakeHost:
    """A worker child that runs one task, in the thread of the test."""

    def __init__(self, node: ScriptedNode) -> None:
        self._path = str(node.dir / "s")
        self.now: Task | None = TASK
        self.above = 0
        self.waited = 0
        self._thread = threading.get_ident()
        self._news = threading.Event()

    def task(self) -> Task | None:
        return self.now

    def nested(self) -> int:
        return self.above

    def tree(self) -> None:
        return None

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self._path)
        return sock

    def may_run(self) -> bool:
        return threading.get_ident() == self._thread

    def run_until(self, ready: Callable[[], bool], timeout_s: float | None) -> None:
        self.waited += 1
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not ready() and (until_s is None or time.monotonic() < until_s):
            self._news.wait(0.05)
            self._news.clear()

    def wake(self) -> None:
        self._news.set()

    def opens(self) -> None:
        inside.open_tasks[TASK] = None


@pytest.fixture
def host(node: ScriptedNode) -> Iterator[FakeHost]:
    """Be inside a task."""
    host = FakeHost(node)
    inside.provide(host)
    yield host
    for session in library._sessions:
        Session.leave(session)
        session._reader.join(10)
    library._sessions.clear()
    waiting._told.clear()
    inside.open_tasks.clear()
    inside.host = None


def bodies(node: ScriptedNode, kind: int) -> list[list[object]]:
    """Return what the node has heard of one kind."""
    return [one.body for one in node.heard if one.kind == kind]


def test_what_a_task_starts_names_it(host: FakeHost, node: ScriptedNode) -> None:
    """Job, index and attempt; and how deep it is."""
    host.above = 4
    assert pg.Grid().submit(abs, -3).result(10) == 3
    ((_, spec),) = bodies(node, m.OPEN)
    ((_, _, _, data),) = bodies(node, m.INPUT)

    assert isinstance(spec, bytes)
    assert isinstance(data, bytes)
    assert unpack_spec(spec).parent == TaskOf(*TASK)
    assert decode_batch(0, 1, data).opts[0] == {"nested": 5}


def test_it_tells_that_it_waits_and_for_what(host: FakeHost, node: ScriptedNode) -> None:
    """Every way of waiting; and that it waits no longer."""
    node.runs = False
    grid = pg.Grid()
    future = grid.submit(abs, -3)
    with pytest.raises(TimeoutError):
        future.result(0.05)
    wait([future], 0.05)
    with pytest.raises(TimeoutError):
        next(iter(grid.map(abs, [1], timeout=0.05)))

    node.wait_for(lambda: len(bodies(node, m.WAITED)) == 3)
    told = bodies(node, m.WAIT)
    jobs = [body[0] for body in bodies(node, m.OPEN)]
    assert [one[1:4] for one in told] == [[TASK.job, TASK.place, True]] * 3
    assert [one[4] for one in told[:2]] == [[[jobs[0], [0, 1]]]] * 2
    assert [one[0] for one in told] == [body[0] for body in bodies(node, m.WAITED)]
    assert host.waited == 3


def test_it_waits_for_a_map_without_an_end(host: FakeHost, node: ScriptedNode) -> None:
    """However many of its inputs are ahead: whoever looked again and again would leave nobody to run them."""
    node.runs = False
    with pytest.raises(TimeoutError):
        next(iter(pg.Grid().map(abs, itertools.count(), timeout=0.5)))

    assert host.waited == 1


def test_a_thread_of_a_task_waits_without_running_anything(host: FakeHost, node: ScriptedNode) -> None:
    """Tasks run in the main thread of a process only."""
    del host
    node.runs = False
    future = pg.Grid().submit(abs, -3)
    thread = threading.Thread(target=wait, args=([future], 0.05))
    thread.start()
    thread.join()
    node.wait_for(lambda: len(bodies(node, m.WAITED)) == 1)
    assert [one[3] for one in bodies(node, m.WAIT)] == [False]


def test_as_deep_as_it_goes(host: FakeHost, node: ScriptedNode) -> None:
    """Nothing is sent; the error is the task's own."""
    host.above = NESTED_MAX
    with pytest.raises(RecursionError, match=f"{NESTED_MAX} deep.*next:"):
        pg.Grid().submit(abs, -3)

    assert bodies(node, m.INPUT) == []


@pytest.mark.parametrize(("named", "given"), [("dir", "/"), ("join", "x"), ("embedded", True), ("unpickle", "never")])
def test_there_is_nothing_to_choose(host: FakeHost, named: str, given: object) -> None:
    """It is the grid that runs the task."""
    del host
    with pytest.raises(GridError, match=rf"inside a task Grid\(\) is the grid that runs it: {named}= cannot"):
        pg.Grid(**{named: given})  # type: ignore[arg-type]


def test_outside_of_tasks_there_is_none(host: FakeHost) -> None:
    """In a process that a task has forked, say."""
    grid = pg.Grid()
    host.now = None
    with pytest.raises(GridError, match="the task's own"):
        grid.submit(abs, -3)


def test_a_task_that_fails_cancels_what_it_has_started(host: FakeHost, node: ScriptedNode) -> None:
    """What is detached goes on."""
    del host
    node.runs = False
    grid = pg.Grid()
    future = grid.submit(abs, -3)
    grid.options(detach=True).submit(abs, -4)
    inside.over(TASK, failed=True)

    assert future.cancelled()
    node.wait_for(lambda: len(bodies(node, m.CANCEL)) == 1)
    assert bodies(node, m.CANCEL)[0][0] == bodies(node, m.OPEN)[0][0]
    assert inside.open_tasks == {}


def test_a_task_that_returns_waits_for_what_it_has_started(host: FakeHost, node: ScriptedNode) -> None:
    """And a Grid that its module holds serves the next task as well."""
    node.runs = False
    grid = pg.Grid()
    future = grid.submit(abs, -3)
    threading.Timer(0.05, node.release).start()
    inside.over(TASK, failed=False)
    assert future.result(0) == 3
    with grid:
        host.now = Task(TASK.job, 4, 1)
        assert grid.submit(abs, -5).result(10) == 5

    assert [unpack_spec(bytes(spec)).parent for _, spec in bodies(node, m.OPEN)] == [TaskOf(*TASK), TaskOf(*host.now)]  # type: ignore[call-overload]


def test_nothing_has_to_be_built_for_its_interpreter() -> None:
    """The one of `--python` has nothing installed but msgpack and cloudpickle, which come along."""
    program = (
        "import sys; sys.modules['blake3'] = None; import p2pgrid.client.inside; "
        "from p2pgrid.core.batch import content_id; print(len(content_id(b'x')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("16\n", "")
