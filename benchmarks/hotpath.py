"""The hot path of one machine: no-op latency, single submits, a map over 10⁶ squares, the daemon's loop lag.

Beside multiprocessing.Pool and ProcessPoolExecutor with as many processes, round by round in one run, because machines
drift: only figures of one run are to be compared (DESIGN §13).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import p2pgrid as pg

WORKERS = 2
LATENCIES = 1000
SINGLES = 10_000
ITEMS = 1_000_000


def noop() -> None:
    """Do nothing."""


def square(x: int) -> int:
    """Return x²."""
    return x * x


def _latencies(call: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(LATENCIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _loop_lag(directory: Path) -> dict[str, Any]:
    """Return what `p2pgrid status` says of the daemon's loop."""
    command = [sys.executable, "-m", "p2pgrid.cli.main", "status", "--json", "--dir", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    process = json.loads(done.stdout).get("process", {}) if done.returncode == 0 else {}
    return {key: value for key, value in process.items() if "lag" in key}


def _gather(futures: list[Any], result: str) -> None:
    for future in futures:
        getattr(future, result)()


def run(rounds: int) -> dict[str, Any]:
    """Run all and return the medians; prints the table on stderr."""
    context = multiprocessing.get_context("fork")
    figures: dict[str, dict[str, list[float]]] = {}

    def note(system: str, what: str, value: float) -> None:
        figures.setdefault(system, {}).setdefault(what, []).append(value)

    with (
        context.Pool(WORKERS) as pool,
        ProcessPoolExecutor(WORKERS, mp_context=context) as executor,
        pg.LocalGrid(nodes=1, slots=WORKERS) as local,
        local.grid(0) as grid,
    ):
        pool.map(square, range(1000))
        list(executor.map(square, range(100)))
        list(grid.map(square, range(1000)))
        for _ in range(50):
            grid.submit(noop).result()
        calls: tuple[tuple[str, Callable[[], Any]], ...]
        works: tuple[tuple[str, Callable[[], Any]], ...]
        for _ in range(rounds):
            calls = (
                ("p2pgrid", lambda: grid.submit(noop).result()),
                ("ProcessPoolExecutor", lambda: executor.submit(noop).result()),
                ("Pool", lambda: pool.apply_async(noop).get()),
            )
            for system, call in calls:
                times = _latencies(call)
                note(system, "p50_ms", times[len(times) // 2] * 1e3)
                note(system, "p99_ms", times[len(times) * 99 // 100] * 1e3)
            works = (
                ("p2pgrid", lambda: _gather([grid.submit(noop) for _ in range(SINGLES)], "result")),
                ("ProcessPoolExecutor", lambda: _gather([executor.submit(noop) for _ in range(SINGLES)], "result")),
                ("Pool", lambda: _gather([pool.apply_async(noop) for _ in range(SINGLES)], "get")),
            )
            for system, work in works:
                note(system, "singles_per_s", SINGLES / _seconds(work))
            works = (
                ("p2pgrid", lambda: list(grid.map(square, range(ITEMS)))),
                ("Pool", lambda: pool.map(square, range(ITEMS))),
                # The executor's default of one item per message would take minutes.
                ("ProcessPoolExecutor", lambda: list(executor.map(square, range(ITEMS), chunksize=20_000))),
            )
            for system, work in works:
                note(system, "map_1e6_s", _seconds(work))
        lag = _loop_lag(local.nodes[0].dir)
    medians = {s: {what: statistics.median(v) for what, v in rows.items()} for s, rows in figures.items()}
    _print(medians, lag)
    return {
        "workers": WORKERS, "rounds": rounds, "python": sys.version.split()[0], "cpus": os.cpu_count(),
        "medians": medians, "loop_lag": lag,
    }  # fmt: skip


def _print(medians: dict[str, dict[str, float]], lag: dict[str, Any]) -> None:
    head = ("p50_ms", "p99_ms", "singles_per_s", "map_1e6_s")
    print(f"{'':22}{'no-op p50':>12}{'p99':>12}{'singles/s':>14}{'map 10⁶':>12}", file=sys.stderr)
    for system, row in medians.items():
        p50, p99, singles, mapped = (row[what] for what in head)
        print(f"{system:22}{p50:9.3f} ms{p99:9.3f} ms{singles:14,.0f}{mapped:10.3f} s", file=sys.stderr)
    ours, pool, executor = medians["p2pgrid"], medians["Pool"], medians["ProcessPoolExecutor"]
    print(
        f"latency {ours['p50_ms'] / executor['p50_ms']:.2f} × ProcessPoolExecutor (goal ≤ 1) · singles "
        f"{ours['singles_per_s'] / pool['singles_per_s']:.2f} × Pool (goal ≥ 1.5, ≥ 60,000/s) · map "
        f"{ours['map_1e6_s'] / pool['map_1e6_s']:.2f} × Pool (goal ≤ 1.0)",
        file=sys.stderr,
    )
    if lag.get("loop_lag_p99") is not None:
        p50, p99 = lag["loop_lag_p50"] * 1e3, lag["loop_lag_p99"] * 1e3
        print(
            f"daemon loop lag, all slots busy: p50 {p50:.1f} ms, p99 {p99:.1f} ms (goal p99 ≤ 20 ms)", file=sys.stderr
        )
