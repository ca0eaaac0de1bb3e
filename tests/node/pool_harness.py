"""A pool of real worker processes, driven by hand: runs in, events out, and never a sleep."""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self

import cloudpickle
import pytest
import trio

from p2pgrid.core.failure import decode_exception
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import reaper
from p2pgrid.node.events import Event, Kill, Log, Run, Segment, WorkerDied, WorkerDone, WorkerPrinted, WorkerReady
from p2pgrid.node.workers import PoolOptions, WorkerPool
from tests.waiting import SOON_S

JOB = b"0123456789abcdef"
CALLS, ITEMS, TUPLES = 0, 1, 2
MIB = 1024 * 1024

P = ParamSpec("P")


@dataclass
class Report:
    """All that came back about one run."""

    values: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, BaseException] = field(default_factory=dict)
    logs: dict[int, bytes] = field(default_factory=dict)
    returned: list[tuple[int, int]] = field(default_factory=list)
    unfit: str = ""
    frames: int = 0
    final: bool = False

    def add(self, done: WorkerDone) -> None:
        """Take in one more frame."""
        for lo, hi, shape, data in done.outcomes:
            match shape:
                case 0:
                    self.values.update(zip(range(lo, hi), map(_value, data), strict=True))
                case 1:
                    self.values.update(zip(range(lo, hi), pickle.loads(data), strict=True))
                case 2:
                    self.errors[lo] = decode_exception(unpack(data))
        for index, text in done.logs:
            self.logs[index] = self.logs.get(index, b"") + text
        self.returned += done.returned
        self.unfit = done.unfit
        self.frames += 1
        self.final = done.final


def _value(data: bytes) -> Any:
    return pickle.loads(data) if data else None


