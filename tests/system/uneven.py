"""Work of uneven length, as tests and benchmarks give it to a grid: tasks that burn CPU, or only take their time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import p2pgrid as pg
from p2pgrid.client.grid import Grid

SHAPE = 1.5
"""Of the Pareto distribution: few long tasks, many short ones, and a finite mean."""
LONGEST = 0.05
"""No task is a larger part of all work: else its length alone would be the makespan."""


class Done(NamedTuple):
    """What a task returns: `check` is right only for its own number."""

    number: int
    check: int
    node: str
    spent_s: float


Task = Callable[[tuple[int, float]], tuple[int, int, str, float]]


def durations(count: int, total_s: float, seed: int = 1) -> list[float]:
    """Return seconds of CPU per task, Pareto-distributed, `total_s` in all."""
    rng = random.Random(seed)
    drawn = [rng.paretovariate(SHAPE) for _ in range(count)]
    part = max(LONGEST, 2 / count)
    while max(drawn) > 1.001 * (longest := part * sum(drawn)):  # what is cut makes the rest a larger part
        drawn = [min(each, longest) for each in drawn]
    scale = total_s / sum(drawn)
    return [each * scale for each in drawn]


def check(number: int) -> int:
    """Return what the task with this number has to find."""
    return number * 2654435761 % 2**32


def burn(job: tuple[int, float]) -> tuple[int, int, str, float]:
    """Burn that many seconds of CPU: of this thread, so that neighbours on the same core change nothing."""
    number, seconds = job
    started = time.thread_time()
    while (burnt := time.thread_time() - started) < seconds:
        for _ in range(200):
            pass
    here = pg.current()
    return number, check(number), here.node if here else "", burnt


def linger(job: tuple[int, float]) -> tuple[int, int, str, float]:
    """Take that many seconds and no CPU: as long on a busy machine as on an idle one."""
    number, seconds = job
    time.sleep(seconds)
    here = pg.current()
    return number, check(number), here.node if here else "", seconds


def must_be_right(results: Sequence[Done], count: int) -> None:
    """Every number once, every value its own."""
    assert sorted(each.number for each in results) == list(range(count))
    wrong = [each for each in results if each.check != check(each.number)]
    assert not wrong, wrong[:5]


def shares(results: Sequence[Done]) -> dict[str, float]:
    """Return which part of the seconds each node ran."""
    total = sum(each.spent_s for each in results)
    parts: dict[str, float] = {}
    for each in results:
        parts[each.node] = parts.get(each.node, 0.0) + each.spent_s / total
    return parts


class Running(threading.Thread):
    """A job whose results are taken in the background, so that the test can do harm meanwhile."""

    def __init__(self, grid: Grid, count: int, total_s: float, task: Task = linger) -> None:
        super().__init__(daemon=True)
        self.count = count
        self.got: list[Done] = []
        self._error: BaseException | None = None
        self._grid = grid
        self._task = task
        self._jobs = list(enumerate(durations(count, total_s)))
        self._more = threading.Condition()
        self.start()

    def run(self) -> None:
        try:
            for found in self._grid.imap_unordered(self._task, self._jobs):
                result = Done(*found)
                with self._more:
                    self.got.append(result)
                    self._more.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._error = error
        with self._more:
            self._more.notify_all()

    def wait(self, count: int, within_s: float = 120.0) -> None:
        """Wait until that many results are here."""
        with self._more:
            there = self._more.wait_for(lambda: len(self.got) >= count or not self.is_alive() or self._error, within_s)
        if self._error is not None:
            raise self._error
        assert there, f"{len(self.got)} of {self.count} results after {within_s:g} s"

    def right(self, within_s: float = 240.0) -> list[Done]:
        """Wait for the end; return all results, which were right and each there once."""
        self.wait(self.count, within_s)
        self.join(within_s)
        assert not self.is_alive(), "there are more results than tasks, or no end"
        must_be_right(self.got, self.count)
        return self.got


def shared_by(grid: Grid, names: set[str], count: int, total_s: float, jobs_max: int = 5) -> dict[str, float]:
    """Run such a job until these nodes, and no others, had a part of one; return their parts.

    Where many tests run side by side a node is now and then not asked before a short job is over.
    """
    parts: dict[str, float] = {}
    for _ in range(jobs_max):
        parts = shares(Running(grid, count, total_s).right())
        if parts.keys() == names:
            break
    assert parts.keys() == names, parts
    return parts
