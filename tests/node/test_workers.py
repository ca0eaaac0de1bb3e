"""The pool: recall, kill, limits, crashes and their successors. Real processes."""
# ruff: noqa: T201 - times are printed, and tasks print

from __future__ import annotations

import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pgrid.core.errors import GridError
from p2pgrid.core.wire import pack
from p2pgrid.node import reaper
from p2pgrid.node.events import Segment
from p2pgrid.node.workers import PoolOptions, WorkerPool
from tests.node.pool_harness import CALLS, ITEMS, Gate, Harness, all_gone, pooled, serving, wait_at

MIB = 1024 * 1024


def spin() -> None:
    while True:
        pass


def at_gate(gate: str, index: int) -> int:
    wait_at(gate, index)
    return index


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
        assert [report.returned for report in reports] == [[(1, 50)], [(0, 50)]]
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
    for fd in range(3, 64):
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


def bad_python(folder: Path) -> Path:
    """Make an interpreter that says one line and fails."""
    path = folder / "python-bad"
    path.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    path.chmod(0o755)
    return path


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
            with trio.fail_after(20):
                await warned.wait()
            births = pool._births
            pool.stop()

        assert births == 5
        assert "no such luck" in said[0].text

    trio.run(main)


# ---- limits ----------------------------------------------------------------------------------------------------------


def spin_at(bad: int, index: int) -> int:
    if index == bad:
        spin()
    return index


@pytest.mark.parametrize("shape", [CALLS, 2])
def test_a_task_over_its_time_is_named(tmp_path: Path, shape: int) -> None:
    """The limit is per task, in fast runs too."""

    @pooled()
    async def wait(h: Harness) -> None:
        h.start(spin_at, [(2000, i) for i in range(4000)], shape=shape, limits=(0.5, None))
        died = await h.death()

        assert (died.cause, died.index) == ("timeout", 2000)
        assert "0.5 s" in died.detail

    wait(tmp_path)


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
        trim = child.trim_output

        def watched() -> None:
            sizes.append(os.fstat(child._output_fd).st_size)
            trim()

        child.trim_output = watched  # type: ignore[method-assign]
        died = await h.death()

        assert died.cause == "timeout"
        assert "xxxx" in died.stderr
        assert sum(size > MIB for size in sizes) > 3

    listen(tmp_path)


# ---- what tasks start ------------------------------------------------------------------------------------------------


def start_family(gate: str) -> None:
    families = [
        subprocess.Popen(["sleep", "600"]),
        subprocess.Popen(["sleep", "600"], start_new_session=True),
        subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True),
    ]
    wait_at(gate, " ".join(str(process.pid) for process in families))
    spin()


