"""The Python door on real node processes: found, embedded, killed, restarted, interrupted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import p2pgrid as pg
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.waiting import SOON_S, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(pg.__file__).parent.parent


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalGrid]:
    """One node of two slots for the tests that do it no harm."""
    with LocalGrid(slots=2) as grid:
        yield grid


programs: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_program_is_left() -> Iterator[None]:
    """End the programs of a test that failed half-way."""
    yield
    while programs:
        program = programs.pop()
        if program.poll() is None:
            program.kill()
            program.communicate()


def square(x: int) -> int:
    return x * x


def slow_square(x: int) -> int:
    time.sleep(0.02)
    return x * x


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def script(text: str, directory: Path, *, stdin: int | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start a program of a user's in a folder of its own, as Ctrl-C would find it."""
    program = directory / "program.py"
    if not program.exists():
        program.write_text(textwrap.dedent(text))
    env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(directory / "data")} | environment
    env.pop("P2PGRID_DIR", None)
    started = subprocess.Popen(
        [sys.executable, "program.py"], cwd=directory, env=env, stdin=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    programs.append(started)
    return started


# ---- what runs -------------------------------------------------------------------------------------------------------


def test_all_kinds_of_functions(grid: Grid) -> None:
    """Functions of this module, lambdas, closures, methods, async functions, exceptions, kwargs."""
    base = 40

    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, m: int) -> int:
            return self.n + m

    async def later(x: int) -> int:
        await asyncio.sleep(0.01)
        return x + base

    assert grid.submit(square, 7).result(SOON_S) == 49
    assert grid.submit(lambda x: x + base, 2).result(SOON_S) == 42
    assert grid.submit(Adder(40).add, 2).result(SOON_S) == 42
    assert grid.submit(later, 2).result(SOON_S) == 42
    assert grid.submit(int, "ff", base=16).result(SOON_S) == 255
    assert isinstance(grid.submit(Adder, 5).result(SOON_S), Adder)


def test_map_in_order(grid: Grid) -> None:
    """100,000 squares in order, and from a generator."""
    assert list(grid.map(square, range(100_000))) == [x * x for x in range(100_000)]
    assert sum(grid.map(square, iter(range(10_000)))) == sum(x * x for x in range(10_000))
    assert sorted(grid.imap_unordered(slow_square, range(50))) == [x * x for x in range(50)]


