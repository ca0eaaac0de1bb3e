"""Five nodes that are not alike, or of which one was given too much: how much of the ideal is reached.

Tasks wait instead of computing, so that five one-slot nodes can be five times as fast as one on any machine; what a
node is slower than the others is a factor by which its tasks take longer, or a SIGSTOP duty cycle of its worker. The
ideal is all work divided by the sum of the speeds: nothing that shares work among nodes can be faster.

    emptied    all nodes alike; whoever asks first is given all that is left: the others steal it
    factors    nodes of 1, 1, 0.5, 0.25 and 0.125 times the speed
    stopped    the workers of two nodes are stopped half of the time, 100 ms each
    computing  uneven tasks that compute, beside bare forked processes, one per core, that share a counter
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import p2pgrid as pg
from benchmarks.grid import bare
from p2pgrid.client.asking import ask
from p2pgrid.client.grid import Grid
from p2pgrid.client.localgrid import LocalGrid
from tests.system.uneven import Done, Task, burn, check, durations, linger, must_be_right, shares

NODES = 5
TASKS = 400
WAITED_S, COMPUTED_S = 30.0, 20.0
"""Seconds of work in all, at speed 1."""
FACTORS = (1.0, 1.0, 0.5, 0.25, 0.125)
STOP_S = 0.1
DUTY = 0.5
ASK_S = 10.0
GOALS = {"emptied": 1.1, "factors": 1.15, "stopped": 1.15, "computing": 1.1}


def slowed(job: tuple[int, float]) -> tuple[int, int, str, float]:
    """Wait for so many seconds divided by the speed of the node."""
    number, seconds = job
    here = pg.current()
    node = here.node if here else "n0"
    time.sleep(seconds / FACTORS[int(node[1:])])
    return number, check(number), node, seconds


def ticking(job: tuple[int, float]) -> tuple[int, int, str, float]:
    """Wait for so many seconds of its own time: a stopped process does not count any."""
    number, seconds = job
    left, tick = seconds, 0.005
    while left > 0:
        time.sleep(min(tick, left))
        left -= tick
    here = pg.current()
    return number, check(number), here.node if here else "", seconds


def counts(local: LocalGrid) -> dict[str, dict[str, Any]]:
    """Return what `top` says of each node, by name."""
    found = ask(local.nodes[0].dir, "top", {}, ASK_S)["nodes"]
    return {row["name"]: row for row in found}


def on_grid(grid: Grid, task: Task, jobs: Sequence[tuple[int, float]]) -> tuple[float, dict[str, float]]:
    """Return the makespan, and who ran which part."""
    started = time.monotonic()
    found = [Done(*each) for each in grid.map(task, jobs)]
    took = time.monotonic() - started
    must_be_right(found, len(jobs))
    return took, shares(found)


def workers(pid: int) -> list[int]:
    """Return the processes below one that run tasks: they lead groups of their own."""
    below = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [child for child in below if b"worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@contextmanager
def stopping(pids: Sequence[int]) -> Iterator[None]:
    """Stop processes half of the time."""
    over = threading.Event()

    def cycle() -> None:
        while not over.is_set():
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in pids:
                    os.kill(pid, number)
                over.wait(STOP_S if number == signal.SIGCONT else STOP_S * (1 / DUTY - 1))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=cycle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _warm(local: LocalGrid, grid: Grid) -> None:
    grid.submit(pow, 2, 2).result()
    list(grid.map(linger, [(i, 0.01) for i in range(10 * NODES)]))


def run(rounds: int) -> dict[str, Any]:
    """Run all and return the medians; prints the table on stderr."""
    rng = random.Random(1)
    ratios: dict[str, list[float]] = {}
    moved: dict[str, list[int]] = {}

    def note(
        what: str,
        took: float,
        ideal: float,
        local: LocalGrid,
        before: dict[str, dict[str, Any]],
        parts: dict[str, float],
    ) -> None:
        ratios.setdefault(what, []).append(took / ideal)
        stolen = sum(row["stolen"] - before[name]["stolen"] for name, row in counts(local).items())
        asked = sum(row["asked"] - before[name]["asked"] for name, row in counts(local).items())
        moved.setdefault(what, []).append(stolen)
        print(
            f"{what:10}{took:7.2f} s   ideal{ideal:7.2f} s   {took / ideal:.3f}  stolen {stolen:4}   asked {asked:4}   "
            + " ".join(f"{name} {part:.0%}" for name, part in sorted(parts.items())),
            file=sys.stderr,
        )

    cores = len(os.sched_getaffinity(0))
    with LocalGrid(nodes=NODES, queue="1000s", guided=0.2) as local:
        grid = local.grid(0)
        _warm(local, grid)
        for _ in range(rounds):
            jobs = list(enumerate(durations(TASKS, WAITED_S, rng.randrange(1 << 30))))
            before = counts(local)
            took, parts = on_grid(grid, linger, jobs)
            note("emptied", took, WAITED_S / NODES, local, before, parts)
    with LocalGrid(nodes=NODES) as local:
        grid = local.grid(0)
        _warm(local, grid)
        for _ in range(rounds):
            jobs = list(enumerate(durations(TASKS, WAITED_S / 2, rng.randrange(1 << 30))))
            before = counts(local)
            took, parts = on_grid(grid, slowed, jobs)
            note("factors", took, WAITED_S / 2 / sum(FACTORS), local, before, parts)
        pids = [pid for node in local.nodes[:2] for pid in workers(node.pid or 0)]
        for _ in range(rounds):
            jobs = list(enumerate(durations(TASKS, WAITED_S, rng.randrange(1 << 30))))
            before = counts(local)
            with stopping(pids):
                took, parts = on_grid(grid, ticking, jobs)
            note("stopped", took, WAITED_S / (NODES - 2 + 2 * DUTY), local, before, parts)
        for _ in range(rounds):
            jobs = list(enumerate(durations(TASKS, COMPUTED_S, rng.randrange(1 << 30))))
            beside = bare(jobs, cores)
            before = counts(local)
            took, parts = on_grid(grid, burn, jobs)
            note("computing", took, beside, local, before, parts)
    medians = {what: statistics.median(found) for what, found in ratios.items()}
    for what, goal in GOALS.items():
        print(f"{what:10} {medians[what]:.3f} × the ideal (goal ≤ {goal})", file=sys.stderr)
    return {
        "rounds": rounds,
        "nodes": NODES,
        "cores": cores,
        "python": sys.version.split()[0],
        "medians": medians,
        "ratios": ratios,
        "stolen": moved,
    }
