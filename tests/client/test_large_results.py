"""Large results: written by the worker where the program maps them; Refs instead of values; at any node."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.waiting import SOON_S

pytestmark = pytest.mark.slow

MB = 1_000_000


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """Two nodes with little room: a client maps a third of it, and copies what it keeps beyond that."""
    with LocalGrid(nodes=2, slots=1, quota="200MB") as grid:
        yield grid


def at(shared: LocalGrid, number: int) -> str:
    return f"id == '{shared.nodes[number].id}'"


def filled(number: float, count: int = MB // 8) -> Any:
    return np.full(count, number)


def several(number: int) -> dict[str, Any]:
    return {"a": np.arange(100_000) + number, "b": [b"x" * 200_000, "text"], "c": lambda x: x + number}


def total(array: Any) -> float:
    return float(array.sum())


@pytest.mark.parametrize("number", [0, 1], ids=["here", "elsewhere"])
def test_a_large_result_is_mapped(shared: LocalGrid, grid: Grid, number: int) -> None:
    """Its arrays are read-only views of the node's memory, its other parts values; from wherever it comes."""
    there = grid.options(where=at(shared, number))
    array = there.submit(filled, 7, 2 * MB).result(SOON_S)
    assert (array == 7).all()
    assert not array.flags.writeable
    assert not array.flags.owndata
    got = there.submit(several, 5).result(SOON_S)
    assert got["a"][3] == 8
    assert got["b"] == [b"x" * 200_000, "text"]
    assert got["c"](1) == 6


def test_large_and_small_results_in_one_map(grid: Grid) -> None:
    """In order, each as it is, a failure among them where it belongs."""

    def sized(i: int) -> Any:
        return filled(i, 20_000) if i % 3 == 0 else i

    for i, value in enumerate(grid.map(sized, range(60))):
        assert value[100] == i if i % 3 == 0 else value == i

    def broken(i: int) -> Any:
        return filled(i, 20_000) if i != 5 else 1 // 0

    with pytest.raises(ZeroDivisionError):
        list(grid.map(broken, range(10)))


