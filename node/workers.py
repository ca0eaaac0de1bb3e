"""The pool of worker processes, trio side (skeleton: signatures are final).

It obeys and decides nothing: effects in (`run`, `recall`, `kill`), events out (`deliver`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pgrid.node.events import Event, Kill, Log, Run


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What may be tuned."""

    memory_budget: int | None = None
    """Private memory of all workers together, in bytes; above it the largest is killed. None: 80 % of the RAM."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One `--python`: where it is and what it calls itself."""

    path: Path
    version: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker does now, for `status` and the verb `workers`."""

    worker: int
    pid: int
    state: str  # "starting" | "idle" | "busy" | "stopped"
    job: bytes | None
    index: int | None
    running_s: float
    done: float | None
    total: float | None
    text: str


class WorkerPool:
    """`slots` children, numbered from 0; worker i runs in `python[i % len(python)]`."""

    def __init__(
        self,
        slots: int,
        python: Sequence[Path],
        dir: Path,  # noqa: A002
        node_name: str,
        deliver: Callable[[list[Event]], None],
        *,
        log: Callable[[Log], None],
        options: PoolOptions = PoolOptions(),
    ) -> None:
        """Remember; nothing is started yet. `dir` is the node's directory; all we write stays under it."""
        raise NotImplementedError

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Spawn the children and serve them until `stop`: `await nursery.start(pool.serve)`, from trio in the main thread.

        Returns once every process is gone. Cancelling it kills everything at once, too.
        """
        raise NotImplementedError

    def run(self, effect: Run) -> None:
        """Queue a run for its worker; it leaves with the next `flush`."""
        raise NotImplementedError

    def recall(self, worker: int) -> None:
        """Ask a worker to give back what it has not started. Takes effect at once."""
        raise NotImplementedError

    def kill(self, effect: Kill) -> None:
        """Kill the worker's group if what it runs now is meant, else recall. Takes effect at once."""
        raise NotImplementedError

    def flush(self) -> None:
        """Send what was queued by `run`, one send per worker. Call it after each lot of effects."""
        raise NotImplementedError

    def stop(self, *, kill: bool = True) -> None:
        """End all: at once, or (kill=False) each child after the runs it has. `serve` returns then; no more events."""
        raise NotImplementedError

    async def interpreters(self) -> list[Interpreter]:
        """Ask each interpreter for its version, once."""
        raise NotImplementedError

    def states(self) -> list[WorkerState]:
        """What each worker does now."""
        raise NotImplementedError
