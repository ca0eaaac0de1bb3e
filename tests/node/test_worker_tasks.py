"""What one task does to its worker child, and what it cannot do to the next task. Real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.core import current
from p2pgrid.core.errors import NotSerializable
from p2pgrid.core.wire import pack
from p2pgrid.node.events import Segment
from tests.node.pool_harness import ITEMS, JOB, TUPLES, Gate, Harness, pooled, wait_at

# ---- values ---------------------------------------------------------------------------------------------------------


def square(x: int) -> int:
    return x * x


def add(x: int, y: int) -> int:
    return x + y


@pooled()
async def test_calls_give_their_values(h: Harness) -> None:
    """Shape 0: each task has its own arguments."""
    report = await h.do(add, [(1, 2), (3, 4)])

    assert report.values == {0: 3, 1: 7}


@pooled()
async def test_packed_items_give_their_values(h: Harness) -> None:
    """Shape 1: many tasks, few frames, every value at its index."""
    report = await h.do(square, range(100_000), shape=ITEMS)

    assert report.values == {x: x * x for x in range(100_000)}
    assert report.frames < 10_000  # one every 20 ms, however many that makes on a busy machine


@pooled()
async def test_packed_tuples_are_spread(h: Harness) -> None:
    """Shape 2: the items are argument tuples."""
    report = await h.do(add, [(x, 1) for x in range(1000)], shape=TUPLES)

    assert report.values == {x: x + 1 for x in range(1000)}


@pooled()
async def test_none_costs_no_bytes_and_comes_back(h: Harness) -> None:
    """A task that returns nothing returned None."""
    report = await h.do(partial(print, end=""), [()] * 3)

    assert report.values == {0: None, 1: None, 2: None}


@pooled()
async def test_a_segment_in_the_middle_of_a_blob_gets_its_items(h: Harness) -> None:
    """The blob is sent once; a later run names it, and an offset in it."""
    fn, union = b"f" * 16, h.union(square)
    blob = pickle.dumps(list(range(100)))
    first = await h.finished(h.send([Segment(10, 20, fn, ITEMS, blob, 10, b"k")], {fn: union}))
    second = await h.finished(h.send([Segment(90, 92, fn, ITEMS, blob, 90, b"k")], {fn: union}))

    assert first.values == {x: x * x for x in range(10, 20)}
    assert second.values == {90: 8100, 91: 8281}


@pooled()
async def test_more_blobs_and_functions_than_a_child_keeps(h: Harness) -> None:
    """What was pushed out is sent again; what does not fit travels inside the run."""
    unions = [h.union(partial(add, n)) for n in range(300)]
    codes = {n.to_bytes(16, "big"): union for n, union in enumerate(unions)}
    seen = {}
    for start in (0, 100, 200, 0, 50):
        segments = [
            Segment(n, n + 1, n.to_bytes(16, "big"), ITEMS, pickle.dumps([1000]), 0, b"%d" % n)
            for n in range(start, start + 100)
        ]
        seen.update((await h.finished(h.send(segments, codes))).values)

    assert seen == {n: 1000 + n for n in range(300)}


@pooled()
async def test_a_large_blob_and_a_large_value_pass(h: Harness) -> None:
    """50 MB in, 50 MB out: more than any socket buffer, either way."""
    report = await h.do(bytes.upper, [b"x" * 50_000_000], shape=ITEMS)

    assert report.values[0] == b"X" * 50_000_000


class Local:
    """An instance of this travels by value of its class."""

    def __init__(self, x: int) -> None:
        self.x = x


def make_local(x: int) -> Local:
    return Local(x)


def make_lambda(x: int) -> Any:
    return lambda: x


@pooled()
async def test_values_that_only_cloudpickle_knows(h: Harness) -> None:
    """A lambda, and an instance of a class that no module holds, are values as any."""
    lambdas = await h.do(make_lambda, [5, 6], shape=ITEMS)
    instances = await h.do(make_local, [(7,)])

    assert [lambdas.values[i]() for i in (0, 1)] == [5, 6]
    assert instances.values[0].x == 7


def lock_if_odd(x: int) -> Any:
    return threading.Lock() if x % 2 else x


@pooled()
async def test_a_value_that_cannot_be_pickled_fails_its_own_task_only(h: Harness) -> None:
    """Its neighbours in the packed list keep their values."""
    packed = await h.do(lock_if_odd, range(4), shape=ITEMS)
    calls = await h.do(lock_if_odd, [(0,), (1,)])

    assert packed.values == {0: 0, 2: 2}
    assert {i: type(e) for i, e in packed.errors.items()} == {1: NotSerializable, 3: NotSerializable}
    assert "lock" in str(packed.errors[1])
    assert (calls.values, list(calls.errors)) == ({0: 0}, [1])


# ---- exceptions -----------------------------------------------------------------------------------------------------


def stumble(x: int) -> int:
    if x == 700:
        raise ValueError("seven hundred")
    if x == 701:
        raise StopIteration(x)
    return x


@pooled()
async def test_an_exception_in_a_fast_slice_names_its_task(h: Harness) -> None:
    """StopIteration too, which loops swallow."""
    report = await h.do(stumble, range(2000), shape=ITEMS)

    assert {i: (type(e), e.args) for i, e in report.errors.items()} == {
        700: (ValueError, ("seven hundred",)),
        701: (StopIteration, (701,)),
    }
    assert len(report.values) == 1998


def decode_json() -> None:
    json.loads("{")


def check_output() -> None:
    subprocess.run([sys.executable, "-c", "raise SystemExit(3)"], check=True)


def decode_utf8() -> None:
    b"\xff".decode()


def open_missing() -> None:
    Path("/nonexistent/file").read_text()


def group() -> None:
    raise ExceptionGroup("two", [ValueError(1), KeyError("k")])


def exit_politely() -> None:
    sys.exit(4)


def interrupt() -> None:
    raise KeyboardInterrupt


def recurse() -> None:
    recurse()


def use_up() -> None:
    raise MemoryError


def raised_by(function: Callable[[], None]) -> BaseException:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - the very thing to compare with
        return error
    raise AssertionError("it raised nothing")


@pooled()
async def test_exceptions_come_back_as_raised(h: Harness) -> None:
    """Type, text and attributes; what would end a process ends only its task."""
    for function in (decode_json, check_output, decode_utf8, open_missing, group, interrupt, use_up):
        expected = raised_by(function)
        report = await h.do(function, [()])

        assert type(report.errors[0]) is type(expected)
        assert str(report.errors[0]) == str(expected)

    leaving = (await h.do(exit_politely, [()])).errors[0]
    deep = (await h.do(recurse, [()])).errors[0]

    assert isinstance(leaving, SystemExit)
    assert leaving.code == 4
    assert isinstance(deep, RecursionError)
    assert not h.died


class Unpicklable:
    """Raises where it is unpickled."""

    def __reduce__(self) -> Any:
        return (int, ("not a number",))


@pooled()
async def test_arguments_that_cannot_be_loaded_fail_their_task(h: Harness) -> None:
    """One bad argument is its own task's failure."""
    report = await h.do(repr, [(1,), (Unpicklable(),), (3,)])

    assert report.values == {0: "1", 2: "3"}
    assert isinstance(report.errors[1], ValueError)