def test_more_than_fits_flows_through(grid: Grid) -> None:
    """Results that were taken make room for the next; nobody has to say anything."""
    for i, value in enumerate(grid.map(filled, range(150))):
        assert value[0] == i
        del value
    futures = [grid.submit(filled, i) for i in range(100)]
    while futures:
        assert futures.pop(0).result(SOON_S).shape == (MB // 8,)


def test_results_that_are_all_kept_fit_too(grid: Grid) -> None:
    """Where the node's memory is full they come by the socket, as smaller ones do."""
    values = [future.result(SOON_S) for future in [grid.submit(filled, i) for i in range(90)]]
    assert [value[-1] for value in values] == list(range(90))


def test_a_result_that_cannot_be_pickled_fails_alone(grid: Grid) -> None:
    def holds(i: int) -> Any:
        return filled(i), (i if i % 2 else threading.Lock())

    ends = [grid.submit(holds, i).exception(SOON_S) for i in range(3)]
    assert [type(end) for end in ends] == [pg.NotSerializable, type(None), pg.NotSerializable]


def test_a_grid_that_unpickles_nothing_gets_no_large_values(shared: LocalGrid) -> None:
    with Grid(shared.nodes[0].dir, unpickle="never") as grid, pytest.raises(pg.GridError) as caught:
        grid.submit(filled, 1).result(SOON_S)
    assert caught.value.code == "not-unpickled"


@pytest.mark.parametrize("number", [0, 1], ids=["here", "elsewhere"])
def test_kept_as_refs(shared: LocalGrid, grid: Grid, number: int) -> None:
    """A Ref for every value, small ones too; arguments of the next stage; got in parallel; another program gets it."""
    there = grid.options(keep="ref", where=at(shared, number))
    refs = [future.result(SOON_S) for future in [there.submit(filled, i, MB) for i in range(3)]]
    assert all(isinstance(ref, pg.Ref) for ref in refs)
    assert [float(value[0]) for value in grid.get(refs)] == [0, 1, 2]
    assert [grid.submit(total, ref).result(SOON_S) for ref in refs] == [0, MB, 2 * MB]
    small = there.submit(abs, -3)
    assert small.ref == small.result(SOON_S)
    assert grid.get(small.ref) == 3
    assert list(map(grid.get, there.map(abs, [-1, -2]))) == [1, 2]
    other = shared.grid(1 - number)
    assert float(other.get(refs[2])[5]) == 2
    other.abandon()


def test_the_ref_of_a_value(grid: Grid) -> None:
    """Any future has one."""
    future = grid.submit(filled, 4)
    assert grid.submit(total, future.ref).result(SOON_S) == 4 * MB // 8


def test_dropped_refs_of_results_make_room(grid: Grid) -> None:
    """A Ref lives as long as somebody has it; a pickled one as long as its Grid."""
    there = grid.options(keep="ref")
    kept = there.submit(filled, 0.5, MB).result(SOON_S)
    data = pickle.dumps(there.submit(filled, 1.5, MB).result(SOON_S))
    for i in range(20):
        assert grid.get(there.submit(filled, i, MB).result(SOON_S))[9] == i
    assert grid.get(kept)[0] == 0.5
    assert grid.get(pickle.loads(data))[0] == 1.5


def test_the_command_line_shows_them(shared: LocalGrid, grid: Grid) -> None:
    """At any node; a Ref as what it is."""
    job = grid.start(filled, [1, 2])
    refs = grid.options(keep="ref").start(filled, [3])
    assert job.wait(SOON_S)
    assert refs.wait(SOON_S)

    def shown(job: pg.Job) -> list[str]:
        command = [sys.executable, "-m", "p2pgrid", "--dir", str(shared.nodes[1].dir), "result", job.id]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SOON_S).stdout.splitlines()

    assert [line[:8] for line in shown(job)] == ["array([1", "array([2"]
    assert shown(refs)[0].startswith("<Ref ")


def test_a_detached_job_keeps_what_it_refers_to(shared: LocalGrid) -> None:
    """Though the program that put it has left, and its tasks run elsewhere."""
    one, other = shared.grid(0), shared.grid(0)
    job = one.options(where=at(shared, 1)).start(total, [one.put(np.ones(MB)), one.put(np.ones(10))])
    one.abandon()
    assert list(other.job(job.id).results(SOON_S)) == [MB, 10]
    other.abandon()


def test_the_results_of_a_detached_job_survive_the_node() -> None:
    """They are on disk before the job is said to be done; what was lost with the memory runs again."""
    with LocalGrid(slots=1) as shared:
        grid = shared.grid(0)
        job = grid.start(filled, [1, 2, 3])
        assert job.wait(SOON_S)
        refs = grid.options(keep="ref", detach=True).submit(filled, 9)
        ref = refs.result(SOON_S)
        shared.nodes[0].kill()
        shared.nodes[0].start()
        assert [value[0] for value in grid.job(job.id).results(SOON_S)] == [1, 2, 3]
        assert grid.get(ref)[0] == 9
        job.forget()
        late = grid.start(total, [grid.put(np.full(MB, 2.0))] * 3)  # on disk with its job when `start` returns
        shared.nodes[0].kill()
        shared.nodes[0].start()
        assert list(grid.job(late.id).results(SOON_S)) == [2 * MB] * 3
        grid.abandon()


def test_a_job_that_refers_to_more_than_fits_is_refused() -> None:
    """The writer hears it before anything is accepted."""
    with LocalGrid(slots=1, quota="30MB") as shared:
        grid = shared.grid(0)
        refs = [grid.put(np.full(MB, i)) for i in range(3)]
        with pytest.raises(pg.QuotaExceeded, match="--quota"):
            grid.put(np.full(MB, 3))
        assert list(grid.start(total, refs).results(SOON_S)) == [0, MB, 2 * MB]
        grid.abandon()
