"""Large data: an array to many tasks, a large result, words of many files, and from node to node.

    tasks    a 100 MB array to 200 tasks, each of which returns 1 MB of it
    copies   what the array adds to the memory of all processes (PSS) while two tasks hold it, in arrays, beside the
             client's own
    result   a result of 256 MB, until the client has read one number of every page of it
    words    counting the words of 200 MB in 64 files
    node     MB/s of an object of 256 MB that is got at another node, every piece verified, beside a stream of libp2p
             alone between two processes

Two workers. Beside Pool and ProcessPoolExecutor, whose user hands the array over in shared memory with a name, and
joblib, Ray and Dask where they can be imported; round by round in one run (DESIGN §13). To measure beside those, put
them into an environment of their own that sees this one's packages.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.beside import started_ray
from benchmarks.idle import descendants
from p2pgrid.client.localgrid import LocalGrid

WORKERS = 2
TASKS = 200
SHARED_ITEMS = 100 * 1000**2 // 8
PART_ITEMS = 1000**2 // 8
RESULT_BYTES = 256 * 1000**2
FAR_BYTES = 256 * 1000**2
FILES, TEXT_BYTES = 64, 200 * 1000**2
PAGE_ITEMS = 4096 // 8
HOLD_S = 1.0
GOALS = "goals: tasks and result ≤ Ray's; ≤ 1.1 copies; node ≥ 0.9 × the stream"

_made: dict[str, Any] = {}


class System(NamedTuple):
    """One way of giving work to two processes.

    `shared` yields what stands for an array among the arguments of tasks; `each` calls a function with lists of
    arguments and returns the results in order.
    """

    name: str
    shared: Callable[[Any], contextlib.AbstractContextManager[Any]]
    each: Callable[..., list[Any]]


def part(array: Any, number: int) -> Any:
    """Return 1 MB that is made of the array."""
    start = number * (SHARED_ITEMS - PART_ITEMS) // (TASKS - 1)
    return opened(array)[start : start + PART_ITEMS] + 1.0


def hold(array: Any, seconds: float) -> float:
    """Read one number of every page and keep the array for a while."""
    total = float(opened(array)[::PAGE_ITEMS].sum())
    time.sleep(seconds)
    return total


def opened(array: Any) -> Any:
    """Return the array that this is, or names."""
    if not isinstance(array, str):
        return array
    known = _made.get(array)
    if known is None:
        memory = SharedMemory(array)
        known = _made[array] = (memory, np.ndarray((SHARED_ITEMS,), np.float64, memory.buf))
    return known[1]


def made(_: int) -> Any:
    """Return a large array; it was made before."""
    if "made" not in _made:
        _made["made"] = np.arange(RESULT_BYTES // 8, dtype=np.float64)
    return _made["made"]


def have(_: int) -> int:
    """Make it, and leave the others time to do the same."""
    made(0)
    time.sleep(0.3)
    return os.getpid()


def words(path: str) -> dict[str, int]:
    """Count the words of a file."""
    return dict(collections.Counter(Path(path).read_text(encoding="ascii").split()))


def write_texts(folder: Path) -> list[str]:
    """Write 64 files of the same 5,000 words in different orders."""
    rng = np.random.default_rng(1)
    vocabulary = np.array([f"word{number:05}" for number in range(5000)])
    paths = []
    for number in range(FILES):
        path = folder / f"{number}.txt"
        path.write_text(" ".join(rng.choice(vocabulary, TEXT_BYTES // FILES // 10)), encoding="ascii")
        paths.append(str(path))
    return paths


def memory_bytes() -> int:
    """Return what this process and all below hold, shared pages divided among those that map them."""
    size = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
                size += int(line.split()[1]) * 1024 if line.startswith("Pss:") else 0
    return size


# ---- the systems -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours() -> Iterator[System]:
    """Yield a grid of one node."""
    with LocalGrid(nodes=1, slots=WORKERS) as local, local.grid(0) as grid:

        @contextlib.contextmanager
        def shared(array: Any) -> Iterator[Any]:
            yield grid.put(array)

        yield System("p2pgrid", shared, lambda call, *lists: list(grid.map(call, *lists)))


@contextlib.contextmanager
def named(array: Any) -> Iterator[str]:
    """Yield the name of shared memory that holds an array."""
    memory = SharedMemory(create=True, size=array.nbytes)
    np.ndarray(array.shape, array.dtype, memory.buf)[:] = array
    yield memory.name
    memory.close()
    memory.unlink()


@contextlib.contextmanager
def by_pool(context: Any) -> Iterator[System]:
    """Yield multiprocessing.Pool."""
    with context.Pool(WORKERS) as pool:
        yield System("Pool", named, lambda call, *lists: pool.starmap(call, zip(*lists, strict=False), chunksize=1))


@contextlib.contextmanager
def by_executor(executor: Executor) -> Iterator[System]:
    """Yield ProcessPoolExecutor."""
    with executor:
        yield System("ProcessPoolExecutor", named, lambda call, *lists: list(executor.map(call, *lists)))


@contextlib.contextmanager
def by_joblib() -> Iterator[System]:
    """Yield joblib's default backend, which maps large arrays from files in /dev/shm."""
    import joblib  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: PLC0415 - may be missing

    with joblib.Parallel(WORKERS) as parallel:

        def each(call: Callable[..., Any], *lists: Sequence[Any]) -> list[Any]:
            return list(parallel(joblib.delayed(call)(*one) for one in zip(*lists, strict=False)))

        yield System("joblib", contextlib.nullcontext, each)


