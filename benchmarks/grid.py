"""One uneven job on a grid of three one-slot nodes, beside bare forked processes on the same cores in the same run.

400 tasks whose CPU seconds are Pareto-distributed, 20 s in all. The bare processes, one per core, take the next task
from a shared counter: nothing that shares work among processes can be faster. Goal: at most 1.1 × their makespan, and
each node runs at least a fifth of the CPU seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.system.grids import Node, Nodes
from tests.system.uneven import Done, burn, durations, must_be_right, shares

TASKS = 400
CPU_S = 20.0
NODES = "abc"
GOAL_RATIO, GOAL_SHARE = 1.1, 0.2


def bare(jobs: Sequence[tuple[int, float]], processes: int) -> float:
    """Return the makespan of forked processes that share a counter."""
    context = multiprocessing.get_context("fork")
    taken = context.Value("l", 0)

    def work() -> None:
        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(jobs):
                return
            burn(jobs[number])

    started = time.monotonic()
    forked = [context.Process(target=work) for _ in range(processes)]
    for process in forked:
        process.start()
    for process in forked:
        process.join()
    return time.monotonic() - started


def on_grid(node: Node, jobs: Sequence[tuple[int, float]]) -> tuple[float, dict[str, float]]:
    """Return the makespan on the grid, and who ran which part of it."""
    with node.grid() as session:
        session.submit(pow, 2, 2).result()
        started = time.monotonic()
        found = [Done(*each) for each in session.map(burn, jobs)]
        took = time.monotonic() - started
    must_be_right(found, len(jobs))
    return took, shares(found)


def run(rounds: int) -> dict[str, Any]:
    """Run all and return the medians; prints the table on stderr."""
    cores = len(os.sched_getaffinity(0))
    jobs = list(enumerate(durations(TASKS, CPU_S)))
    bares, grids, ratios, least = [], [], [], []
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder), preset="lan") as nodes:
        first = nodes.grid(NODES)[0]
        seen_s = nodes.wait_all_alive()
        on_grid(first, jobs[:60])
        for _ in range(rounds):
            bares.append(bare(jobs, cores))
            took, parts = on_grid(first, jobs)
            grids.append(took)
            ratios.append(took / bares[-1])
            least.append(min(parts.get(name, 0.0) for name in NODES))
            print(
                f"bare {bares[-1]:6.2f} s   grid {took:6.2f} s   {ratios[-1]:.3f}   "
                + " ".join(f"{name} {parts.get(name, 0):.0%}" for name in NODES),
                file=sys.stderr,
            )
    medians = {
        "cores": cores, "ideal_s": CPU_S / cores, "bare_s": statistics.median(bares),
        "grid_s": statistics.median(grids), "ratio": statistics.median(ratios), "least_share": min(least),
        "all_see_all_s": seen_s,
    }  # fmt: skip
    print(
        f"median  bare {medians['bare_s']:.2f} s   grid {medians['grid_s']:.2f} s   {medians['ratio']:.3f} × bare "
        f"(goal ≤ {GOAL_RATIO}), on {cores} cores · least share {min(least):.0%} (goal ≥ {GOAL_SHARE:.0%}) · all "
        f"saw all {seen_s:.2f} s after the last was ready (goal ≤ 5 s)",
        file=sys.stderr,
    )
    return {"rounds": rounds, "python": sys.version.split()[0], "medians": medians, "ratios": ratios}
