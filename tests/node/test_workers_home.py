"""Where workers live: interpreters, folders, paths, full sockets. Real processes."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import trio

from p2pgrid.core.current import current
from p2pgrid.core.errors import GridError
from p2pgrid.core.wire import pack
from p2pgrid.node.events import Segment
from p2pgrid.node.workers import PoolOptions, WorkerPool
from tests.node.pool_harness import CALLS, ITEMS, MIB, Gate, Harness, at_gate, bad_python, pooled, serving
from tests.pythons import another_python


@pytest.mark.slow
def test_another_interpreter_works_with_nothing_installed(tmp_path: Path) -> None:
    """It runs functions that go by name, refuses those that another Python pickled, and knows `pg.current()`."""
    path = another_python()

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
    assert not list((h.pool._scratch / "0").rglob("rubbish"))


def litter() -> None:
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
    return pickle.dumps(((b"x" * size,), {}))