@contextlib.contextmanager
def by_ray(folder: Path) -> Iterator[System]:
    """Yield Ray."""
    with started_ray(folder, WORKERS) as ray:
        remote: dict[Any, Any] = {}

        def each(call: Callable[..., Any], *lists: Sequence[Any]) -> list[Any]:
            task = remote.setdefault(call, ray.remote(call))
            return list(ray.get([task.remote(*one) for one in zip(*lists, strict=False)]))

        yield System("Ray", lambda array: contextlib.nullcontext(ray.put(array)), each)


@contextlib.contextmanager
def by_dask() -> Iterator[System]:
    """Yield Dask's scheduler with two worker processes."""
    from distributed import Client  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - may be missing

    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, processes=True) as client:

        def each(call: Callable[..., Any], *lists: Sequence[Any]) -> list[Any]:
            return list(client.gather([client.submit(call, *one, pure=False) for one in zip(*lists, strict=False)]))

        def shared(array: Any) -> contextlib.AbstractContextManager[Any]:
            return contextlib.nullcontext(client.scatter(array, broadcast=True))

        yield System("Dask", shared, each)


# ---- one round -------------------------------------------------------------------------------------------------------


def measure(system: System, array: Any, paths: list[str], count: int) -> dict[str, float]:
    """Run everything once; check what comes back."""
    _made.pop("made", None)
    started = time.perf_counter()
    with system.shared(array) as given:
        parts = system.each(part, itertools.repeat(given, TASKS), range(TASKS))
        tasks_s = time.perf_counter() - started
        assert [float(one[0]) for one in parts[:: TASKS - 1]] == [float(array[0]) + 1, float(array[-PART_ITEMS]) + 1]
        del parts
    copies = _copies(system, array + 1)
    system.each(have, range(2 * WORKERS))
    started = time.perf_counter()
    (value,) = system.each(made, [0])
    total = float(value[::PAGE_ITEMS].sum())
    result_s = time.perf_counter() - started
    assert total == float(np.arange(0, RESULT_BYTES // 8, PAGE_ITEMS, dtype=np.float64).sum())
    del value
    started = time.perf_counter()
    found: collections.Counter[str] = collections.Counter()
    for one in system.each(words, paths):
        found.update(one)
    words_s = time.perf_counter() - started
    assert found.total() == count
    return {"tasks_s": tasks_s, "copies": copies, "result_s": result_s, "words_s": words_s}


def _copies(system: System, array: Any) -> float:
    before = memory_bytes()
    with system.shared(array) as given:
        seen: list[int] = []
        timer = threading.Timer(HOLD_S * 0.7, lambda: seen.append(memory_bytes()))
        timer.start()
        sums = system.each(hold, itertools.repeat(given, WORKERS), itertools.repeat(HOLD_S, WORKERS))
        timer.join()
    assert sums == [float(array[::PAGE_ITEMS].sum())] * WORKERS
    return (seen[0] - before) / float(array.nbytes)


def far(rounds: int) -> tuple[list[float], list[float]]:
    """Return MB/s of an object between two nodes, and of a libp2p stream between two processes, round by round."""
    objects, streams = [], []
    stream = [sys.executable, "-m", "benchmarks.links"]
    with (
        LocalGrid(nodes=2) as local,
        local.grid(0) as here,
        local.grid(1) as there,
        subprocess.Popen([*stream, "listen", "127.0.0.1"], stdout=subprocess.PIPE, text=True) as listener,
    ):
        assert listener.stdout is not None
        address = listener.stdout.readline().strip()
        for number in range(rounds + 1):
            array = np.full(FAR_BYTES // 8, float(number))
            array[:: PAGE_ITEMS // 2] = np.random.default_rng(number).random(len(array[:: PAGE_ITEMS // 2]))
            ref = here.put(array)
            started = time.perf_counter()
            found = there.get(ref)
            took_s = time.perf_counter() - started
            assert np.array_equal(found, array)
            command = [*stream, "dial", address, str(FAR_BYTES / 1e6), "raw"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
            if number:  # the first one made the shared memory
                objects.append(FAR_BYTES / took_s / 1e6)
                streams.append(json.loads(done.stdout)["mb_s"])
            del found, ref
        listener.terminate()
    return objects, streams


def add_arguments(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Add what this benchmark can be told; return the names."""
    parser.add_argument("--only", choices=("tables", "node"), help="one machine beside others, or node to node")
    return ("only",)


def run(rounds: int, only: str | None = None) -> dict[str, Any]:
    """Run all, or one part, and return the medians; prints the table on stderr."""
    medians = {} if only == "node" else tables(rounds)
    objects, streams = ([], []) if only == "tables" else far(rounds)
    _print(medians, objects, streams)
    return {
        "workers": WORKERS, "rounds": rounds, "python": sys.version.split()[0], "cpus": os.cpu_count(),
        "medians": medians, "objects_mb_s": objects, "streams_mb_s": streams,
    }  # fmt: skip


def tables(rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of each system on one machine."""
    context = multiprocessing.get_context("fork")
    figures: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = write_texts(folder)
        makers = [by_pool(context), by_executor(ProcessPoolExecutor(WORKERS, mp_context=context)), ours()]
        makers += [
            maker()
            for module, maker in (("joblib", by_joblib), ("ray", lambda: by_ray(folder)), ("distributed", by_dask))
            if importlib.util.find_spec(module) is not None
        ]
        systems = [stack.enter_context(maker) for maker in makers]
        array = np.arange(SHARED_ITEMS, dtype=np.float64)
        count = TEXT_BYTES // FILES // 10 * FILES
        for _ in range(rounds):
            for system in systems:
                array = array + 1  # another one each time: joblib would know this one again
                found = measure(system, array, paths, count)
                _print_row(system.name, found)
                for what, value in found.items():
                    figures.setdefault(system.name, {}).setdefault(what, []).append(value)
    return {s: {what: statistics.median(v) for what, v in rows.items()} for s, rows in figures.items()}


def _print(medians: dict[str, dict[str, float]], objects: list[float], streams: list[float]) -> None:
    if medians:
        print(f"{'':22}{'200 tasks':>11}{'copies':>9}{'256 MB result':>16}{'words':>10}", file=sys.stderr)
    for name, row in medians.items():
        _print_row(name, row)
    if objects:
        ratio = statistics.median(ours / stream for ours, stream in zip(objects, streams, strict=True))
        print(
            f"node to node {statistics.median(objects):.0f} MB/s verified, a libp2p stream alone "
            f"{statistics.median(streams):.0f} MB/s: {ratio:.2f} ×",
            file=sys.stderr,
        )
    print(GOALS, file=sys.stderr)


def _print_row(name: str, row: dict[str, float]) -> None:
    print(
        f"{name:22}{row['tasks_s']:9.3f} s{row['copies']:9.2f}{row['result_s']:14.3f} s{row['words_s']:8.2f} s",
        file=sys.stderr,
        flush=True,
    )
