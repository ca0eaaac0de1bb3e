"""The arena by itself: one large array from the client to two workers, and one result back, without daemon and grid.

So far the arena and the form of objects by themselves: an owner that gives out places, as the daemon will, two workers
that map it, and this process as the client. Beside multiprocessing's shared_memory by hand, Pool, ProcessPoolExecutor,
and joblib, Ray and Dask where they can be imported, round by round in one run (DESIGN §13).

    share    from the client's array until both workers have read one number of every page of it
    copies   what that adds to the memory of all processes (PSS) while all hold it, in arrays, beside the client's own;
             of the first round: later ones use pages again that the arena keeps, and would show 0
    result   from the request until the client has read one number of every page of an array that a worker has
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.beside import started_ray
from p2pgrid.core.mapped import Mapped
from p2pgrid.core.objects import load, serialise
from p2pgrid.core.pieces import manifest_of
from p2pgrid.node.arena import Arena

WORKERS = 2
SHARED_BYTES = 100 * 1000**2
RESULT_BYTES = 256 * 1024**2
WARM_BYTES = 512 * 1024**2
PAGE_ITEMS = 4096 // 8

_kept: dict[str, Any] = {}  # what a worker keeps between calls


class System(NamedTuple):
    """One way of moving arrays; its processes run already.

    `share` lets both workers touch an array and keep it, and returns what they found; `result` fetches what a worker
    has; `forget` ends a round.
    """

    name: str
    pids: list[int]
    share: Callable[[Any], list[float]]
    result: Callable[[], Any]
    forget: Callable[[], object]


def touch(array: Any) -> float:
    """Read one number of every page; the process keeps the array, as a worker does while its job lasts."""
    _kept["shared"] = array
    return float(array[::PAGE_ITEMS].sum())


def made() -> Any:
    """Return the array that this process has, made at the first call."""
    if "made" not in _kept:
        _kept["made"] = np.arange(RESULT_BYTES // 8, dtype=np.float64)
    return _kept["made"]


def prepare(seconds: float) -> int:
    """Forget what is shared, have the result, leave the others time to do the same; return the process."""
    _kept.pop("shared", None)
    _kept.pop("memory", None)
    made()
    time.sleep(seconds)
    return os.getpid()


def pss_bytes(pids: list[int]) -> int:
    """Return what these processes hold, shared pages divided among those that map them."""
    size = 0
    for pid in {*pids, os.getpid()}:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                size += int(line.split()[1]) * 1024
    return size


# ---- ours ------------------------------------------------------------------------------------------------------------


def _own(pipes: list[Connection], arena: Arena) -> None:
    """Give out places to whoever asks, until all have gone."""
    keys: list[bytes] = []
    while pipes:
        for pipe in multiprocessing.connection.wait(pipes):
            assert isinstance(pipe, Connection)
            try:
                size = pipe.recv()
            except EOFError:
                pipes.remove(pipe)
                continue
            if size:
                keys.append(b"%d" % len(keys))
                place = arena.allocate(keys[-1], size)
                if place.cold:
                    arena.reserve(place)
                pipe.send((place.offset, size))
            else:
                while keys:
                    arena.free(keys.pop())
                pipe.send(None)


def _put(owner: Connection, mapped: Mapped, value: Any) -> tuple[int, int]:
    done = serialise(value)
    owner.send(done.size)
    offset, size = owner.recv()
    mapped.write(offset, done)
    return offset, size


def _work(orders: Connection, owner: Connection, arena: Arena) -> None:
    mapped = Mapped(arena.fd, arena.size)
    with contextlib.suppress(EOFError):
        while True:
            match orders.recv():
                case (offset, size):
                    orders.send(touch(load(mapped.view(offset, size, released=int))))
                case "result":
                    orders.send(_put(owner, mapped, made()))
                case _:
                    orders.send(prepare(0.0))


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[System]:
    """Yield the arena, with an owner, two workers, and this process as the client."""
    context = multiprocessing.get_context("fork")
    arena = Arena(1024**3, folder)
    while (span := arena.wants_warmth(WARM_BYTES)) is not None:  # as a node does in the background
        arena.warmed(span, done=arena.warm_up(span))
    asking = [context.Pipe() for _ in range(WORKERS + 1)]
    ordering = [context.Pipe() for _ in range(WORKERS)]
    processes = [context.Process(target=_own, args=([there for _, there in asking], arena), daemon=True)]
    for (here, _), (_, orders) in zip(asking, ordering, strict=False):
        processes.append(context.Process(target=_work, args=(orders, here, arena), daemon=True))
    for process in processes:
        process.start()
    mapped = Mapped(arena.fd, arena.size)
    owner, workers = asking[-1][0], [here for here, _ in ordering]

    def ask(what: Any) -> list[Any]:
        for worker in workers:
            worker.send(what)
        return [worker.recv() for worker in workers]

    def result() -> Any:
        workers[0].send("result")
        offset, size = workers[0].recv()
        return load(mapped.view(offset, size, released=int))

    def forget() -> None:
        ask("forget")
        owner.send(0)
        owner.recv()

    forget()
    pids = [process.pid for process in processes if process.pid is not None]
    yield System("p2pgrid arena", pids, lambda array: ask(_put(owner, mapped, array)), result, forget)
    for process in processes:
        process.kill()
        process.join()
    mapped.close()
    arena.close()


# ---- others ----------------------------------------------------------------------------------------------------------


def _touch_named(name: str, count: int) -> float:
    _kept["memory"] = memory = SharedMemory(name)
    return touch(np.ndarray((count,), np.float64, memory.buf))


def _made_named(name: str) -> None:
    memory = SharedMemory(name)
    np.ndarray(made().shape, np.float64, memory.buf)[:] = made()
    memory.close()


@contextlib.contextmanager
def by_executor(name: str, executor: Executor, *, named: bool = False) -> Iterator[System]:
    """Yield an Executor that pickles, or (`named`) whose user has shared memory with a name for each array."""
    held: list[SharedMemory] = []

    def all_of(call: Callable[..., Any], *arguments: Any) -> list[Any]:
        return [future.result() for future in [executor.submit(call, *arguments) for _ in range(WORKERS)]]

    def named_share(array: Any) -> list[float]:
        held.append(SharedMemory(create=True, size=array.nbytes))
        np.ndarray(array.shape, array.dtype, held[-1].buf)[:] = array
        return all_of(_touch_named, held[-1].name, array.size)

    def named_result() -> Any:
        held.append(SharedMemory(create=True, size=RESULT_BYTES))
        executor.submit(_made_named, held[-1].name).result()
        return np.ndarray((RESULT_BYTES // 8,), np.float64, held[-1].buf)

    def forget() -> None:
        all_of(prepare, 0.2)
        gc.collect()
        while held:
            memory = held.pop()
            memory.close()
            memory.unlink()

    pids = list(set(all_of(prepare, 1.0)))
    if named:
        yield System(name, pids, named_share, named_result, forget)
    else:
        yield System(name, pids, lambda a: all_of(touch, a), lambda: executor.submit(made).result(), forget)
    executor.shutdown()


@contextlib.contextmanager
def by_pool(context: Any) -> Iterator[System]:
    """Yield multiprocessing.Pool."""
    with context.Pool(WORKERS) as pool:

        def all_of(call: Callable[..., Any], argument: Any) -> list[Any]:
            return [one.get() for one in [pool.apply_async(call, (argument,)) for _ in range(WORKERS)]]

        pids = list(set(all_of(prepare, 1.0)))
        yield System("Pool", pids, lambda a: all_of(touch, a), lambda: pool.apply(made), lambda: all_of(prepare, 0.2))


@contextlib.contextmanager
def by_joblib() -> Iterator[System]:
    """Yield joblib's default backend, which maps large arrays from files in /dev/shm."""
    import joblib  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415 - may be missing

    with joblib.Parallel(WORKERS) as parallel:

        def all_of(call: Callable[..., Any], *arguments: Any) -> list[Any]:
            return list(parallel(joblib.delayed(call)(*arguments) for _ in range(WORKERS)))

        def result() -> Any:
            return parallel([joblib.delayed(made)()])[0]

        pids = list(set(all_of(prepare, 1.0)))
        yield System("joblib", pids, lambda a: all_of(touch, a), result, lambda: all_of(prepare, 0.2))


