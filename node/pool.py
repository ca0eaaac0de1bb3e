"""The pool: tasks that are ready to run on this node, in which order they are taken, and how they are cut.

A *work* is what this node needs to run tasks of one job, its own or one whose ranges it was granted: input runs,
functions, attempts. A *lane* is all tasks of a work that call one function with one set of options; its ready tasks are
a range set, so a job of 10⁶ tasks costs a few intervals here.

Order: between owners the one that was served least time, so that ten small jobs do not wait behind one long one; inside
an owner by priority, then in turns. A task marked *alone* is taken by itself: it was running when a worker or a node
died, and whoever shares a grain with it would die again with it.

Rule: this file knows neither workers nor peers nor journals.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p2pgrid.core.batch import CALLS, InputBatch, InputRun, python_minor
from p2pgrid.core.options import WireOptions
from p2pgrid.core.ranges import RangeMap, RangeSet, Span
from p2pgrid.core.wire import pack
from p2pgrid.node.events import Segment

Job = bytes
OwnerKey = tuple[bytes, bytes]  # the owner's key and the client's session


@dataclass(slots=True, eq=False)
class Lane:
    """Tasks of one work with the same function and the same options."""

    work: Work
    number: int
    fn: bytes
    options: WireOptions
    cpus: float
    resources: Mapping[str, float]
    """Beside `cpu` and `mem`: what must be free on the node while the task runs."""
    minor: int | None
    """The Python minor version the function is bound to."""
    packed: bool
    ready: RangeSet = field(default_factory=RangeSet)
    alone: RangeSet = field(default_factory=RangeSet)
    unfit: dict[str, str] = field(default_factory=dict)
    """Nodes that cannot load the function, and why."""
    fits: bool | None = None
    """Whether this node satisfies what the tasks ask for, once that was looked at."""
    raw: Mapping[str, object] = field(default_factory=dict)
    """The options as they travel."""


@dataclass(slots=True, eq=False)
class Work:
    """What this node needs to run tasks of one job."""

    job: Job
    name: str
    owner: OwnerKey
    keeper: str | None
    """The node that granted the ranges; None: the job was accepted here."""
    codes: dict[bytes, bytes] = field(default_factory=dict)
    lanes: dict[tuple[bytes, bytes, bool], Lane] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    runs: list[tuple[InputRun, Lane]] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)
    """How many tasks of each run have no result yet: inputs are let go at 0."""
    attempts: RangeMap[int] = field(default_factory=lambda: RangeMap(max))
    paused: bool = False
    turn: int = 0

    def ready(self) -> int:
        """Return how many tasks are ready."""
        return sum(lane.ready.size for lane in self.lanes.values())

    def locate(self, index: int) -> tuple[InputRun, Lane] | None:
        """Return the input run and the lane of a task, if its batch is here."""
        at = bisect_right(self.starts, index) - 1
        if at < 0 or index >= self.runs[at][0].hi:
            return None
        return self.runs[at]


@dataclass(slots=True)
class Owner:
    """One client of the pool: its works and how much time it was served."""

    served_s: float
    works: list[Work] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Taken:
    """Tasks of one lane, taken out of the pool with one attempt number."""

    work: Work
    lane: Lane
    spans: tuple[Span, ...]
    attempt: int
    alone: bool

    @property
    def count(self) -> int:
        """How many tasks these are."""
        return sum(hi - lo for lo, hi in self.spans)


class Pool:
    """Ready tasks of all works on this node."""

    def __init__(self) -> None:
        self.works: dict[Job, Work] = {}
        self._owners: dict[OwnerKey, Owner] = {}
        self._turn = 0

    # ---- filling ----------------------------------------------------------------------------------------------------

    def open(self, job: Job, name: str, owner: OwnerKey, keeper: str | None) -> Work:
        """Return the work of a job, made if it is not there."""
        work = self.works.get(job)
        if work is None:
            work = self.works[job] = Work(job, name, owner, keeper)
            least = min((o.served_s for o in self._owners.values()), default=0.0)
            self._owners.setdefault(owner, Owner(least)).works.append(work)
        return work

    def close(self, job: Job) -> None:
        """Forget a job: none of its tasks is ready any more."""
        work = self.works.pop(job, None)
        if work is not None:
            owner = self._owners[work.owner]
            owner.works.remove(work)
            if not owner.works:
                del self._owners[work.owner]

    def append(self, work: Work, batch: InputBatch) -> list[Lane]:
        """Take in a batch of inputs; its tasks are known, none is ready yet. Returns the lanes that are new."""
        new = []
        for run in batch.runs:
            if work.locate(run.lo) is not None:
                continue
            options = batch.opts[run.opts]
            key = (run.fn, pack(sorted(options.items())), run.shape != CALLS)
            lane = work.lanes.get(key)
            if lane is None:
                lane = work.lanes[key] = self._lane(work, run, options)
                new.append(lane)
            at = bisect_right(work.starts, run.lo)
            work.starts.insert(at, run.lo)
            work.runs.insert(at, (run, lane))
            work.unfinished.insert(at, run.hi - run.lo)
        return new

    def finished(self, work: Work, lo: int, hi: int) -> None:
        """Let go of the inputs of tasks that have their results; each task is reported once."""
        at = max(bisect_right(work.starts, lo) - 1, 0)
        while at < len(work.starts) and work.starts[at] < hi:
            run = work.runs[at][0]
            work.unfinished[at] -= max(0, min(hi, run.hi) - max(lo, run.lo))
            if work.unfinished[at] > 0:
                at += 1
                continue
            del work.starts[at], work.runs[at], work.unfinished[at]

    def _lane(self, work: Work, run: InputRun, raw: Mapping[str, object]) -> Lane:
        options = WireOptions.from_wire(raw)
        union = work.codes.get(run.fn)
        extra = {name: amount for name, amount in options.resources.items() if name not in ("cpu", "mem") and amount}
        return Lane(
            work=work,
            number=len(work.lanes),
            fn=run.fn,
            options=options,
            cpus=max(options.resources.get("cpu", 1), 0.0),
            resources=extra,
            minor=None if union is None else python_minor(union),
            packed=run.shape != CALLS,
            raw=raw,
        )

    def finished_before(self, work: Work, run: InputRun, done: RangeSet) -> None:
        """After a restart: some tasks of this run have their results already."""
        at = bisect_right(work.starts, run.lo) - 1
        work.unfinished[at] -= sum(hi - lo for lo, hi in done.within(run.lo, run.hi))

    def make_ready(self, work: Work, lo: int, hi: int, *, alone: bool = False) -> None:
        """Let tasks [lo, hi) be taken, as far as their inputs are here."""
        while lo < hi:
            found = work.locate(lo)
            if found is None:
                at = bisect_right(work.starts, lo)
                lo = work.starts[at] if at < len(work.starts) else hi
                continue
            run, lane = found
            end = min(hi, run.hi)
            lane.ready.add(lo, end)
            if alone:
                lane.alone.add(lo, end)
            lo = end

    def remove(self, work: Work, lo: int, hi: int) -> int:
        """Take tasks out that need not run (done elsewhere, cancelled); return how many were ready."""
        return sum(lane.ready.discard(lo, hi) for lane in work.lanes.values())

    # ---- taking -----------------------------------------------------------------------------------------------------

    def candidates(self, foreign: bool = True) -> list[Lane]:
        """Return the lanes with ready tasks, the one to serve first in front."""
        works: Iterable[Work]
        if len(self.works) == 1:
            works = self.works.values()
        else:
            owners = sorted(self._owners.values(), key=lambda owner: owner.served_s)
            works = [w for owner in owners for w in sorted(owner.works, key=lambda w: (-_priority(w), w.turn))]
        return [
            lane
            for work in works
            if not work.paused and (foreign or work.keeper is None)
            for lane in work.lanes.values()
            if lane.ready
        ]

    def take(self, lane: Lane, count: int) -> Taken:
        """Take up to `count` ready tasks of a lane that has some, all with one attempt number."""
        work = lane.work
        self._turn += 1
        work.turn = self._turn
        lo, hi = lane.ready.first() or (0, 0)
        if not lane.alone and not work.attempts:
            return Taken(work, lane, tuple(lane.ready.take(count)), 1, alone=False)
        attempt, alike = self._alike(work, lo, hi)
        if lo in lane.alone:
            lane.ready.discard(lo, lo + 1)
            lane.alone.discard(lo, lo + 1)
            return Taken(work, lane, ((lo, lo + 1),), attempt, alone=True)
        fenced = lane.alone.within(lo, hi)
        end = min(hi, lo + count, alike, *(a for a, _ in fenced[:1]))
        lane.ready.discard(lo, end)
        return Taken(work, lane, ((lo, end),), attempt, alone=False)

    @staticmethod
    def _alike(work: Work, lo: int, hi: int) -> tuple[int, int]:
        """Return the attempt number of task `lo`, and up to where it holds."""
        for a, b, attempt in work.attempts:
            if a <= lo < b:
                return attempt, min(b, hi)
            if lo < a:
                return 1, min(a, hi)
        return 1, hi

    def put_back(self, taken: Taken, spans: Sequence[Span]) -> None:
        """Make taken tasks ready again that were not started."""
        for lo, hi in spans:
            taken.lane.ready.add(lo, hi)
            if taken.alone:
                taken.lane.alone.add(lo, hi)

    def served(self, work: Work, seconds: float) -> None:
        """Charge time to the owner of a work."""
        owner = self._owners.get(work.owner)
        if owner is not None:
            owner.served_s += seconds

    def ready(self) -> int:
        """Return how many tasks are ready in all."""
        return sum(work.ready() for work in self.works.values())


def _priority(work: Work) -> int:
    return max((lane.options.priority for lane in work.lanes.values() if lane.ready), default=0)


def segments(taken: Taken) -> list[Segment]:
    """Return what a worker needs to run these tasks."""
    work = taken.work
    out: list[Segment] = []
    for start, hi in taken.spans:
        lo = start
        while lo < hi:
            found = work.locate(lo)
            assert found is not None, "a ready task without inputs"
            run, lane = found
            end = min(hi, run.hi)
            data, offset = run.cut(lo, end)
            key = b"" if run.shape == CALLS else run.lo.to_bytes(8, "big")
            out.append(Segment(lo, end, lane.fn, run.shape, data, offset, key))
            lo = end
    return out