@pooled()
async def test_a_function_that_cannot_be_loaded_here_gives_its_tasks_back(h: Harness) -> None:
    """A missing module and another Python make the worker unfit; the tasks have not failed."""
    missing = await h.do(pack(["pickle", sys.version_info.minor, b"cno_such_module\nf\n."]), [(), ()])
    foreign = await h.do(pack(["pickle", 8, b"N."]), [(), ()])

    assert (missing.returned, missing.errors) == ([(0, 2)], {})
    assert "no_such_module" in missing.unfit
    assert foreign.returned == [(0, 2)]
    assert "3.8" in foreign.unfit


@pooled()
async def test_a_function_of_an_installed_module_goes_by_name(h: Harness) -> None:
    """The tag "import" names module and function."""
    report = await h.do(pack(["import", "os.path:basename", None]), [("/a/b",)])

    assert report.values == {0: "b"}


# ---- what a task does to the process ---------------------------------------------------------------------------------


def vandalise(kind: str) -> None:
    match kind:
        case "close":
            os.close(1)
            os.close(2)
        case "replace":
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        case "dup":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        case "leave":
            os.chdir("/")
        case "remove":
            home = Path.cwd()
            os.chdir("/")
            home.rmdir()
        case "alarm":
            signal.setitimer(signal.ITIMER_REAL, 3600)  # not so soon that it could come before the task has ended
        case "handler":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "close file":
            sys.stdout.close()
        case "close buffer":
            sys.stderr.buffer.close()