@contextlib.contextmanager
def by_ray(folder: Path) -> Iterator[System]:
    """Yield Ray with two workers that stay (actors)."""
    with started_ray(folder, WORKERS) as ray:

        class Worker:
            def do(self, call: Callable[..., Any], *arguments: Any) -> Any:
                return call(*arguments)

        kind = ray.remote(Worker)
        workers = [kind.remote() for _ in range(WORKERS)]

        def all_of(call: Callable[..., Any], *arguments: Any) -> list[Any]:
            return list(ray.get([worker.do.remote(call, *arguments) for worker in workers]))

        def share(array: Any) -> list[float]:
            return all_of(touch, ray.put(array))

        pids = all_of(prepare, 0.0)
        yield System("Ray", pids, share, lambda: ray.get(workers[0].do.remote(made)), lambda: all_of(prepare, 0.0))


@contextlib.contextmanager
def by_dask() -> Iterator[System]:
    """Yield Dask's scheduler with two worker processes."""
    from distributed import Client  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - may be missing

    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, processes=True) as client:
        names = list(client.scheduler_info()["workers"])

        def all_of(call: Callable[..., Any], *arguments: Any) -> list[Any]:
            return list(client.gather([client.submit(call, *arguments, workers=[n], pure=False) for n in names]))

        def result() -> Any:
            return client.submit(made, workers=names[:1], pure=False).result()

        def share(array: Any) -> list[float]:
            return all_of(touch, client.scatter(array, broadcast=True))

        yield System("Dask", all_of(prepare, 0.0), share, result, lambda: all_of(prepare, 0.0))


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(rounds: int) -> dict[str, Any]:
    """Run all and return the medians; prints the table on stderr."""
    context = multiprocessing.get_context("fork")
    figures: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        makers = [
            ours(Path(folder)),
            by_executor("shared_memory", ProcessPoolExecutor(WORKERS, mp_context=context), named=True),
            by_pool(context),
            by_executor("ProcessPoolExecutor", ProcessPoolExecutor(WORKERS, mp_context=context)),
        ]
        makers += [
            maker()
            for module, maker in (
                ("joblib", by_joblib),
                ("ray", lambda: by_ray(Path(folder))),
                ("distributed", by_dask),
            )
            if importlib.util.find_spec(module) is not None
        ]
        systems = [stack.enter_context(maker) for maker in makers]
        array = np.arange(SHARED_BYTES // 8, dtype=np.float64)
        for _ in range(rounds):
            for system in systems:
                array = array + 1  # another one each time: joblib would know this one again
                for what, value in _round(system, array).items():
                    figures.setdefault(system.name, {}).setdefault(what, []).append(value)
    data = array.tobytes()
    start = time.perf_counter()
    manifest_of(data)
    hashed_s = time.perf_counter() - start
    medians = {s: {what: statistics.median(v) for what, v in rows.items()} for s, rows in figures.items()}
    for name, rows in figures.items():
        medians[name]["copies"] = rows["copies"][0]
    _print(medians, hashed_s)
    return {
        "workers": WORKERS, "rounds": rounds, "python": sys.version.split()[0], "cpus": os.cpu_count(),
        "medians": medians, "first": {s: {what: v[0] for what, v in rows.items()} for s, rows in figures.items()},
        "hash_100_mb_s": hashed_s,
    }  # fmt: skip


def _round(system: System, array: Any) -> dict[str, float]:
    before = pss_bytes(system.pids)
    start = time.perf_counter()
    sums = system.share(array)
    share_s = time.perf_counter() - start
    assert sums == [float(array[::PAGE_ITEMS].sum())] * WORKERS, system.name
    copies = (pss_bytes(system.pids) - before) / array.nbytes
    system.forget()
    start = time.perf_counter()
    value = system.result()
    total = float(value[::PAGE_ITEMS].sum())
    result_s = time.perf_counter() - start
    assert total == float(made()[::PAGE_ITEMS].sum()), system.name
    del value
    system.forget()
    return {"share_s": share_s, "copies": copies, "result_s": result_s}


def _print(medians: dict[str, dict[str, float]], hashed_s: float) -> None:
    print(f"{'':22}{'share 100 MB':>14}{'copies':>9}{'result 256 MB':>16}", file=sys.stderr)
    for name, row in medians.items():
        line = f"{name:22}{row['share_s']:12.3f} s{row['copies']:9.2f}{row['result_s']:14.3f} s"
        print(line, file=sys.stderr)
    print(f"its id costs {hashed_s:.3f} s more (BLAKE3 of 100 MB, one core, outside the GIL)", file=sys.stderr)
