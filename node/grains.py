"""Grains and who has them: what `running` knows of a worker, and of the tasks that it was given.

Rule: nothing is decided here.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.threads import threads_for
from p2pgrid.node.pool import Job, Lane, Taken


@dataclass(frozen=True, slots=True)
class RunningOptions:
    """Bounds of the hot path (DESIGN §10)."""

    grain_s: float = 0.05
    grain_calls: int = 64
    overlap_calls: int = 512
    """Of tasks that wait at the same time: several times as many as a child has in flight …"""
    overlap_least: int = 100
    """… and at least that many, if there are."""
    grain_items: int = 20_000
    crumb_s: float = 0.003
    """Work that is not worth sharing out."""
    recall_after_s: float = 0.03
    """How long a worker may sit idle before we ask another for what it has not started."""
    rates_kept: int = 4096


@dataclass(slots=True, eq=False)
class RunInfo:
    """A grain that is with a worker."""

    run: int
    taken: Taken
    left: RangeSet
    since_s: float
    """When it was given to the worker, or came to the front there."""
    queued: bool = False
    """Whether it stands behind another one, or did."""
    busy_s: float = 0.0
    """What its tasks took, as far as the worker has said."""
    python: int = 0
    """Which interpreter of the node runs it."""
    at: int | None = None
    """The task of it that waits for others, which may run below it, and since when."""
    waits_s: float = 0.0
    waits: int = 0
    """How often it waits now: tasks with threads, and `async` ones, may do so several times at once."""
    waited: bool = False
    """Whether it ever did: the time that went by says nothing of its tasks."""

    @property
    def job(self) -> Job:
        """The job it belongs to."""
        return self.taken.work.job


@dataclass(slots=True, eq=False)
class Worker:
    """One worker child, as far as decisions need it."""

    id: int
    ready: bool = False
    recalled: bool = False
    warm: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    """Functions it has run: a first run takes long because of what is imported, not because its tasks wait."""
    runs: list[RunInfo] = field(default_factory=list)
    below: list[RunInfo] = field(default_factory=list)
    """Runs whose tasks run below the first of `runs`, which waits; each below the one before it."""
    lent: bool = False
    """Whether it stands in for one whose task waits."""
    again_s: float = 0.0
    """It is not used before then."""
    python: int = 0
    """Its interpreter, by its place among those of the node."""
    tree: bytes | None = None
    """The source tree it serves; it can take up one, and no second."""
    threads: int | None = None
    """How many threads numerical libraries have in it since its first run; that cannot be changed any more."""

    @property
    def all_runs(self) -> list[RunInfo]:
        """What it has, the innermost first."""
        return [*reversed(self.below), *self.runs] if self.below else self.runs

    @property
    def begun(self) -> list[RunInfo]:
        """Those of which a task has begun."""
        return [*reversed(self.below), *self.runs[:1]] if self.below else self.runs[:1]

    def serves(self, lane: Lane) -> bool:
        """Whether it can run tasks of a lane as it is; else a fresh child takes its place."""
        return (
            self.threads in (None, threads_for(lane.cpus))
            and (lane.tree is None or self.tree in (None, lane.tree))
            and (lane.pythons is None or self.python in lane.pythons)
        )
