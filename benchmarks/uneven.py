"""Five nodes that are not alike, or of which one was given too much: how much of the ideal is reached.

Tasks wait instead of computing, so that five one-slot nodes can be five times as fast as one on any machine; what a
node is slower than the others is a factor by which its tasks take longer, or a SIGSTOP duty cycle of its worker. The
ideal is all work divided by the sum of the speeds: nothing that shares work among nodes can be faster.

    emptied    all nodes alike; whoever asks first is given all that is left: the others steal it
    factors    nodes of 1, 1, 0.5, 0.25 and 0.125 times the speed
    stopped    the workers of two nodes are stopped half of the time, 100 ms each
    computing  uneven tasks that compute, beside bare forked processes, one per core, that share a counter

Beside each ratio stands that of a list: whoever is free takes the next task, at once and at no cost, and no task is run
twice. It is more than 1 because a long task may come last, at a slow node; every round draws other tasks.
"""

from __future__ import annotations

import argparse
import heapq
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
STOP_S, TICK_S = 0.1, 0.005
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
    """Wait for so many seconds of its own time: while it is stopped none goes by.

    A tick takes longer than was asked for, on a busy machine by much; only one as long as a stop had one within.
    """
    number, seconds = job
    left, seen = seconds, time.monotonic()
    while left > 0:
        time.sleep(min(TICK_S, left))
        took, seen = time.monotonic() - seen, time.monotonic()
        left -= took if took < STOP_S * 0.9 else min(max(took - STOP_S, 0.0), TICK_S)
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


def listed(jobs: Sequence[tuple[int, float]], speeds: Sequence[float]) -> float:
    """Return the makespan where whoever is free takes the next task, at once and at no cost."""
    free = [(0.0, index) for index in range(len(speeds))]
    for _, seconds in jobs:
        since_s, index = free[0]
        heapq.heapreplace(free, (since_s + seconds / speeds[index], index))
    return max(free)[0]


def _warm(local: LocalGrid, *tasks: Task) -> None:
    """Let every worker have run each of these: where its module came from is then known to it."""
    grid = local.grid(0)
    grid.submit(pow, 2, 2).result()
    for task in tasks:
        done: set[str] = set()
        while done < {node.name for node in local.nodes}:
            done |= {name for _, _, name, _ in grid.map(task, [(i, 0.01) for i in range(10 * NODES)])}


class Table:
    """What was found, round by round; prints each row on stderr."""

    def __init__(self, rounds: int, only: Sequence[str]) -> None:
        self.rounds = rounds
        self.only = only
        self.ratios: dict[str, list[float]] = {}
        self.lists: dict[str, list[float]] = {}
        self.stolen: dict[str, list[int]] = {}

    def jobs(self, what: str, seconds: float) -> Iterator[list[tuple[int, float]]]:
        """Yield the tasks of each round: the same ones in every run."""
        rng = random.Random(1)
        for _ in range(self.rounds if what in self.only else 0):
            yield list(enumerate(durations(TASKS, seconds, rng.randrange(1 << 30))))

    def row(
        self, what: str, local: LocalGrid, task: Task, jobs: Sequence[tuple[int, float]], speeds: Sequence[float]
    ) -> None:
        """Run one job and note what came of it; `speeds` of the nodes, or of what runs beside."""
        before = counts(local)
        took, parts = on_grid(local.grid(0), task, jobs)
        work = sum(seconds for _, seconds in jobs)
        ideal = work / sum(speeds)
        after = counts(local)
        stolen = sum(row["stolen"] - before[name]["stolen"] for name, row in after.items())
        asked = sum(row["asked"] - before[name]["asked"] for name, row in after.items())
        self.ratios.setdefault(what, []).append(took / ideal)
        self.lists.setdefault(what, []).append(listed(jobs, speeds) / ideal)
        self.stolen.setdefault(what, []).append(stolen)
        print(
            f"{what:10}{took:7.2f} s   ideal{ideal:7.2f} s   {took / ideal:.3f} (a list {self.lists[what][-1]:.3f})   "
            f"stolen {stolen:4}   asked {asked:4}   "
            + " ".join(f"{name} {part:.0%}" for name, part in sorted(parts.items())),
            file=sys.stderr,
        )


def add_arguments(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """Add what this benchmark can be told; return the names."""
    parser.add_argument("--only", choices=tuple(GOALS), nargs="+", default=list(GOALS), help="some of them")
    return ("only",)


def run(rounds: int, only: Sequence[str] = tuple(GOALS)) -> dict[str, Any]:
    """Run all and return the medians; prints the table on stderr."""
    table = Table(rounds, only)
    cores = len(os.sched_getaffinity(0))
    if "emptied" in only:
        with LocalGrid(nodes=NODES, queue="1000s", guided=0.2) as local:
            _warm(local, linger)
            for jobs in table.jobs("emptied", WAITED_S):
                table.row("emptied", local, linger, jobs, [1.0] * NODES)
    if set(only) - {"emptied"}:
        with LocalGrid(nodes=NODES) as local:
            _warm(local, burn, slowed)
            for jobs in table.jobs("factors", WAITED_S / 2):
                table.row("factors", local, slowed, jobs, FACTORS)
            pids = [pid for node in local.nodes[:2] for pid in workers(node.pid or 0)]
            for jobs in table.jobs("stopped", WAITED_S):
                with stopping(pids):
                    table.row("stopped", local, ticking, jobs, [DUTY] * 2 + [1.0] * (NODES - 2))
            for jobs in table.jobs("computing", COMPUTED_S):
                speed = COMPUTED_S / bare(jobs, cores) / cores
                table.row("computing", local, burn, jobs, [speed] * cores)
    medians = {what: statistics.median(found) for what, found in table.ratios.items()}
    for what, found in medians.items():
        best = statistics.median(table.lists[what])
        print(f"{what:10} {found:.3f} × the ideal (goal ≤ {GOALS[what]}); a list {best:.3f}", file=sys.stderr)
    return {
        "rounds": rounds,
        "nodes": NODES,
        "cores": cores,
        "python": sys.version.split()[0],
        "medians": medians,
        "ratios": table.ratios,
        "lists": table.lists,
        "stolen": table.stolen,
    }
