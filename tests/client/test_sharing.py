"""`put` and `get` on a real node: one process writes, others map, and what nobody needs goes."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from p2pgrid.client.sharing import Sharing
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow

MB = 1_000_000


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """One node with little room for objects."""
    with LocalGrid(slots=1, quota="64MB") as grid:
        yield grid


def pinned(grid: Grid) -> int:
    return int(grid._session.request("status", {})["objects"].get("pinned", 0))


def is_lost(grid: Grid, ref: Any) -> bool:
    try:
        grid.get(ref)
    except pg.ObjectLost:
        return True
    return False


def test_what_is_put_comes_back_read_only(grid: Grid) -> None:
    """Arrays are views of shared memory; the rest is a value like any other; a Ref says what it is."""
    value: dict[str, Any] = {"a": np.arange(500_000), "b": [np.ones((30, 40), order="F"), "text", lambda x: x + 1]}
    ref = grid.put(value)
    assert ref.size > 4 * MB
    assert len(ref.id) == 66
    assert ref.id[2:14] in repr(ref)

    got = grid.get(ref)
    assert np.array_equal(got["a"], value["a"])
    assert np.array_equal(got["b"][0], value["b"][0])
    assert got["b"][1:2] == ["text"]
    assert got["b"][2](1) == 2
    assert not got["a"].flags.writeable
    assert not got["a"].flags.owndata


def test_several_at_once(grid: Grid) -> None:
    """A list of Refs gives a list of values, the same Ref as often as it is named."""
    refs = [grid.put(number) for number in range(20)]
    assert grid.get([*refs, refs[3]]) == [*range(20), 3]
    assert grid.get([]) == []
    assert len(set(refs)) == 20
    assert grid.put(7) == refs[7]


def test_equal_values_are_kept_once_and_by_each_of_their_refs(grid: Grid) -> None:
    """The end of one of two equal Refs takes nothing from the other."""
    one, two = grid.put(np.zeros(MB)), grid.put(np.zeros(MB))
    del one
    for _ in range(12):  # 8 MB each: room for seven
        grid.put(np.random.default_rng().random(MB))
    assert not grid.get(two).any()


def test_a_pickled_ref_keeps_its_object(grid: Grid) -> None:
    """It went where nobody counts, so the object lives until the session ends."""
    data = pickle.dumps(grid.put("kept"))
    gc.collect()
    grid.put("something else")
    assert grid.get(pickle.loads(data)) == "kept"


def test_dropped_refs_make_room(grid: Grid) -> None:
    """A loop that puts and drops goes on for ever; one that keeps its Refs is told when it is enough."""
    for number in range(20):
        assert grid.get(grid.put(np.full(MB, number)))[0] == number
    with pytest.raises(pg.QuotaExceeded, match="drop references"):
        assert [grid.put(np.full(MB, number)) for number in range(20)]
    with pytest.raises(pg.QuotaExceeded, match="smaller parts"):
        grid.put(bytes(100 * MB))
    assert grid.get(grid.put("small")) == "small"


def test_a_view_outlives_its_ref_and_its_grid(shared: LocalGrid) -> None:
    """What was mapped stays as it was, whatever is written later."""
    grid = shared.grid(0)
    ref = grid.put(np.full(MB, 7))
    view = grid.get(ref)[10:]
    del ref
    for _ in range(12):
        grid.put(np.random.default_rng().random(MB))
    assert (view == 7).all()
    grid.abandon()
    del grid
    gc.collect()
    other = shared.grid(0)
    for _ in range(12):
        other.put(np.random.default_rng().random(MB))
    other.abandon()
    assert (view == 7).all()


def test_it_lives_as_long_as_the_grid_that_put_it(shared: LocalGrid) -> None:
    """Another session may read it meanwhile; afterwards it is lost, and says so at once."""
    one, two = shared.grid(0), shared.grid(0)
    ref = one.put(list(range(1000)))
    assert two.get(ref) == list(range(1000))
    one.abandon()

    def lost() -> bool:
        try:
            two.get(ref)
        except pg.ObjectLost as error:
            return "put it again" in str(error)
        return False

    wait_until(lost, SOON_S)
    two.abandon()


def test_a_killed_program_leaves_nothing(shared: LocalGrid, tmp_path: Path) -> None:
    """Its room is another's as soon as it is gone."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
        import numpy as np, p2pgrid as pg, time
        grid = pg.Grid({str(shared.nodes[0].dir)!r})
        refs = [grid.put(np.full(1_000_000, number)) for number in range(6)]
        views = grid.get(refs)
        print("full", flush=True)
        time.sleep(100)
        """)
    )
    env = os.environ | {"PYTHONPATH": str(Path(pg.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=env) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "full\n"
        grid = shared.grid(0)
        with pytest.raises(pg.QuotaExceeded):
            assert [grid.put(np.full(MB, 10 + number)) for number in range(5)]
        started.send_signal(signal.SIGKILL)
        started.wait()

        def fits() -> bool:
            try:
                return len([grid.put(np.full(MB, 20 + number)) for number in range(6)]) == 6
            except pg.QuotaExceeded:
                return False

        wait_until(fits, SOON_S)
        grid.abandon()


def test_many_threads_put_and_get(grid: Grid) -> None:
    """Puts, gets and ends of the same values from several threads never lose one that is still referred to."""
    wrong: list[object] = []

    def work() -> None:
        try:
            for number in range(60):
                ref = grid.put(("value", number % 5))
                if grid.get(ref) != ("value", number % 5):
                    wrong.append(number)
        except Exception as error:  # noqa: BLE001 - shown below
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_ends_as_the_session_does_leaves_no_thread_running(grid: Grid) -> None:
    """A view that ends just before `close`: its thread once passed the two back and forth for ever."""
    sharing = Sharing(grid._session)
    sharing._ended.put((b"another token", "view", b"id"))
    sharing.close()
    teller = threading.Thread(target=sharing._tell_later, daemon=True)
    teller.start()
    teller.join(SOON_S)

    assert not teller.is_alive()


def test_what_cannot_be_put_or_got(shared: LocalGrid, grid: Grid) -> None:
    """Each says what is wrong with it."""
    with pytest.raises(pg.NotSerializable, match=r"the value\[1\]"):
        grid.put([1, threading.Lock()])
    with pytest.raises(TypeError, match="Future"):
        grid.put([grid.submit(abs, -1)])
    with pytest.raises(TypeError, match="not int"):
        grid.get([1])  # type: ignore[list-item]
    with pytest.raises(pg.GridError) as caught:
        Grid(shared.nodes[0].dir, unpickle="never").get(grid.put(1))
    assert caught.value.code == "not-unpickled"


def test_a_node_that_was_started_again_takes_new_values(tmp_path: Path) -> None:
    """The old ones are lost with its memory, what a program has mapped stays; nobody reads the wrong memory."""
    with LocalGrid(slots=1) as shared:
        grid = shared.grid(0)
        old = grid.put(np.arange(MB))
        view = grid.get(old)
        shared.nodes[0].kill()
        shared.nodes[0].start()
        fresh = grid.put(np.arange(MB) + 1)
        assert grid.get(fresh)[5] == 6
        assert view[5] == 5
        with pytest.raises(pg.ObjectLost):
            grid.get(old)
        grid.abandon()


def test_put_at_one_node_get_at_another() -> None:
    """Verified piece by piece on the way; several at once; the third node gets it though the first is gone."""
    with LocalGrid(nodes=3, slots=1) as shared:
        one, two, three = (shared.grid(number) for number in range(3))
        value = np.random.default_rng(1).random(2 * MB)
        refs = [one.put(value), one.put({"text": "small", "more": [value[:1000]]})]
        large, small = two.get(refs)
        assert np.array_equal(large, value)
        assert not large.flags.writeable
        assert small["text"] == "small"
        shared.nodes[0].kill()
        assert np.array_equal(three.get(refs[0]), value)
        for grid in (one, two, three):
            grid.abandon()


def test_lost_in_the_whole_grid() -> None:
    """Nobody has it any more: an error with those who had it, in bounded time."""
    with LocalGrid(nodes=2, slots=1) as shared:
        one, two = shared.grid(0), shared.grid(1)
        ref = one.put(np.arange(MB))
        shared.nodes[0].kill()
        with pytest.raises(pg.ObjectLost, match=shared.nodes[0].id):
            two.get(ref)
        one.abandon()
        two.abandon()


def total(array: Any, more: Any = 0) -> float:
    return float(array.sum() + more)


def facts_of(holder: Any) -> tuple[bool, bool, str]:
    array = holder["deep"][0]
    return bool(array.flags.writeable), bool(array.flags.owndata), type(array).__name__


def test_a_ref_as_an_argument_arrives_as_its_value(grid: Grid) -> None:
    """Positional, by keyword, nested, in a map; read-only views; what it becomes is unaffected."""
    ref, number = grid.put(np.ones(MB)), grid.put(5)
    assert grid.submit(total, ref).result(SOON_S) == MB
    assert grid.submit(total, ref, more=number).result(SOON_S) == MB + 5
    assert grid.submit(facts_of, {"deep": [ref]}).result(SOON_S) == (False, False, "ndarray")
    assert list(grid.map(total, [ref] * 100)) == [MB] * 100
    assert list(grid.starmap(total, [(ref, i) for i in range(100)])) == [MB + i for i in range(100)]
    several = [grid.put(np.full(1000, i)) for i in range(50)]
    assert list(grid.map(total, several)) == [1000.0 * i for i in range(50)]
    assert not grid.get(ref).flags.writeable


def test_more_than_fits_into_memory_at_once(grid: Grid) -> None:
    """Every task has its own large object: their views end with their tasks, or they would not all fit."""
    for _ in range(3):
        refs = [grid.put(np.full(MB // 2, i)) for i in range(10)]
        assert list(grid.map(total, refs)) == [MB // 2 * i for i in range(10)]


def test_an_idle_worker_holds_nothing(shared: LocalGrid) -> None:
    """Session after session fills the node, each after the other has left."""
    for turn in range(4):
        with shared.grid(0) as grid:
            refs = [grid.put(np.full(MB // 2, 10 * turn + i)) for i in range(12)]
            assert list(grid.map(total, refs)) == [MB // 2 * (10 * turn + i) for i in range(12)]


def test_a_task_whose_object_is_lost_says_so(grid: Grid, shared: LocalGrid) -> None:
    """And the next one runs."""
    other = shared.grid(0)
    ref = other.put(np.full(MB, 3.5))
    other.abandon()
    wait_until(lambda: is_lost(grid, ref), SOON_S)  # before a job needs it, which would keep it
    assert isinstance(grid.submit(total, ref).exception(SOON_S), pg.ObjectLost)
    assert grid.submit(total, grid.put(np.ones(10))).result(SOON_S) == 10


def test_values_of_single_submits_make_room_when_their_tasks_are_over(grid: Grid) -> None:
    """Five times what the node has room for goes through it in one session, as nobody keeps a Ref."""
    for number in range(40):
        value = np.full(MB, float(number))
        assert grid.submit(total, grid.put(value)).result(SOON_S) == number * MB


def test_a_value_without_a_ref_is_there_for_tasks_that_wait(grid: Grid) -> None:
    """It is let go of after the last of them, however late that begins; and a new Ref to it counts from then on."""

    def slow_total(array: Any, seconds: float) -> float:
        time.sleep(seconds)
        return total(array)

    before = pinned(grid)  # by sessions that have ended without a word
    futures = [grid.submit(slow_total, grid.put(np.full(100_000, float(number))), 0.1) for number in range(10)]
    assert [future.result(SOON_S) for future in futures] == [number * 100_000.0 for number in range(10)]
    ref = grid.put(np.full(MB, 0.5))
    first = grid.submit(total, ref)
    assert first.result(SOON_S) == MB / 2
    again = ref
    del ref
    assert grid.submit(total, again).result(SOON_S) == MB / 2
    del again
    wait_until(lambda: pinned(grid) <= before, SOON_S)
    assert grid.submit(total, grid.put(np.full(MB, 0.5))).result(SOON_S) == MB / 2


def test_a_worker_that_is_killed_lets_go(grid: Grid) -> None:
    """What it looked at is mapped again by the next."""
    ref = grid.put(np.ones(MB))

    def die(array: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert isinstance(grid.submit(die, ref).exception(SOON_S), pg.WorkerCrashed)
    assert grid.submit(total, ref).result(SOON_S) == MB


def test_tasks_at_other_nodes_fetch_what_they_need() -> None:
    """Each node once, whatever the number of tasks."""
    with LocalGrid(nodes=2, slots=1) as shared:
        grid = shared.grid(0)
        ref = grid.put(np.ones(MB))
        far = grid.options(where=f"id == '{shared.nodes[1].id}'")
        assert far.submit(total, ref).result(SOON_S) == MB
        assert list(far.map(total, [ref] * 50)) == [MB] * 50
        grid.abandon()
