"""What a task may know about itself: `pg.current()`, `pg.progress()` and its random seed.

The worker child says once per run which job it serves (`enter`), not once per task: the index is read from where the
hot loop writes it anyway, and a `Current` is only built for a task that asks. Standard library only, and light: user
code imports it in interpreters that have nothing installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

_SEED_PERSON = b"p2pgrid seed"


def task_seed(job16: bytes, index: int) -> int:
    """Return the seed of a task: 63 bits that depend on job and index only, so that a run anywhere repeats them."""
    digest = blake2b(index.to_bytes(8, "big"), digest_size=8, key=job16, person=_SEED_PERSON).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all tasks of one run have in common; `index` and `say` read and write the child's progress page."""

    job: str
    job16: bytes
    attempt: int
    node: str
    scratch: Callable[[], str]
    scratches: str
    index: Callable[[], int | None]
    say: Callable[[int, float, float | None, str], None]
    nested: int = 0
    """How many tasks are above this one, each started by the one before it."""


@dataclass(frozen=True, slots=True)
class Current:
    """The task that asks.

    Attributes:
        job: name of its job.
        index: its place in the job.
        attempt: 1 at the first try, more where it runs again: what the world outside may fence by.
        node: name of the node that runs it.
        seed: 63 bits to seed a generator with; the same for every attempt, on every node.
    """

    job: str
    index: int
    attempt: int
    seed: int
    node: str
    _scratch: str
    _shares_process: bool = False

    @property
    def dir(self) -> Path:
        """An empty folder of this task's own, removed after the task.

        A plain task starts in it. An `async def` task shares the current folder with others; this one is its own.
        """
        own_folder[0]()
        if not self._shares_process:
            return Path(self._scratch)
        if self._scratch not in scratch_made:
            os.makedirs(self._scratch)  # noqa: PTH103 - pathlib's costs thrice as much
            scratch_made[self._scratch] = None
        return Path(self._scratch)


task_index: ContextVar[int | None] = ContextVar("p2pgrid_task_index", default=None)
"""Index of an `async def` task: many of them run between each other, so the progress page cannot tell."""

scratch_made: dict[str, None] = {}
"""Folders that `Current.dir` made and the child has not removed yet."""

own_folder: list[Callable[[], None]] = [lambda: None]
"""Told that a task uses its folder."""

_run: RunContext | None = None


def enter(run: RunContext | None) -> None:
    """Say which run is worked on from now on (the child does, once per run)."""
    global _run  # noqa: PLW0603 - a child does one run at a time; a context variable would miss the task's own threads
    _run = run


def entered() -> RunContext | None:
    """Return the run that is worked on."""
    return _run


def running_index() -> int | None:
    """Return the index of the task that asks, None outside a task."""
    index = task_index.get()
    if index is None and _run is not None:
        index = _run.index()
    return index


def current() -> Current | None:
    """Return what is known about the task that asks, None outside a task."""
    run, index = _run, running_index()
    if run is None or index is None:
        return None
    seed, shares = task_seed(run.job16, index), task_index.get() is not None
    scratch = os.path.join(run.scratches, f"{index}") if shares else run.scratch()  # noqa: PTH118 - as above
    return Current(run.job, index, run.attempt, seed, run.node, scratch, shares)


def progress(done: float, total: float | None = None, text: str | None = None) -> None:
    """Say how far this task is; whoever watches the job sees it. Does nothing outside a task."""
    run, index = _run, running_index()
    if run is not None and index is not None:
        run.say(index, done, total, text or "")
