"""Tasks that use the grid: `pg.Grid()` inside a task, on real nodes. One slot each, two nodes for all of it."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from pathlib import Path

import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def one_slot(grid: Grid) -> Grid:
    """As `grid`, for tasks at one node only: whatever waits there has one slot."""
    return grid.options(where="name == 'n0'")


HERE = "name == 'n0'"


def square(x: int) -> int:
    return x * x


def squares(count: int) -> list[int]:
    with pg.Grid() as grid:
        return list(grid.map(square, range(count)))


def sum_of_squares(count: int) -> int:
    grid = pg.Grid()
    return sum(future.result() for future in [grid.submit(square, i) for i in range(count)])


def fib(n: int) -> int:
    if n < 2:
        return n
    grid = pg.Grid().options(where=HERE)
    a, b = grid.submit(fib, n - 1), grid.submit(fib, n - 2)
    return int(a.result() + b.result())


def chain(n: int) -> int:
    return 0 if n == 0 else 1 + int(pg.Grid().options(where=HERE).submit(chain, n - 1).result())


def test_a_task_maps_and_submits(grid: Grid) -> None:
    assert grid.submit(squares, 300).result(SOON_S) == [x * x for x in range(300)]
    assert list(grid.map(sum_of_squares, [10, 20, 30])) == [sum(x * x for x in range(n)) for n in (10, 20, 30)]


def test_a_recursive_function_ends_on_one_slot(one_slot: Grid) -> None:
    assert one_slot.submit(fib, 9).result(SOON_S) == 34


def test_a_chain_of_200_ends_on_one_slot(one_slot: Grid) -> None:
    """More than one process has room for: slots are lent."""
    assert one_slot.submit(chain, 200).result(SOON_S) == 200


def names(count: int) -> set[str | None]:
    return set(pg.Grid().map(meet, range(count)))


def meet(_: int) -> str | None:
    """Take long enough that another node has come for the next one."""
    deadline = time.monotonic() + SOON_S
    grid = pg.Grid()
    while len(grid.members()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    current = pg.current()
    return None if current is None else current.node


def test_what_a_task_has_started_runs_at_other_nodes_as_well(grid: Grid) -> None:
    """Also where the task runs at another node than the one that took its job."""
    assert grid.options(where="name == 'n1'").submit(names, 40).result(SOON_S) == {"n0", "n1"}


def as_completed(count: int) -> list[int]:
    grid = pg.Grid().options(where=HERE)
    futures: list[concurrent.futures.Future[int]] = [grid.submit(square, i) for i in range(count)]
    done, _ = pg.wait(futures[:2], return_when=concurrent.futures.FIRST_COMPLETED)
    assert done
    return sorted(future.result() for future in pg.as_completed(futures))


def in_threads(count: int) -> list[int]:
    grid = pg.Grid().options(where=HERE)
    got: list[int] = []
    threads = [threading.Thread(target=lambda i=i: got.append(grid.submit(square, i).result())) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(got)


async def awaited(count: int) -> list[int]:
    grid = pg.Grid().options(where=HERE)
    futures = [grid.submit(square, i) for i in range(count)]
    return [await future for future in futures] + [x async for x in grid.map(square, range(2))]


@pytest.mark.parametrize("way", [as_completed, in_threads, awaited])
def test_every_way_to_wait_ends_on_one_slot(one_slot: Grid, way: object) -> None:
    """Where nothing can run below the task that waits, another process takes its slot."""
    more = [0, 1] if way is awaited else []
    assert one_slot.submit(way, 5).result(SOON_S) == [0, 1, 4, 9, 16, *more]  # type: ignore[arg-type]


async def deep(n: int) -> int:
    return 0 if n == 0 else 1 + await pg.Grid().options(where=HERE).submit(deep, n - 1)


def test_async_tasks_wait_for_each_other(one_slot: Grid) -> None:
    assert one_slot.submit(deep, 6).result(SOON_S) == 6


def test_a_chain_that_is_too_deep_is_an_error_of_its_task(one_slot: Grid) -> None:
    """Of the one that would start one too many; it comes up as any error. The chain begins far down, to save time."""
    far_down = one_slot.options(name="deep")
    far_down._wire["nested"] = 980
    assert far_down.submit(chain, 20).result(SOON_S) == 20
    with pytest.raises(RecursionError, match="1000 deep, and it goes no deeper; next: "):
        far_down.submit(chain, 21).result(SOON_S)

    assert one_slot.submit(square, 3).result(SOON_S) == 9


def sleeps(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def waits_for_sleep(path: str) -> None:
    pg.Grid().submit(sleeps, path).result()


def starts_and_fails(path: str) -> None:
    pg.Grid().submit(sleeps, path)
    deadline = time.monotonic() + SOON_S
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    msg = "enough"
    raise ValueError(msg)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


@pytest.mark.parametrize("where", ["name == 'n0'", "True"])
def test_what_a_task_has_started_dies_with_its_cancellation(grid: Grid, tmp_path: Path, where: str) -> None:
    """Wherever it runs: below the task, or at another node."""
    path = tmp_path / "pid"
    future = grid.options(where=where).submit(waits_for_sleep, str(path))
    pid = pid_in(path)
    future.cancel()

    wait_until(lambda: not runs(pid))
    assert grid.submit(square, 3).result(SOON_S) == 9


def test_a_task_that_fails_takes_what_it_has_started_along(grid: Grid, tmp_path: Path) -> None:
    """As a `with Grid()` that an exception leaves."""
    path = tmp_path / "pid"
    with pytest.raises(ValueError, match="enough"):
        grid.submit(starts_and_fails, str(path)).result(SOON_S)

    wait_until(lambda: not runs(pid_in(path)))


def touch(path: str) -> None:
    Path(path).touch()


def starts_and_returns(path: str) -> str:
    pg.submit(touch, path)
    return "returned"


def test_what_a_task_has_not_waited_for_is_waited_for_at_its_end(grid: Grid, tmp_path: Path) -> None:
    """As at the end of a program."""
    assert grid.submit(starts_and_returns, str(tmp_path / "touched")).result(SOON_S) == "returned"
    assert (tmp_path / "touched").exists()


def raises(text: str) -> None:
    raise LookupError(text)


def passes_on(text: str) -> None:
    pg.Grid().submit(raises, text).result()


def test_what_it_raises_comes_up_through_the_tasks(grid: Grid) -> None:
    with pytest.raises(LookupError, match="far down"):
        grid.submit(passes_on, "far down").result(SOON_S)


def crash() -> None:
    os.abort()


def survives() -> str:
    try:
        pg.Grid().submit(crash).result()
    except pg.WorkerCrashed as error:
        return str(error)
    return ""


def test_what_crashes_below_a_task_fails_alone(one_slot: Grid) -> None:
    """The task that waited is run again, and is told."""
    assert "signal SIGABRT" in one_slot.submit(survives).result(SOON_S)


def untouched() -> list[object]:
    """Change what can be changed of a process, wait, and look."""
    os.environ["MINE"] = "1"
    Path("mine").write_text("mine")
    here = Path.cwd()
    below = pg.Grid().options(where=HERE).submit(look_around).result()
    return [below, os.environ["MINE"], Path("mine").read_text(), here == Path.cwd(), pg.current().index]  # type: ignore[union-attr]


def look_around() -> list[object]:
    found: list[object] = [os.environ.get("MINE"), sorted(path.name for path in Path().iterdir())]
    os.environ["MINE"] = "2"
    Path("mine").write_text("other")
    os.chdir("/")
    return found


def test_tasks_below_each_other_do_not_see_each_other(one_slot: Grid) -> None:
    """Folder, environment and `pg.current()` are those of a task by itself."""
    assert one_slot.submit(untouched).result(SOON_S) == [[None, []], "1", "mine", True, 0]


def with_a_directory() -> None:
    pg.Grid("/tmp")


def test_inside_a_task_there_is_one_grid(grid: Grid) -> None:
    with pytest.raises(pg.GridError, match=r"inside a task Grid\(\) is the grid that runs it: dir= cannot be chosen"):
        grid.submit(with_a_directory).result(SOON_S)


def test_a_grid_that_a_function_uses_is_that_of_its_task(one_slot: Grid) -> None:
    """Also as an argument; with its options."""
    named = one_slot.options(name="named")

    def through(n: int) -> int:
        return 0 if n == 0 else 1 + int(named.submit(through, n - 1).result())

    assert one_slot.submit(through, 3).result(SOON_S) == 3


def says(text: str) -> None:
    print(text)


def says_below(text: str) -> None:
    pg.Grid().submit(says, text).result()


def test_what_a_task_has_started_prints_in_the_program(grid: Grid, capfd: pytest.CaptureFixture[str]) -> None:
    """As lines of the task that the program has submitted, wherever that runs; and they are kept with it."""
    future = grid.options(where="name == 'n1'").submit(says_below, "from far down")
    future.result(SOON_S)
    out: list[str] = []

    def seen() -> bool:
        out.append(capfd.readouterr().out)
        return "n1#0 from far down" in "".join(out)

    wait_until(seen)
    wait_until(lambda: future.logs() == "from far down\n")


def test_listings_are_not_cluttered(grid: Grid) -> None:
    """What tasks have started is theirs."""
    before = {job.id for job in grid.jobs()}
    grid.submit(sum_of_squares, 5).result(SOON_S)

    assert len({job.id for job in grid.jobs()} - before) == 1


def first_sleeps(path: str) -> str:
    """Sleep at the first attempt; say so at the second."""
    if Path(path).exists():
        return "again"
    sleeps(path)
    return "never"


def asks_the_other(path: str) -> str:
    return str(pg.Grid().options(where="name == 'n1'").submit(first_sleeps, path).result())


def test_a_node_dies_that_runs_what_a_task_has_started(local: LocalGrid, one_slot: Grid, tmp_path: Path) -> None:
    """It runs again; the task that waits for it hears nothing of that."""
    path = tmp_path / "pid"
    future = one_slot.submit(asks_the_other, str(path))
    pid_in(path)
    local.nodes[1].kill()
    local.nodes[1].start()

    assert future.result(2 * SOON_S) == "again"
    assert future.attempts == 1
    local.wait_members(2, 2 * SOON_S)


def work_here(count: int) -> list[str | None]:
    grid = pg.Grid()
    return [pg.current().node, *grid.map(where_am_i, range(count))]  # type: ignore[union-attr]


def where_am_i(_: int) -> str | None:
    return pg.current().node  # type: ignore[union-attr]


def test_tasks_of_a_member_that_may_only_work_start_tasks_as_well(local: LocalGrid, grid: Grid) -> None:
    """These run there: nobody else takes work from it."""
    worker = local.add("w0", local.nodes[0].invite(roles="work"))
    try:
        worker.wait_answering()
        local.wait_members(3)
        assert grid.options(where="name == 'w0'").submit(work_here, 20).result(SOON_S) == ["w0"] * 21
        assert grid.submit(square, 3).result(SOON_S) == 9
    finally:
        worker.stop()
        local.nodes.remove(worker)