def well(_: int) -> tuple[str, bool, float]:
    print("fine")
    os.write(1, b"and fine\n")
    alarm = signal.getitimer(signal.ITIMER_REAL)[0]
    return str(Path.cwd()), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, alarm


@pooled()
async def test_what_a_task_does_to_its_process_ends_with_it(h: Harness) -> None:
    """Closed descriptors, replaced streams, another folder, an alarm, a handler: the next task sees none of it."""
    home = (await h.do(well, [(0,)])).values[0]
    assert home[1:] == (True, 0.0)
    for kind in ("close", "replace", "dup", "leave", "remove", "alarm", "handler", "close file", "close buffer"):
        await h.do(vandalise, [(kind,)])
        report = await h.do(well, [(0,)])

        assert report.values[0] == home, kind
        assert report.logs[0] == b"fine\nand fine\n", kind
    assert not h.died


def fork_and_return(path: str) -> int:
    if os.fork() == 0:
        with open(path, "a") as file:  # noqa: PTH123
            file.write("child\n")
        return -1
    os.wait()
    return 1


@pooled()
async def test_a_forked_child_that_returns_never_speaks_for_the_task(h: Harness) -> None:
    """It ends where it comes back; each task counts once."""
    path = h.pool._scratch.parent / "forks"
    calls = await h.do(fork_and_return, [(str(path),)] * 2)
    packed = await h.do(fork_and_return, [str(path)] * 2, shape=ITEMS)

    assert calls.values == packed.values == {0: 1, 1: 1}
    assert path.read_text() == "child\n" * 4
    assert not h.died


def environment(name: str) -> str | None:
    return os.environ.get(name)


@pooled()
async def test_env_lasts_for_the_run(h: Harness) -> None:
    """It is set for the run's tasks and gone after them."""
    during = await h.do(environment, [("COLOUR",)], env={"COLOUR": "blue"})
    after = await h.do(environment, [("COLOUR",)])

    assert (during.values[0], after.values[0]) == ("blue", None)


def surroundings() -> dict[str, Any]:
    import resource  # noqa: PLC0415

    return {
        "stdin": sys.stdin.read(),
        "nice": os.nice(0) >= 5,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "threads": os.environ["OMP_NUM_THREADS"],
        "secrets": [name for name in os.environ if "JOIN" in name],
        "path": [entry for entry in sys.path if entry in ("", ".")],
        "group": os.getpgrp() == os.getpid(),
    }