class Harness:
    """A pool and the events it delivered."""

    def __init__(self, folder: Path, slots: int, python: Sequence[Path], options: PoolOptions) -> None:
        """Make a pool in `folder`; `serve` starts it."""
        self.died: list[WorkerDied] = []
        self.log_lines: list[Log] = []
        self.pool = WorkerPool(slots, python, folder, "n0", self._deliver, log=self.log_lines.append, options=options)
        self.ready = [0] * slots
        self.reports: dict[int, Report] = {}
        self.printed: list[WorkerPrinted] = []
        self._moved = trio.Event()

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case WorkerReady(worker):
                    self.ready[worker] += 1
                case WorkerDied():
                    self.died.append(event)
                case WorkerPrinted():
                    self.printed.append(event)
                case WorkerDone():
                    self.reports[event.run].add(event)
        self._moved.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for events until `condition` holds."""
        with trio.fail_after(SOON_S):
            while not condition():
                self._moved = trio.Event()
                await self._moved.wait()

    def union(self, function: Callable[..., Any]) -> bytes:
        """Return a function as it travels, those of a test module by value."""
        module = sys.modules.get(getattr(function, "__module__", ""))
        if module is not None and module.__name__.startswith("tests."):
            cloudpickle.register_pickle_by_value(module)
        return pack(["pickle", sys.version_info.minor, cloudpickle.dumps(function)])

    def start(self, function: Callable[..., Any] | bytes, inputs: Sequence[Any], **options: Any) -> int:
        """Send one run: a task per input (shape 0: a tuple of arguments); return its number."""
        union = function if isinstance(function, bytes) else self.union(function)
        fn = sha256(union).digest()[:16]
        shape = options.pop("shape", CALLS)
        data: Any = [pickle.dumps((args, {})) for args in inputs] if shape == CALLS else cloudpickle.dumps(list(inputs))
        key = b"" if shape == CALLS else sha256(data).digest()[:8]
        segment = Segment(0, len(inputs), fn, shape, data, 0, key)
        return self.send([segment], {fn: union, **options.pop("codes", {})}, **options)

    def send(
        self, segments: Sequence[Segment], codes: Mapping[bytes, bytes], *, worker: int = 0, limits: Any = (None, None),
        **context: Any,
    ) -> int:  # fmt: skip
        """Send one run of these segments; return its number."""
        number = len(self.reports) + 1
        self.reports[number] = Report()
        tree, place = context.pop("tree", None), context.pop("place", 0)
        timeout_s, memory = limits
        context = {"job": "calm-river-42", "name": "", "attempt": 0, "node": "n0", **context}
        self.pool.run(Run(worker, number, JOB, segments, codes, context, timeout_s, memory, tree, place))
        self.pool.flush()
        return number

    async def finished(self, number: int) -> Report:
        """Wait for the end of a run."""
        await self.until(lambda: self.reports[number].final)
        return self.reports[number]

    async def do(self, function: Callable[..., Any] | bytes, inputs: Sequence[Any], **options: Any) -> Report:
        """Send one run and wait for its end."""
        return await self.finished(self.start(function, inputs, **options))

    async def death(self, number: int = 1) -> WorkerDied:
        """Wait for the end of a worker, and for its successor."""
        await self.until(lambda: len(self.died) >= number)
        died = self.died[number - 1]
        deaths = sum(other.worker == died.worker for other in self.died)
        await self.until(lambda: self.ready[died.worker] > deaths)
        return died

    def kill(self, number: int, spans: Sequence[tuple[int, int]] | None = None, worker: int = 0) -> None:
        """Send the effect Kill."""
        self.pool.kill(Kill(worker, number, spans))

    def pid(self, worker: int = 0) -> int:
        """Return the process of a worker."""
        pid = self.pool.states()[worker].pid
        assert pid is not None
        return pid


@asynccontextmanager
async def serving(folder: Path, slots: int, python: Sequence[Path], options: PoolOptions) -> AsyncIterator[Harness]:
    """Run a pool until the block ends, and see that it then ends in time."""
    harness = Harness(folder, slots, python, options)
    async with trio.open_nursery() as nursery:
        await nursery.start(harness.pool.serve)
        await harness.until(lambda: all(harness.ready))
        yield harness
        nursery.cancel_scope.deadline = trio.current_time() + SOON_S
        harness.pool.stop()
    assert not nursery.cancel_scope.cancelled_caught, "the pool did not end"


def pooled(
    slots: int = 1, python: Path | None = None, options: PoolOptions | None = None
) -> Callable[[Callable[Concatenate[Harness, P], Awaitable[None]]], Callable[..., None]]:
    """Turn `async def test(harness)` into a test with real workers."""

    def decorate(test: Callable[Concatenate[Harness, P], Awaitable[None]]) -> Callable[..., None]:
        async def main(folder: Path) -> None:
            async with serving(folder, slots, [python or Path(sys.executable)], options or PoolOptions()) as harness:
                await test(harness)  # type: ignore[call-arg]

        def run(tmp_path: Path) -> None:
            trio.run(main, tmp_path)

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        return pytest.mark.slow(run)

    return decorate


class Gate:
    """Where tasks wait: each says that it has come, and goes on when it is let through."""

    def __init__(self, folder: Path) -> None:
        """Listen in `folder`."""
        self.path = str(folder / "gate")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()
        self._waiting: list[socket.socket] = []

    async def arrival(self) -> str:
        """Wait for the next task; return what it said."""
        with trio.fail_after(SOON_S):
            await trio.lowlevel.wait_readable(self._socket)
            stream, _ = self._socket.accept()
            await trio.lowlevel.wait_readable(stream)
        self._waiting.append(stream)
        return stream.recv(100).decode()

    def open(self) -> None:
        """Let all through that wait."""
        for stream in self._waiting:
            stream.close()
        self._waiting.clear()

    def __enter__(self) -> Self:
        """Use as a context manager: the tasks that still wait go on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.open()
        self._socket.close()


def wait_at(gate: str, text: object) -> None:
    """In a task: say `text` at the gate, and wait there."""
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(gate)
    stream.sendall(str(text).encode())
    stream.recv(1)
    stream.close()


def at_gate(gate: str, index: int) -> int:
    """In a task: wait at the gate; return the index."""
    wait_at(gate, index)
    return index


def spin() -> None:
    """In a task: never end."""
    while True:
        pass


def start_family(gate: str) -> None:
    """In a task: start processes, some in sessions of their own, say their numbers at the gate, never end."""
    families = [
        subprocess.Popen(["sleep", "600"]),
        subprocess.Popen(["sleep", "600"], start_new_session=True),
        subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True),
    ]
    wait_at(gate, " ".join(str(process.pid) for process in families))
    spin()


def bad_python(folder: Path) -> Path:
    """Make an interpreter that says one line and fails."""
    path = folder / "python-bad"
    path.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    path.chmod(0o755)
    return path


def family(token: str, pids: Iterable[int]) -> list[int]:
    """Return the marked processes once `pids` are among them: one in the middle of its exec has no environment."""
    wanted, deadline = set(pids), time.monotonic() + SOON_S
    while not wanted <= set(found := reaper.marked(token)):
        assert time.monotonic() < deadline, (wanted, found)
    return found


def all_gone(pids: Iterable[int], within_s: float = SOON_S) -> bool:
    """Wait until these processes have ended (zombies count as ended); return whether they all did."""
    poll, left = select.poll(), []
    for pid in pids:
        try:
            left.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    try:
        for fd in left:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(within_s * 1000):
                return False
    finally:
        for fd in left:
            os.close(fd)
    return True