def test_a_task_that_raises_leaves_the_others_alone(grid: Grid) -> None:
    """The exception is the task's own."""
    futures = [grid.submit(lambda x: 1 // x, x) for x in (1, 0, 1)]

    assert [futures[0].result(SOON_S), futures[2].result(SOON_S)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        futures[1].result(SOON_S)


def test_what_a_future_can_say(grid: Grid) -> None:
    """state, node, logs and explain come from the node."""

    def talk() -> None:
        sys.stdout.write("hello from a task\n")

    future = grid.submit(talk)
    future.result(SOON_S)

    assert future.state == "done"
    assert future.node == "n0"
    assert future.attempts >= 1
    assert future.logs() == "hello from a task\n"
    assert "done" in future.explain()
    running = grid.submit(time.sleep, 60)
    wait_until(lambda: running.state == "running", SOON_S)
    assert running.running()
    running.cancel()


def test_cancel_kills_the_task(grid: Grid, tmp_path: Path) -> None:
    """A running task is cancelled at once and its process group is killed within 3 s."""
    file = tmp_path / "pid"

    def task(path: str) -> None:
        child = subprocess.Popen(["sleep", "600"])
        Path(path).write_text(f"{child.pid}")
        child.wait()

    future = grid.submit(task, str(file))
    wait_until(lambda: file.exists() and bool(file.read_text()), SOON_S)
    pid = int(file.read_text())

    assert future.cancel() is True
    assert future.cancelled()
    wait_until(lambda: not is_alive(pid), SOON_S)
    assert grid.submit(square, 3).result(SOON_S) == 9


def test_task_cancelled_by_somebody_else(shared: LocalGrid, grid: Grid) -> None:
    """A task that another client cancels by its id is cancelled for the one who waits for it."""
    future = grid.submit(time.sleep, 60)
    wait_until(lambda: future.state == "running", SOON_S)
    other = shared.grid(0)
    assert other.future(future.id).cancel()
    other.abandon()

    with pytest.raises(pg.TaskCancelled):
        future.result(SOON_S)
    assert future.cancelled()


def test_started_job_is_found_by_another_client(shared: LocalGrid, grid: Grid) -> None:
    """A started job outlives its client; any other finds it by id and reads it."""
    first = shared.grid(0)
    job = first.start(slow_square, range(30), name="thirty")
    first.abandon()
    found = grid.job(job.id)

    assert (found.id, found.name) == (job.id, "thirty")
    assert found.wait(SOON_S)
    assert list(found.results(SOON_S)) == [x * x for x in range(30)]
    assert found.progress() == (30, 0, 30)
    assert found.state == "done"
    assert grid.future(f"{job.id}/7").result(SOON_S) == 49
    assert job.id in [one.id for one in grid.jobs()]
    assert sorted(f.result() for f in found.as_completed(SOON_S)) == sorted(x * x for x in range(30))


def test_job_of_single_calls_can_be_read_while_it_is_open(grid: Grid) -> None:
    """The job behind submit is a job like any: its results can be read by its id, also by its own client."""
    futures = [grid.submit(square, x) for x in range(20)]
    concurrent.futures.wait(futures)
    job = grid.job(futures[0].id.partition("/")[0])
    values = list(itertools.islice(job.results(SOON_S), 20))

    assert values == [x * x for x in range(20)]
    assert job.progress() == (20, 0, None)
    assert grid.submit(square, 20).result(SOON_S) == 400
    assert [one.id for one in grid.jobs(mine=True)] == [job.id]


def test_unknown_ids(grid: Grid) -> None:
    """What nobody knows is NotFound, never pending."""
    job = grid.start(square, range(3))
    for ask in (lambda: grid.job("no-such-1"), lambda: grid.future("no-such-1/0"), lambda: grid.future(f"{job.id}/3")):
        with pytest.raises(pg.NotFound):
            ask()


def test_failed_tasks_of_a_job(grid: Grid) -> None:
    """results() raises at the first failed index; failed() lists them."""
    job = grid.start(lambda x: 10 // (x - 5), range(10))
    job.wait(SOON_S)

    assert job.state == "failed"
    assert [future.index for future in job.failed()] == [5]
    with pytest.raises(ZeroDivisionError):
        list(job.results(SOON_S))


def test_options_that_nobody_satisfies(grid: Grid) -> None:
    """strict=True refuses at once; otherwise the task waits and says why."""
    with pytest.raises(pg.Unschedulable, match="gpu"):
        grid.options(resources={"gpu": 1}, strict=True).submit(square, 1).result(SOON_S)
    future = grid.options(resources={"gpu": 1}).submit(square, 1)
    wait_until(lambda: "gpu" in future.explain(), SOON_S)

    assert future.state == "waiting"
    assert future.cancel()


def test_large_values_travel(grid: Grid) -> None:
    """20 MB there and back."""
    data = os.urandom(20_000_000)

    assert grid.submit(bytes, data).result(SOON_S) == data


def _has_lines(file: Path, wanted: int) -> bool:
    return file.exists() and len(file.read_text().split()) >= wanted


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_killed_node_and_a_waiting_client(tmp_path: Path) -> None:
    """SIGKILL of the node, twice, restarted on its directory: the waiting client gets every value once."""
    count = tmp_path / "count"

    def task(x: int, path: str) -> int:
        time.sleep(0.01)
        with open(path, "a") as file:  # noqa: PTH123
            file.write(f"{x}\n")
        return x * x

    with LocalGrid(slots=2) as local:
        grid = local.grid(0, timeout=SOON_S)
        futures = [grid.submit(task, x, str(count)) for x in range(100)]
        results = grid.starmap(task, [(x, str(count)) for x in range(100, 300)])
        for wanted in (40, 150):
            wait_until(functools.partial(_has_lines, count, wanted), SOON_S)
            local.nodes[0].kill()
            local.nodes[0].start()

        assert [future.result(SOON_S) for future in futures] == [x * x for x in range(100)]
        assert list(results) == [x * x for x in range(100, 300)]
        ran = count.read_text().split()
        assert len(set(ran)) == 300
        # What ran when the node was killed, and what was not on disk yet, may run again: some ten tasks, more where
        # a disk is slow. Had all that had been done run again, there would be 190 too many.
        assert len(ran) < 300 + 95
        grid.shutdown()


def test_killed_node_that_stays_away() -> None:
    """Without the node waiting ends in NodeGone after `timeout`."""
    with LocalGrid(slots=1) as local:
        grid = local.grid(0, timeout=1.0)
        future = grid.submit(time.sleep, 60)
        wait_until(lambda: future.state == "running", SOON_S)
        local.nodes[0].kill()

        place = f"--dir {local.nodes[0].dir}"
        with pytest.raises(
            pg.NodeGone, match=f"p2pgrid node {place}, then: p2pgrid show {future.id.partition('/')[0]} {place}"
        ):
            future.result(SOON_S)


def test_worker_that_dies_is_an_error_of_its_task() -> None:
    """os._exit in a task ends in WorkerCrashed for that task only."""
    with LocalGrid(slots=2) as local:
        grid = local.grid(0)
        bad = grid.submit(os._exit, 3)
        good = [grid.submit(slow_square, x) for x in range(20)]

        assert [future.result(SOON_S) for future in good] == [x * x for x in range(20)]
        with pytest.raises(pg.WorkerCrashed):
            bad.result(SOON_S)
        grid.shutdown()


# ---- embedded nodes and programs -------------------------------------------------------------------------------------


def test_embedded_node_of_a_program(tmp_path: Path) -> None:
    """A program without a node gets one, is told so once, and the node ends after it."""
    program = script(
        """
        import p2pgrid as pg
        def f(x): return x + 1
        if __name__ == "__main__":
            with pg.Grid() as grid:
                print(sum(grid.map(f, range(10))), grid._session.welcome.pid)
        """,
        tmp_path,
    )
    out, err = program.communicate(timeout=SOON_S)
    total, pid = out.split()

    assert total == "55"
    assert err.count("no node runs here (looked in ") == 1
    assert "which was not there" not in err
    assert "started one for this directory, " in err
    wait_until(lambda: not is_alive(int(pid)), SOON_S)


def test_two_programs_at_once_share_the_embedded_node(tmp_path: Path) -> None:
    """Of two that start a node at the same time one attaches to the other's."""
    text = """
        import p2pgrid as pg, sys
        if __name__ == "__main__":
            with pg.Grid() as grid:
                print(grid.submit(abs, -3).result(), grid._session.welcome.pid, flush=True)
                sys.stdin.read()
        """
    (tmp_path / "data").mkdir()
    programs = [script(text, tmp_path, stdin=subprocess.PIPE) for _ in range(3)]
    outs = [str(program.stdout and program.stdout.readline()).split() for program in programs]  # none leaves before
    errors = [program.communicate(timeout=SOON_S)[1] for program in programs]

    assert [out[:1] for out in outs] == [["3"]] * 3, errors
    assert len({pid for _, pid in outs}) == 1


def test_ctrl_c_cancels_within_seconds(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """SIGINT to a program that waits: its tasks, and what they started, are gone soon."""
    program = script(
        """
        import subprocess, time
        import p2pgrid as pg
        def spin(path):
            open(path + "-spin", "w").write(str(__import__("os").getpid()))
            while True: pass
        def sleep(path):
            child = subprocess.Popen(["sleep", "600"])
            open(path + "-sleep", "w").write(str(child.pid))
            child.wait()
        if __name__ == "__main__":
            with pg.Grid() as grid:
                a, b = grid.submit(spin, PATH), grid.submit(sleep, PATH)
                print("submitted", flush=True)
                a.result()
        """.replace("PATH", repr(str(tmp_path / "pid"))),
        tmp_path,
        P2PGRID_NODE_SLOTS="2",
    )
    files = [tmp_path / "pid-spin", tmp_path / "pid-sleep"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), SOON_S)
    started = time.monotonic()
    os.kill(program.pid, signal.SIGINT)
    program.communicate(timeout=SOON_S)
    ended = time.monotonic() - started
    wait_until(lambda: not any(is_alive(int(file.read_text())) for file in files), SOON_S)
    gone = time.monotonic() - started
    record_property("seconds", f"program ended after {ended:.2f}, its tasks after {gone:.2f}")

    assert program.returncode != 0


def test_embedded_node_that_dies_is_started_again(tmp_path: Path) -> None:
    """SIGKILL of the embedded node: the program starts it again on its directory and gets every value."""
    program = script(
        """
        import os, signal, time
        import p2pgrid as pg
        def f(x): time.sleep(0.01); return x * x
        if __name__ == "__main__":
            with pg.Grid() as grid:
                results = grid.map(f, range(100))
                first = next(results)
                os.kill(grid._session.welcome.pid, signal.SIGKILL)
                print(first + sum(results))
        """,
        tmp_path,
    )
    out, err = program.communicate(timeout=SOON_S)

    assert out.strip() == str(sum(x * x for x in range(100))), err


def test_ctrl_c_without_with_cancels_too(tmp_path: Path) -> None:
    """A program that uses no `with` and is interrupted leaves nothing running either."""
    program = script(
        """
        import os, time
        import p2pgrid as pg
        def spin(path):
            open(path, "w").write(str(os.getpid()))
            while True: pass
        if __name__ == "__main__":
            list(pg.map(spin, [PATH]))
        """.replace("PATH", repr(str(tmp_path / "pid"))),
        tmp_path,
    )
    file = tmp_path / "pid"
    wait_until(lambda: file.exists() and bool(file.read_text()), SOON_S)
    os.kill(program.pid, signal.SIGINT)
    _, err = program.communicate(timeout=SOON_S)
    wait_until(lambda: not is_alive(int(file.read_text())), SOON_S)

    assert "KeyboardInterrupt" in err


def test_second_ctrl_c_returns_at_once(tmp_path: Path) -> None:
    """While the first Ctrl-C is still being carried out (the node is stopped) another one ends the program."""
    program = script(
        """
        import os, signal, time
        import p2pgrid as pg
        if __name__ == "__main__":
            with pg.Grid() as grid:
                future = grid.submit(time.sleep, 60)
                while future.state != "running": time.sleep(0.01)
                os.kill(grid._session.welcome.pid, signal.SIGSTOP)
                print(grid._session.welcome.pid, flush=True)
                future.result()
        """,
        tmp_path,
    )
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    time.sleep(0.2)
    os.kill(program.pid, signal.SIGINT)
    time.sleep(0.5)
    os.kill(program.pid, signal.SIGINT)
    started = time.monotonic()
    program.communicate(timeout=SOON_S)
    took = time.monotonic() - started
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_alive(pid), SOON_S)

    assert took < SOON_S / 2


def test_program_without_with_waits_at_its_end(tmp_path: Path) -> None:
    """As with any Executor, what was submitted is done before the program ends."""
    program = script(
        """
        import p2pgrid as pg
        def write(path): import time; time.sleep(0.3); open(path, "w").write("done")
        if __name__ == "__main__":
            pg.submit(write, PATH)
        """.replace("PATH", repr(str(tmp_path / "written"))),
        tmp_path,
    )
    _, err = program.communicate(timeout=SOON_S)

    assert program.returncode == 0, err
    assert (tmp_path / "written").read_text() == "done"


def test_nodes_of_a_killed_program_end(tmp_path: Path) -> None:
    """A LocalGrid whose program is killed with SIGKILL leaves no node behind."""
    program = script(
        """
        import time
        import p2pgrid as pg
        if __name__ == "__main__":
            with pg.LocalGrid() as local:
                print(local.nodes[0].pid, local.nodes[0].dir, flush=True)
                time.sleep(60)
        """,
        tmp_path,
    )
    assert program.stdout is not None
    pid, directory = program.stdout.readline().split()
    program.kill()
    program.communicate()
    wait_until(lambda: not is_alive(int(pid)), SOON_S)
    shutil.rmtree(Path(directory).parent)


# ---- others' schedulers ----------------------------------------------------------------------------------------------


def test_dask_array_on_the_grid(grid: Grid) -> None:
    """Dask takes the grid as its scheduler."""
    dask = pytest.importorskip("dask")
    array = pytest.importorskip("dask.array")
    with dask.config.set(scheduler=grid):
        total = (array.ones((1000, 1000), chunks=(250, 250)) + 1).sum().compute()

    assert float(total) == 2_000_000.0


def test_many_threads_submit(grid: Grid) -> None:
    """Ten threads at once, each gets its own values."""
    got: dict[int, list[Any]] = {}

    def work(k: int) -> None:
        futures: list[concurrent.futures.Future[int]] = [grid.submit(square, k * 1000 + i) for i in range(300)]
        got[k] = [future.result(SOON_S) for future in concurrent.futures.as_completed(futures)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # a future that finishes just while as_completed begins was once told twice
    try:
        for _ in range(5):
            threads = [threading.Thread(target=work, args=(k,)) for k in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert all(sorted(got[k]) == [(k * 1000 + i) ** 2 for i in range(300)] for k in range(10))


def test_a_job_is_kept_longer_and_forgotten() -> None:
    """Job.keep_until and Job.forget; after that nobody knows it."""
    with LocalGrid(slots=1) as local:
        grid = local.grid(0)
        job = grid.start(abs, range(3))
        later = job.expires + 1000.0
        job.keep_until(later)
        assert job.wait(SOON_S)
        assert job.expires == later
        job.forget()

        with pytest.raises(pg.NotFound):
            job.results(timeout=SOON_S)
        assert grid.jobs() == []


def test_async_tasks_wait_together(grid: Grid) -> None:
    """A hundred coroutines that only wait share two slots, as they would share an event loop."""
    here: set[int] = set()  # of each worker process

    async def pause(x: int) -> tuple[int, int]:
        here.add(x)
        together = len(here)
        await asyncio.sleep(0.2)
        here.remove(x)
        return x, together

    done = list(grid.map(pause, range(100)))
    print(f"{max(together for _, together in done)} at once in a worker")

    assert [x for x, _ in done] == list(range(100))
    assert max(together for _, together in done) >= 10