def test_the_surroundings_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty stdin, low priority, no core files, one thread, no secrets, no current folder on the path, own group."""
    monkeypatch.setenv("P2PGRID_JOIN", "secret")
    monkeypatch.setenv("P2PGRID_NODE_JOIN", "secret")
    seen: dict[str, Any] = {}

    @pooled()
    async def look(h: Harness) -> None:
        seen.update((await h.do(surroundings, [()])).values[0])

    look(tmp_path)

    assert seen == {
        "stdin": "", "nice": True, "core": (0, 0), "threads": "1", "secrets": [], "path": [], "group": True,
    }  # fmt: skip


# ---- what a task knows of itself -------------------------------------------------------------------------------------


def who(_: int) -> tuple[Any, ...]:
    me = current.current()
    assert me is not None
    (me.dir / "file").write_text("x")
    return me.job, me.index, me.attempt, me.node, me.seed, str(me.dir), len(list(me.dir.iterdir()))


@pooled()
async def test_a_task_knows_itself(h: Harness) -> None:
    """Job, index, attempt, node, seed, and a folder that is gone afterwards."""
    values = (await h.do(who, range(3), shape=ITEMS, attempt=2)).values

    assert [values[i][:5] for i in range(3)] == [
        ("calm-river-42", i, 2, "n0", current.task_seed(JOB, i)) for i in range(3)
    ]
    assert [values[i][6] for i in range(3)] == [1, 1, 1]
    assert not any(os.path.exists(f"{values[i][5]}/file") for i in range(3))  # noqa: PTH110, ASYNC240 - local, and quick
    assert current.current() is None


def report_progress(gate: str) -> None:
    current.progress(3, 10, "three of ten")
    wait_at(gate, "said")


@pooled()
async def test_progress_is_seen_while_the_task_runs(h: Harness) -> None:
    """It reaches the pool without a message."""
    with Gate(h.pool._scratch.parent) as gate:
        number = h.start(report_progress, [(gate.path,)])
        await gate.arrival()
        state = h.pool.states()[0]
        gate.open()
        await h.finished(number)

    assert (state.state, state.index, state.progress) == ("busy", 0, (3.0, 10.0, "three of ten"))
    assert h.pool.states()[0].progress is None


def test_seeds_depend_on_job_and_index_only() -> None:
    """63 bits, the same on every machine and for ever."""
    assert current.task_seed(b"0" * 16, 0) == current.task_seed(b"0" * 16, 0)
    assert len({current.task_seed(JOB, i) for i in range(1000)}) == 1000
    assert all(0 <= current.task_seed(JOB, i) < 1 << 63 for i in range(100))


def change(items: list[int]) -> list[int]:
    items.append(len(items))
    return items


@pooled()
async def test_a_second_attempt_gets_a_fresh_argument(h: Harness) -> None:
    """A task may change its argument; its next attempt does not see that."""
    first = await h.do(change, [[]], shape=ITEMS, attempt=1)
    second = await h.do(change, [[]], shape=ITEMS, attempt=2)

    assert first.values == second.values == {0: [0]}


# ---- who is to blame -------------------------------------------------------------------------------------------------


class Bomb:
    """Ends the process where it is pickled, or where it is loaded."""

    def __init__(self, *, in_transit: bool) -> None:
        self.in_transit = in_transit

    def __reduce__(self) -> Any:
        if self.in_transit:
            return (os._exit, (9,))
        os._exit(8)


def make_bomb(x: int) -> Any:
    return Bomb(in_transit=False) if x == 2 else x


@pooled()
async def test_a_crash_outside_the_function_names_a_task_as_well(h: Harness) -> None:
    """A result that ends the process while it is pickled, arguments and a function that do while they are loaded."""
    h.start(make_bomb, [(i,) for i in range(3)])
    result = await h.death(1)
    h.start(make_bomb, [2], shape=ITEMS)
    packed_result = await h.death(2)
    h.start(repr, [(Bomb(in_transit=True),)])
    argument = await h.death(3)
    h.start(repr, [Bomb(in_transit=True)], shape=ITEMS)
    packed_argument = await h.death(4)
    h.start(partial(repr, Bomb(in_transit=True)), [()])
    function = await h.death(5)

    deaths = [result, packed_result, argument, packed_argument, function]
    assert [(death.index, death.detail) for death in deaths] == [
        (2, "exited with code 8"),
        (0, "exited with code 8"),
        (0, "exited with code 9"),
        (0, "exited with code 9"),
        (0, "exited with code 9"),
    ]


def pool_of_processes(n: int) -> list[int]:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        print("parent")
        return pool.map(abs, range(n))


@pooled()
async def test_a_task_may_use_multiprocessing(h: Harness) -> None:
    """Its forks neither hold nor disturb the worker's pipe."""
    report = await h.do(pool_of_processes, [(5,)])

    assert report.values == {0: [0, 1, 2, 3, 4]}
    assert report.logs == {0: b"parent\n"}


@pooled()
async def test_an_environment_that_cannot_be_set_fails_the_tasks(h: Harness) -> None:
    """Not the worker."""
    report = await h.do(abs, [(1,), (2,)], env={"A": "nul\0"})

    assert {i: type(e) for i, e in report.errors.items()} == {0: ValueError, 1: ValueError}
    assert not h.died
