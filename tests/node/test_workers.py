"""The pool: recall, kill, limits, crashes and their successors. Real processes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pgrid.core.ranges import RangeSet
from p2pgrid.node.workers import WorkerPool
from tests.node.pool_harness import CALLS, TUPLES, Gate, Harness, all_gone, at_gate, bad_python, pooled, wait_at
from tests.waiting import SOON_S

# ---- recall and kill -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [CALLS, 2])
def test_a_recall_gives_back_what_is_not_started(tmp_path: Path, shape: int) -> None:
    """The task that runs ends and counts; the rest of its run and the run behind it come back untouched."""

    @pooled()
    async def recall(h: Harness) -> None:
        with Gate(tmp_path) as gate:
            first = h.start(at_gate, [(gate.path, i) for i in range(50)], shape=shape)
            second = h.start(at_gate, [(gate.path, i) for i in range(50)], shape=shape)
            await gate.arrival()
            h.pool.recall(0)
            gate.open()
            reports = [await h.finished(first), await h.finished(second)]

        assert reports[0].values == {0: 0}
        assert [list(RangeSet(report.returned)) for report in reports] == [[(1, 50)], [(0, 50)]]
        assert (await h.do(abs, [(-1,)])).values == {0: 1}

    recall(tmp_path)


def slow_after(start: int, gate: str, index: int) -> int:
    if index >= start:
        wait_at(gate, index)
    return index


@pooled()
async def test_a_slice_that_turns_slow_sees_a_recall_and_reports(h: Harness) -> None:
    """Thousands of fast tasks, then a slow one in the same slice: what is done is reported, the rest comes back."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(slow_after, [(5000, gate.path, i) for i in range(20_000)], shape=2)
        await gate.arrival()
        h.pool.recall(0)
        gate.open()
        report = await h.finished(number)

    assert report.values == {i: i for i in range(5001)}
    assert report.returned == [(5001, 20_000)]


@pooled()
async def test_kill_ends_the_task_it_names(h: Harness) -> None:
    """Cause, run and index are told; what was reported before stays; a new worker follows."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(at_gate, [(gate.path, i) for i in range(5)])
        await gate.arrival()
        gate.open()
        await gate.arrival()
        h.kill(number, [(1, 2)])
        died = await h.death()

    assert (died.cause, died.run, died.index) == ("killed", number, 1)
    assert not h.reports[number].final
    assert (await h.do(abs, [(-1,)])).values == {0: 1}


@pooled()
async def test_kill_of_another_task_is_a_recall(h: Harness) -> None:
    """The task that runs is not meant: it ends, and what is not started comes back."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(at_gate, [(gate.path, i) for i in range(5)])
        await gate.arrival()
        h.kill(number, [(3, 5)])
        gate.open()
        report = await h.finished(number)

    assert (report.values, report.returned) == ({0: 0}, [(1, 5)])
    assert not h.died


@pooled()
async def test_kill_without_spans_means_whatever_runs(h: Harness) -> None:
    """A busy loop ends; an idle worker is left alone."""
    h.kill(1, None)
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(at_gate, [(gate.path, 0)])
        await gate.arrival()
        h.kill(number, None)
        died = await h.death()

    assert (died.cause, died.index) == ("killed", 0)
    assert len(h.died) == 1


# ---- crashes ---------------------------------------------------------------------------------------------------------


def crash(kind: str, index: int) -> int:
    if index < 3:
        return index
    print("last words", file=sys.stderr)
    match kind:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
    return index


@pytest.mark.parametrize("shape", [CALLS, 2])
@pytest.mark.parametrize(
    ("kind", "cause", "detail"),
    [
        ("exit", "exit", "exited with code 3"),
        ("kill", "signal", "killed by signal SIGKILL"),
        ("segv", "signal", "killed by signal SIGSEGV"),
    ],
)
def test_a_crash_names_its_task(tmp_path: Path, shape: int, kind: str, cause: str, detail: str) -> None:
    """Index, cause and the last lines, however fast the tasks before it were."""

    @pooled()
    async def die(h: Harness) -> None:
        number = h.start(crash, [(kind, i) for i in range(10)], shape=shape)
        died = await h.death()

        assert (died.run, died.index, died.cause, died.detail) == (number, 3, cause, detail)
        assert "last words" in died.stderr
        assert (await h.do(abs, [(-1,)])).values == {0: 1}

    die(tmp_path)


