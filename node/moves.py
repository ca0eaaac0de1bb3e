"""Moves: how the tasks of jobs kept here came to the members that have them, for people who ask.

Counted per job and member: tasks that it took from other holders (stolen), that it was granted before a slot was free
(prefetched), that ran under a higher attempt number (rerun). The newest moves are remembered by name; nothing depends
on them, and none of it outlives this process.

Rule: this file knows jobs, members and ranges.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.core.ranges import RangeSet, Span

JOBS_KEPT = 256
MOVES_KEPT = 1024
"""Of one job."""
STOLEN, PREFETCHED, RERUN = KINDS = ("stolen", "prefetched", "rerun")

Job = bytes


class Move(NamedTuple):
    """Tasks that came to a member; from whom, if not from this node."""

    spans: RangeSet
    peer: str
    since_s: float
    source: str = ""
    is_copy: bool = False
    """Its source has it as well."""
    ahead: int = 0
    """How many of them came before there was a slot for them."""


@dataclass(slots=True)
class _Told:
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    newest: deque[Move] = field(default_factory=lambda: deque(maxlen=MOVES_KEPT))
    handed: dict[str, tuple[str, RangeSet]] = field(default_factory=dict)
    """By thief: its victim, and what it may claim of it."""


class Moves:
    """Of all jobs, those that were heard of last."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, _Told] = OrderedDict()

    def _of(self, job: Job) -> _Told:
        told = self._jobs.get(job)
        if told is None:
            told = self._jobs[job] = _Told()
            if len(self._jobs) > JOBS_KEPT:
                self._jobs.popitem(last=False)
        return told

    def count(self, job: Job, peer: str, kind: str, tasks: int) -> None:
        """Add tasks of one kind."""
        if tasks > 0:
            self._of(job).counts.setdefault(peer, Counter())[kind] += tasks

    def granted(self, job: Job, peer: str, spans: Iterable[Span], ahead: int, now: float) -> None:
        """A member was granted tasks, so many of them before it had a slot for them."""
        self._of(job).newest.append(Move(RangeSet(spans), peer, now, ahead=max(ahead, 0)))
        self.count(job, peer, PREFETCHED, ahead)

    def copied(self, job: Job, peer: str, index: int, source: str, now: float) -> None:
        """A task that another member has runs at this one, too."""
        self._of(job).newest.append(Move(RangeSet([(index, index + 1)]), peer, now, source, is_copy=True))

    def handed(self, job: Job, victim: str, thief: str, spans: RangeSet) -> None:
        """A member says that it handed tasks to another."""
        self._of(job).handed[thief] = (victim, spans)

    def claimed(self, job: Job, peer: str, fresh: RangeSet, now: float) -> None:
        """A member claims tasks that it did not claim before."""
        told = self._jobs.get(job)
        if told is None or peer not in told.handed:
            return
        victim, spans = told.handed[peer]
        self.stolen(job, peer, victim, fresh & spans, now)

    def stolen(self, job: Job, peer: str, victim: str, spans: RangeSet, now: float) -> None:
        """A member has tasks that another had."""
        if spans:
            self._of(job).newest.append(Move(spans, peer, now, victim))
            self.count(job, peer, STOLEN, spans.size)

    def counts(self, job: Job) -> dict[str, dict[str, int]]:
        """Return how many tasks of a job were moved, by member and kind."""
        told = self._jobs.get(job)
        return {peer: dict(counts) for peer, counts in told.counts.items()} if told is not None else {}

    def last(self, job: Job, index: int, peer: str) -> Move | None:
        """Return how a task came to the member that has it."""
        return next((move for move in self.newest(job, peer) if index in move.spans), None)

    def newest(self, job: Job, peer: str) -> Iterator[Move]:
        """Yield what came to a member, the newest first."""
        told = self._jobs.get(job)
        return (move for move in reversed(told.newest if told is not None else ()) if move.peer == peer)
