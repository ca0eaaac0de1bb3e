"""Time, memory, output, and processes that tasks start: the pool keeps all of it in bounds. Real processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest
import trio

from p2pgrid.node.events import Event
from p2pgrid.node.workers import PoolOptions
from tests.node.pool_harness import CALLS, MIB, Gate, Harness, all_gone, at_gate, family, pooled, spin, start_family
from tests.waiting import SOON_S


def spin_at(bad: int, index: int) -> int:
    if index == bad:
        spin()
    return index


@pytest.mark.parametrize("shape", [CALLS, 2])
def test_a_task_over_its_time_is_named(tmp_path: Path, shape: int) -> None:
    """The limit is per task, in fast runs too: what waits for a processor for a while is not over it."""

    @pooled()
    async def wait(h: Harness) -> None:
        h.start(spin_at, [(2000, i) for i in range(4000)], shape=shape, limits=(2.0, None))
        died = await h.death()

        assert (died.cause, died.index) == ("timeout", 2000)
        assert "2.0 s" in died.detail or "2 s" in died.detail

    wait(tmp_path)


class SlowToLoad:
    """As a function whose module takes its time to import."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import time; time.sleep(1.5)",)


@pooled()
async def test_loading_a_function_is_no_time_of_its_first_task(h: Harness) -> None:
    """Three times as long as the task may take."""
    slow: object = SlowToLoad()

    def loaded(index: int) -> int:
        return index if slow is None else -1

    h.start(loaded, [(7,)], limits=(0.5, None))
    await h.until(lambda: h.died or (h.reports and all(one.final for one in h.reports.values())))

    assert h.died == []
    assert [one.values for one in h.reports.values()] == [{0: 7}]


def hoard(size: int) -> None:
    kept = bytearray(size)
    for place in range(0, size, 4096):
        kept[place] = 1
    spin()


def hoard_in_subprocess(size: int) -> None:
    code = f"x = bytearray(b'1') * {size}\nwhile True: pass"
    subprocess.run([sys.executable, "-c", code], check=False)


def map_file(path: str) -> int:
    with open(path, "rb") as file:  # noqa: PTH123
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return sum(mapped[place] for place in range(0, len(mapped), 4096))


@pytest.mark.parametrize("task", [hoard, hoard_in_subprocess])
def test_a_task_over_its_memory_is_named(tmp_path: Path, task: Any) -> None:
    """What it starts counts as well."""

    @pooled()
    async def fill(h: Harness) -> None:
        h.start(task, [(300 * MIB,)], limits=(None, 200 * MIB))
        died = await h.death()

        assert (died.cause, died.index) == ("memory", 0)
        assert "200" in died.detail

    fill(tmp_path)


@pooled()
async def test_mapped_files_do_not_count_as_memory(h: Harness) -> None:
    """Objects are mapped and shared: only private memory is limited."""
    path = h.pool._scratch.parent / "large"
    with path.open("wb") as file:
        file.truncate(300 * MIB)
    report = await h.do(map_file, [(str(path),)] * 5, limits=(None, 150 * MIB))

    assert report.values == dict.fromkeys(range(5), 0)


@pooled(slots=2, options=PoolOptions(memory_budget=400 * MIB))
async def test_of_workers_that_hold_too_much_the_largest_goes(h: Harness) -> None:
    """A budget for all together needs no limit of any task."""
    h.start(hoard, [(100 * MIB,)], worker=0)
    h.start(hoard, [(500 * MIB,)], worker=1)
    died = await h.death()

    assert (died.worker, died.cause) == (1, "memory")


def print_for_ever() -> None:
    while True:
        print("x" * 1000)


def yell() -> None:
    subprocess.run(["yes", "x" * 1000], check=False)


@pytest.mark.parametrize("task", [print_for_ever, yell])
def test_endless_output_fills_no_memory(tmp_path: Path, task: Any) -> None:
    """The file is cut again and again; the last lines are there at the end."""

    @pooled()
    async def listen(h: Harness) -> None:
        h.start(task, [()], limits=(2.0, None))
        child = h.pool._children[0]
        assert child is not None
        sizes = []
        look = child.look

        def watched(now: float) -> list[Event]:
            events = look(now)
            sizes.append(512 * os.fstat(child.output.out_fd).st_blocks)
            return events

        child.look = watched  # type: ignore[method-assign]
        died = await h.death()

        assert died.cause == "timeout"
        assert "xxxx" in died.stderr
        assert len(sizes) > 2
        assert median_low(sizes[1:]) < 64 * MIB  # a child may write much between the look and ours, now and then

    listen(tmp_path)


# ---- what tasks start ------------------------------------------------------------------------------------------------


@pooled()
async def test_kill_takes_all_that_a_task_started(h: Harness) -> None:
    """Grandchildren in the group, in sessions of their own, and their children."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(start_family, [(gate.path,)])
        pids = [int(pid) for pid in (await gate.arrival()).split()]
        gate.open()
        everyone = family(h.pool._token, pids)
        started = time.monotonic()
        h.kill(number, None)
        await h.until(lambda: h.died)
        took = time.monotonic() - started

    print(f"all {len(everyone)} processes gone {took * 1000:.0f} ms after the kill")
    assert all_gone(everyone)


@pooled()
async def test_a_daemon_that_a_task_leaves_behind_disturbs_no_other(h: Harness) -> None:
    """The task ends although its subprocess lives, and the next one runs."""
    report = await h.do(leave_daemon, [()])

    assert isinstance(report.values[0], int)
    assert (await h.do(abs, [(-1,)])).values == {0: 1}


def leave_daemon() -> int:
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid


def leave_thread() -> None:
    threading.Thread(target=spin, daemon=True).start()


@pooled()
async def test_stop_ends_everything(h: Harness) -> None:
    """Busy loops, sleepers and threads."""
    await h.do(leave_thread, [()])
    daemon = (await h.do(leave_daemon, [()])).values[0]
    h.start(spin, [()])
    everyone = family(h.pool._token, [daemon])
    started = time.monotonic()
    h.pool.stop()

    assert await trio.to_thread.run_sync(all_gone, everyone)
    took = time.monotonic() - started
    print(f"all {len(everyone)} processes gone {took * 1000:.0f} ms after stop")


@pytest.mark.slow
def test_a_gentle_stop_lets_runs_end(tmp_path: Path) -> None:
    """stop(kill=False): what is with a worker is done and reported, then the pool ends."""

    async def main() -> None:
        harness = Harness(tmp_path, 1, [Path(sys.executable)], PoolOptions())
        with Gate(tmp_path) as gate, trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(harness.pool.serve)
                await harness.until(lambda: all(harness.ready))
                number = harness.start(at_gate, [(gate.path, 0)])
                await gate.arrival()
                harness.pool.stop(kill=False)
                gate.open()

        assert harness.reports[number].values == {0: 0}

    trio.run(main)


def keep_for_ever(size: int) -> int:
    sys.modules["p2pgrid_test_leak"] = bytearray(b"1") * size  # type: ignore[assignment]
    return os.getpid()


def test_an_idle_child_that_has_grown_is_replaced(tmp_path: Path) -> None:
    """What tasks leave behind in a process does not stay for ever; nobody is charged with its end."""

    @pooled(options=PoolOptions(grown_max=64 * MIB))
    async def wait(h: Harness) -> None:
        before = (await h.do(keep_for_ever, [(100 * MIB,)])).values[0]
        died = await h.death()
        after = (await h.do(keep_for_ever, [(1,)])).values[0]

        assert died.cause == "killed"
        assert died.index is None
        assert "recycled" in died.detail
        assert before != after

    wait(tmp_path)