@pooled()
async def test_what_was_reported_before_a_crash_counts(h: Harness) -> None:
    """Tasks that ended more than 20 ms before the crash are not lost."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(at_gate, [(gate.path, i) for i in range(3)])
        await gate.arrival()
        await trio.to_thread.run_sync(all_gone, [os.getpid()], 0.05)  # 50 ms pass
        gate.open()
        await gate.arrival()
        os.kill(h.pid(), signal.SIGKILL)
        died = await h.death()

    assert h.reports[number].values == {0: 0}
    assert (died.cause, died.index) == ("signal", 1)


def close_everything() -> None:
    os.closerange(3, 256)


@pooled()
async def test_a_task_that_closes_every_descriptor_is_named(h: Harness) -> None:
    """The child cannot go on; its end is charged to that task."""
    h.start(close_everything, [()])
    died = await h.death()

    assert died.index == 0


def write_garbage() -> None:
    for fd in range(3, 1024):
        try:
            stream = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        if stream.family == socket.AF_UNIX:
            stream.sendall(b"\xff" * 1000)


@pooled()
async def test_a_task_that_speaks_on_our_pipe_ends_its_worker_only(h: Harness) -> None:
    """Garbage from a child never harms the daemon."""
    h.start(write_garbage, [()])
    died = await h.death()

    assert died.cause == "exit"
    assert (await h.do(abs, [(-1,)])).values == {0: 1}


@pooled(slots=2)
async def test_workers_die_alone(h: Harness) -> None:
    """The other worker goes on with what it does."""
    with Gate(h.pool._scratch.parent) as gate:
        well = h.start(at_gate, [(gate.path, 0)], worker=1)
        await gate.arrival()
        h.start(crash, [("kill", 3)], worker=0)
        died = await h.death()
        gate.open()

        assert (died.worker, (await h.finished(well)).values) == (0, {0: 0})


@pytest.mark.slow
def test_a_child_that_never_starts_is_not_tried_for_ever(tmp_path: Path) -> None:
    """After five deaths at the start the pool says so, with the child's words, and waits."""

    async def main() -> None:
        said: list[Any] = []
        pool = WorkerPool(1, [bad_python(tmp_path)], tmp_path, "n0", lambda _: None, log=said.append)
        warned = trio.Event()
        pool._log = lambda line: (said.append(line), warned.set())  # type: ignore[func-returns-value,assignment]
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.serve)
            with trio.fail_after(SOON_S):
                await warned.wait()
            births = pool._births
            pool.stop()

        assert births == 5
        assert "no such luck" in said[0].text

    trio.run(main)


def slow_at(gate: str, bad: int, index: int) -> int:
    if index == bad:
        wait_at(gate, index)
    return index


@pytest.mark.parametrize("shape", [CALLS, TUPLES])
def test_a_recall_frees_what_lies_behind_a_long_task(tmp_path: Path, shape: int) -> None:
    """The child is deep in task 3 and cannot answer; the tasks behind it come back all the same, and only once."""

    @pooled()
    async def wait(h: Harness) -> None:
        with Gate(h.pool._scratch.parent) as gate:
            first = h.start(slow_at, [(gate.path, 3, i) for i in range(10)], shape=shape)
            second = h.start(slow_at, [(gate.path, 3, i) for i in range(20, 30)], shape=shape)
            await gate.arrival()
            h.pool.recall(0)
            await h.until(lambda: h.reports[first].returned and h.reports[second].returned)

            assert h.reports[first].returned == [(4, 10)]
            assert h.reports[second].returned == [(0, 10)]

            gate.open()
            done = await h.finished(first)
            await h.finished(second)

            assert done.values == {i: i for i in range(4)}
            assert h.reports[first].returned == [(4, 10)]
            assert h.reports[second].returned == [(0, 10)]

    wait(tmp_path)
