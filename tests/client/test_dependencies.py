"""Futures as arguments, on real nodes: at any depth, across nodes and programs, without the program that submitted."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """Two nodes for the tests that do them no harm."""
    with LocalGrid(nodes=2, slots=2) as local:
        yield local


def add(*numbers: int, **named: int) -> int:
    return sum(numbers) + sum(named.values())


def same(value: Any) -> Any:
    return value


def wait_for(path: Path, value: Any) -> Any:
    while not path.exists():
        time.sleep(0.01)
    return value


def no_luck() -> None:
    raise ZeroDivisionError("no luck")


def appended(numbers: list[int], number: int) -> list[int]:
    numbers.append(number)
    return numbers


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


def test_a_future_arrives_as_its_value_at_any_depth(grid: Grid, tmp_path: Path) -> None:
    """Pending and ended ones, in lists, tuples, dicts, objects and keywords; the same one everywhere."""
    ended, pending = grid.submit(add, 1, 2), grid.submit(wait_for, tmp_path / "go", 5)
    assert ended.result(SOON_S) == 3
    holder = Point(pending)  # type: ignore[arg-type]
    nested = grid.submit(same, {"a": [pending, (ended, {"b": pending})], "c": holder})
    total = grid.submit(add, ended, pending, pending, z=grid.submit(add, ended, 7))
    assert nested.state == "waiting"
    wait_until(lambda: f"for {pending.id} (running)" in nested.explain())
    (tmp_path / "go").touch()
    value = nested.result(SOON_S)

    assert value["a"] == [5, (3, {"b": 5})]
    assert value["c"].x == 5
    assert total.result(SOON_S) == 23


def test_each_task_has_a_value_of_its_own(grid: Grid) -> None:
    """What one does to its argument no other sees."""
    numbers = grid.submit(same, [1])
    results = [grid.submit(appended, numbers, i) for i in range(5)]

    assert [one.result(SOON_S) for one in results] == [[1, i] for i in range(5)]


def test_maps_take_futures_as_items(grid: Grid, tmp_path: Path) -> None:
    """Each item waits for its own, others run meanwhile."""
    late = grid.submit(wait_for, tmp_path / "go", 100)
    futures = [*(grid.submit(add, i, 1) for i in range(20)), late]
    results = iter(grid.map(add, futures))
    assert [next(results) for _ in range(20)] == list(range(1, 21))
    (tmp_path / "go").touch()

    assert next(results) == 100
    assert list(grid.starmap(add, [(a, b, 1) for a, b in itertools.pairwise(futures)]))[-1] == 121
    assert list(grid.map(add, futures, range(21)))[3] == 7


def test_a_large_value_goes_where_it_is_needed(grid: Grid) -> None:
    """20 MB from a task to tasks on both nodes."""
    array = grid.submit(np.arange, 2_500_000)
    sums = grid.run(np.sum, array)

    assert {key: int(one.result(SOON_S)) for key, one in sums.items()} == dict.fromkeys(("n0", "n1"), 3124998750000)


def test_async_tasks_wait_too(grid: Grid) -> None:
    """A coroutine function gets the value, not the future."""

    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    assert grid.submit(double, grid.submit(double, 4)).result(SOON_S) == 16


def test_a_failure_is_the_cause(grid: Grid) -> None:
    """With its traceback; of what was cancelled, too."""
    far = grid.submit(same, [grid.submit(same, grid.submit(no_luck))])
    with pytest.raises(pg.DependencyFailed, match=r"because of .*ZeroDivisionError: no luck") as caught:
        far.result(SOON_S)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "in no_luck" in str(caught.value.__cause__.__cause__)

    sleeper = grid.submit(time.sleep, 600)
    waiter = grid.submit(same, sleeper)
    sleeper.cancel()
    assert isinstance(waiter.exception(SOON_S), pg.DependencyFailed)
    assert isinstance(waiter.exception().__cause__, pg.TaskCancelled)  # type: ignore[union-attr]


def test_a_future_of_a_job_at_another_node(shared: LocalGrid, tmp_path: Path) -> None:
    """Made by a Grid there, or found by its id here; before it ends and after."""
    with shared.grid(0) as here, shared.grid(1) as there:
        late = there.submit(wait_for, tmp_path / "go", 5)
        early = there.submit(add, 1, 1)
        assert early.result(SOON_S) == 2
        total = here.submit(add, late, here.future(early.id), there.submit(add, 3))
        assert total.state == "waiting"
        (tmp_path / "go").touch()

        assert total.result(SOON_S) == 10
        assert here.submit(add, late, total).result(SOON_S) == 15
        assert isinstance(here.submit(add, there.submit(no_luck)).exception(SOON_S), pg.DependencyFailed)


def test_it_ends_although_the_program_died_in_between(shared: LocalGrid, tmp_path: Path) -> None:
    """`submit(b, submit(a))` of a program that is killed while a runs: the grid runs b, and any program reads it."""
    text = f"""
        import sys, time
        from pathlib import Path
        import p2pgrid as pg

        def wait_for(path, value):
            while not path.exists():
                time.sleep(0.01)
            return value

        def double(x):
            return 2 * x

        grid = pg.Grid({str(shared.nodes[0].dir)!r}).options(detach=True)
        first = grid.submit(wait_for, Path({str(tmp_path / "go")!r}), 21)
        second = grid.submit(double, [grid.submit(double, first)])
        second.durable.result(60)
        print(first.id, second.id, flush=True)
        time.sleep(600)
    """
    program = subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    first, second = program.stdout.readline().split()
    program.send_signal(signal.SIGKILL)
    program.wait()
    with shared.grid(1) as grid:
        wait_until(lambda: grid.future(first).state == "running")
        assert grid.future(second).state == "waiting"
        (tmp_path / "go").touch()

        assert grid.future(second).result(SOON_S) == [42, 42]
        assert grid.job(first.partition("/")[0]).wait(0.0) is False  # nobody said that no more tasks come


def test_a_killed_node_goes_on_with_what_waits(tmp_path: Path) -> None:
    """The journal has it."""
    with LocalGrid(slots=1) as local, local.grid(0) as grid:
        late = grid.submit(wait_for, tmp_path / "go", 5)
        total = grid.submit(add, late, grid.submit(add, 1, 1))
        total.durable.result(SOON_S)
        local.nodes[0].kill()
        local.nodes[0].start()
        (tmp_path / "go").touch()

        assert total.result(SOON_S) == 7
