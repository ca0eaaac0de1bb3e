"""Async clients under asyncio and trio, on one real node: awaiting, iterating, and cancellation both ways."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.client.conftest import Connect
from tests.client.scripted import ScriptedNode
from tests.waiting import SOON_S, wait_until

Main = Callable[[], Awaitable[Any]]


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """One node of one slot."""
    with LocalGrid(nodes=1, slots=1) as local:
        yield local


@pytest.fixture(params=["asyncio", "trio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Which event loop the client runs under."""
    return str(request.param)


def run(loop: str, main: Main) -> Any:
    """Run a client."""

    async def soon() -> Any:
        if loop == "asyncio":
            return await asyncio.wait_for(main(), SOON_S)
        with trio.fail_after(SOON_S):
            return await main()

    return asyncio.run(soon()) if loop == "asyncio" else trio.run(soon)


async def cancelled_once(loop: str, ready: Callable[[], object], main: Main) -> None:
    """Run something until a condition holds, and cancel it then."""
    if loop == "asyncio":
        task = asyncio.ensure_future(main())
        await asyncio.to_thread(wait_until, ready)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(main)
        await trio.to_thread.run_sync(wait_until, ready)
        nursery.cancel_scope.cancel()


def square(x: int) -> int:
    return x * x


def hold(path: str, _: int = 0) -> None:
    """Say who runs, and never end."""
    Path(path + ".new").write_text(str(os.getpid()))
    Path(path + ".new").rename(path)
    time.sleep(600)


def has_ended(path: Path) -> bool:
    """Whether the process that wrote its number there is gone within a while."""
    pid = int(path.read_text())
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
def test_await_and_async_for(loop: str, grid: Grid) -> None:
    """Values, a task's own error, and endless inputs that are fed as they are taken."""

    async def main() -> None:
        assert await grid.submit(square, 7) == 49
        assert [y async for y in grid.map(square, range(2000))] == [x * x for x in range(2000)]
        with pytest.raises(ValueError, match="invalid literal"):
            await grid.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            [y async for y in grid.map(int, ["1", "x"])]
        naturals = grid.map(square, iter(range(10**12)), buffersize=50)
        assert [await anext(naturals) for _ in range(200)] == [x * x for x in range(200)]
        await naturals.aclose()

    run(loop, main)


@pytest.mark.slow
def test_who_is_cancelled_while_awaiting_cancels_the_task(loop: str, grid: Grid, tmp_path: Path) -> None:
    """Its process ends."""
    pid = tmp_path / "pid"
    future = grid.submit(hold, str(pid))

    async def wait() -> None:
        await future

    run(loop, lambda: cancelled_once(loop, pid.exists, wait))

    assert future.cancelled()
    assert has_ended(pid)


@pytest.mark.slow
def test_who_is_cancelled_while_iterating_cancels_the_rest(loop: str, grid: Grid, tmp_path: Path) -> None:
    """What runs ends, what waits never starts, and the slot is free for others."""
    pid = tmp_path / "pid"
    results = grid.map(hold, [str(pid)] * 5, range(5))

    async def wait() -> None:
        async for _ in results:
            pass

    run(loop, lambda: cancelled_once(loop, pid.exists, wait))

    assert has_ended(pid)
    assert grid.submit(square, 3).result(SOON_S) == 9
    assert grid.job(results.id).state == "cancelled"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["await", "async for"])
def test_a_task_cancelled_by_others_raises_where_it_is_awaited(
    loop: str, how: str, grid: Grid, shared: LocalGrid, tmp_path: Path
) -> None:
    """`TaskCancelled`, an exception as any: nobody has cancelled the task that awaits."""
    pid = tmp_path / "pid"
    future = grid.submit(hold, str(pid)) if how == "await" else None
    results = grid.map(hold, [str(pid)], [0]) if future is None else None

    def cancel() -> None:
        wait_until(pid.exists)
        with shared.grid(0) as other:
            other.job((future or results).id.partition("/")[0]).cancel()  # type: ignore[union-attr]

    async def main() -> None:
        with pytest.raises(pg.TaskCancelled):
            await (future if future is not None else anext(results))  # type: ignore[arg-type]

    thread = threading.Thread(target=cancel)
    thread.start()
    run(loop, main)
    thread.join()

    assert has_ended(pid)


# ---- what becomes of a client that stops waiting, at a node that follows a script ------------------------------------


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Grid]:
    """A grid whose tasks never end."""
    node = ScriptedNode(tmp_path, runs=False).start()
    grid = Grid(tmp_path, embedded=False)
    yield grid
    grid.abandon()
    node.stop()


def test_a_map_has_its_timeout_under_an_event_loop_too(loop: str, silent: Grid) -> None:
    """`map(timeout=)` counts from the call."""
    results = silent.map(square, range(3), timeout=0.05)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await anext(results)

    run(loop, main)


def test_whoever_shields_a_future_stops_waiting_and_cancels_nothing(silent: Grid) -> None:
    """`asyncio.shield`, as with any awaitable; in trio a shielded scope does it."""
    future = silent.submit(square, 2)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(future), 0.05)
        assert not future.cancelled()

    asyncio.run(main())


def test_several_may_await_one_future(connect: Connect) -> None:
    """All get its value, those too that ask when it is there."""
    future = connect().submit(square, 6)

    async def main() -> list[Any]:
        return [*await asyncio.gather(future, future, future), await future]

    assert asyncio.run(main()) == [36] * 4