@pooled()
async def test_kill_takes_all_that_a_task_started(h: Harness) -> None:
    """Grandchildren in the group, in sessions of their own, and their children."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(start_family, [(gate.path,)])
        pids = [int(pid) for pid in (await gate.arrival()).split()]
        gate.open()
        token = h.pool._token
        family = reaper.marked(token)
        started = time.monotonic()
        h.kill(number, None)
        await h.until(lambda: h.died)
        took = time.monotonic() - started

    print(f"all {len(family)} processes gone {took * 1000:.0f} ms after the kill")
    assert set(pids) <= set(family)
    assert all_gone(family, 5)


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
async def test_stop_ends_everything_within_a_second(h: Harness) -> None:
    """Busy loops, sleepers and threads."""
    await h.do(leave_thread, [()])
    await h.do(leave_daemon, [()])
    h.start(spin, [()])
    token = h.pool._token
    everyone = reaper.marked(token)
    started = time.monotonic()
    h.pool.stop()

    assert await trio.to_thread.run_sync(all_gone, everyone, 5)
    took = time.monotonic() - started
    print(f"all {len(everyone)} processes gone {took * 1000:.0f} ms after stop")
    assert took < 5


@pytest.mark.slow
def test_a_gentle_stop_lets_runs_end(tmp_path: Path) -> None:
    """stop(kill=False): what is with a worker is done and reported, then the pool ends."""

    async def main() -> None:
        harness = Harness(tmp_path, 1, [Path(sys.executable)], PoolOptions())
        with Gate(tmp_path) as gate, trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await nursery.start(harness.pool.serve)
                await harness.until(lambda: all(harness.ready))
                number = harness.start(at_gate, [(gate.path, 0)])
                await gate.arrival()
                harness.pool.stop(kill=False)
                gate.open()

        assert harness.reports[number].values == {0: 0}

    trio.run(main)


# ---- interpreters ----------------------------------------------------------------------------------------------------


def other_python() -> Path:
    """Return an interpreter of another minor version, with nothing installed."""
    named = os.environ.get("P2PGRID_TEST_PYTHON2")
    names = [named] if named else [f"python3.{minor}" for minor in (12, 13, 11) if minor != sys.version_info.minor]
    for name in names:
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return Path(path)
    pytest.skip("no other Python here")


@pytest.mark.slow
def test_another_interpreter_works_with_nothing_installed(tmp_path: Path) -> None:
    """It runs functions that go by name, refuses those that another Python pickled, and knows `pg.current()`."""
    path = other_python()

    async def main() -> None:
        async with serving(tmp_path, 1, [path], PoolOptions()) as h:
            (interpreter,) = await h.pool.interpreters()
            minor = interpreter.version[1]
            by_name = await h.do(pack(["import", "os.path:basename", None]), [("/a/b",)])
            packed = await h.do(pack(["import", "math:sqrt", None]), [4.0, 9.0], shape=ITEMS)
            refused = await h.do(abs, [(-1,)])
            own = await h.do(pack(["pickle", minor, b"cp2pgrid.core.current\nrunning_index\n."]), [()])
            failing = await h.do(pack(["import", "json:loads", None]), [("{",)])

        assert minor != sys.version_info.minor
        assert (by_name.values, packed.values, own.values) == ({0: "b"}, {0: 2.0, 1: 3.0}, {0: 0})
        assert refused.returned == [(0, 1)]
        assert f"3.{sys.version_info.minor}" in refused.unfit
        assert "JSONDecodeError" in type(failing.errors[0]).__name__

    trio.run(main)


@pytest.mark.slow
def test_what_is_no_python_is_said_in_one_line(tmp_path: Path) -> None:
    """The caller's mistake, with what to do next."""
    pool = WorkerPool(1, [bad_python(tmp_path)], tmp_path, "n0", lambda _: None, log=lambda _: None)
    with pytest.raises(GridError, match="is no Python") as caught:
        trio.run(pool.interpreters)

    assert caught.value.code == "usage"


@pytest.mark.slow
def test_modules_of_the_current_folder_shadow_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's node.py, pickle.py or msgpack.py beside the daemon never reaches a worker."""
    for name in ("node", "pickle", "msgpack", "cloudpickle", "p2pgrid"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hostile')")
    monkeypatch.chdir(tmp_path)

    @pooled()
    async def run(h: Harness) -> None:
        assert (await h.do(abs, [(-1,)])).values == {0: 1}

    (tmp_path / "dir").mkdir()
    run(tmp_path / "dir")


@pooled()
async def test_a_dead_worker_leaves_no_folder_of_its_task(h: Harness) -> None:
    """The scratch folder of a task that crashed is gone when the next worker is there."""
    h.start(litter, [()])
    died = await h.death()

    assert died.index == 0
    assert not list((h.pool._scratch / "0").iterdir())


def litter() -> None:
    from p2pgrid.core.current import current  # noqa: PLC0415

    me = current()
    assert me is not None
    (me.dir / "rubbish").write_text("x")
    os._exit(1)


@pooled()
async def test_a_run_larger_than_the_socket_does_not_block_the_pool(h: Harness) -> None:
    """While a worker is busy, 40 MB wait for it; the loop goes on, and all of it arrives."""
    with Gate(h.pool._scratch.parent) as gate:
        first = h.start(at_gate, [(gate.path, 0)])
        await gate.arrival()
        union, fn = h.union(len), b"l" * 16
        segment = Segment(0, 40, fn, CALLS, [pack_bytes(MIB)] * 40, 0, b"")
        second = h.send([segment], {fn: union})
        gate.open()
        await h.finished(first)
        report = await h.finished(second)

    assert report.values == dict.fromkeys(range(40), MIB)


def pack_bytes(size: int) -> bytes:
    """Return pickled arguments that hold `size` bytes."""
    import pickle  # noqa: PLC0415

    return pickle.dumps(((b"x" * size,), {}))
