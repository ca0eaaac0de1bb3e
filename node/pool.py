"""The pool: tasks that are ready to run on this node, in which order they are taken, and how they are cut.

A *work* is what this node needs to run tasks of one job, its own or one whose ranges it was granted: input runs,
functions, attempts. A *lane* is all tasks of a work that call one function with one set of options; its ready tasks are
a range set, so a job of 10⁶ tasks costs a few intervals here.

Order: between owners the one that was served least time, so that ten small jobs do not wait behind one long one; inside
an owner by priority, then its jobs in turns. Only what has ready tasks stands in a queue: a thousand open jobs without
any cost nothing per event. A task marked *alone* is taken by itself: it was running when a worker or a node
died, and whoever shares a grain with it would die again with it.

Rule: this file knows neither workers nor peers nor journals.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from p2pgrid.core.batch import InputBatch, InputRun, binding
from p2pgrid.core.deps import fill
from p2pgrid.core.options import WireOptions
from p2pgrid.core.ranges import RangeMap, RangeSet, Span
from p2pgrid.core.wire import is_shallow, pack
from p2pgrid.node.events import Segment

Job = bytes
OwnerKey = tuple[bytes, bytes]  # the owner's key and the client's session
LaneKey = tuple[bytes, bytes, bool]  # function, options as packed, whether its inputs are packed


RISKY = 2
"""A task with which so many nodes vanished is suspected of being the cause."""
LANES_IDLE_MAX = 64
"""Lanes without tasks that a work keeps for the next batch."""
PARSED_MAX = 1024
_NO_OPTIONS = (pack([]), WireOptions())


@dataclass(slots=True, eq=False)
class Lane:
    """Tasks of one work with the same function and the same options."""

    work: Work
    key: LaneKey
    number: int
    fn: bytes
    options: WireOptions
    cpus: float
    resources: Mapping[str, float]
    """Beside `cpu` and `mem`: what must be free on the node while the task runs."""
    minor: int | None
    """The Python minor version the function is bound to."""
    tree: bytes | None
    """The source tree that the function imports from."""
    packed: bool
    ready: RangeSet = field(default_factory=RangeSet)
    alone: RangeSet = field(default_factory=RangeSet)
    unfit: dict[str, str] = field(default_factory=dict)
    """Nodes that cannot load the function, and why."""
    fits: bool | None = None
    """Whether this node satisfies what the tasks ask for, once that was looked at."""
    pythons: tuple[int, ...] | None = None
    """Which interpreters of this node do, by their places; None: all."""
    cannot: dict[int, str] = field(default_factory=dict)
    """Interpreters of this node that cannot load the function, and why."""
    raw: Mapping[str, object] = field(default_factory=dict)
    """The options as they travel."""
    runs: int = 0
    """How many input runs it has; without any it is let go."""

    def offers(self, *, safe: bool) -> bool:
        """Whether anything is ready; `safe`: that is not suspected of bringing its node down."""
        return bool(self.ready - self.work.risky) if safe and self.work.risky else bool(self.ready)

    def try_again(self) -> None:
        """Forget who cannot load the function: what was missing may be installed by now."""
        self.unfit.clear()
        self.cannot.clear()
        self.fits = None


@dataclass(slots=True, eq=False)
class Work:
    """What this node needs to run tasks of one job."""

    job: Job
    name: str
    owner: OwnerKey
    keeper: str | None
    """The node that granted the ranges; None: the job was accepted here."""
    codes: dict[bytes, bytes] = field(default_factory=dict)
    lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    lanes_made: int = 0
    hot: dict[int, dict[LaneKey, Lane]] = field(default_factory=dict)
    """The lanes with ready tasks, by priority."""
    starts: list[int] = field(default_factory=list)
    runs: list[tuple[InputRun, Lane]] = field(default_factory=list)
    unfinished: list[RangeSet] = field(default_factory=list)
    """Which tasks of each run have no result yet: with the last of them its inputs are let go."""
    attempts: RangeMap[int] = field(default_factory=lambda: RangeMap(max))
    risky: RangeSet = field(default_factory=RangeSet)
    """Tasks with which nodes vanished more than once: a node runs one of these at a time, so that the others are not
    charged with it again."""
    shown: int = 0
    """What somebody watches of it (core.prints: PRINTS, PROGRESS)."""

    def ready(self) -> int:
        """Return how many tasks are ready."""
        return sum(lane.ready.size for lanes in self.hot.values() for lane in lanes.values())

    def locate(self, index: int) -> tuple[InputRun, Lane] | None:
        """Return the input run and the lane of a task, if its batch is here."""
        at = bisect_right(self.starts, index) - 1
        if at < 0 or index >= self.runs[at][0].hi:
            return None
        return self.runs[at]

    def without_inputs(self, lo: int, hi: int) -> list[Span]:
        """Return the parts of [lo, hi) whose inputs are not here."""
        gaps = []
        while lo < hi:
            found = self.locate(lo)
            at = bisect_right(self.starts, lo)
            end = found[0].hi if found is not None else self.starts[at] if at < len(self.starts) else hi
            end = min(end, hi)
            if found is None:
                gaps.append((lo, end))
            lo = end
        return gaps


@dataclass(slots=True)
class Owner:
    """One client of the pool: how much time it was served, and its works with ready tasks, by priority, in turns."""

    served_s: float = 0.0
    works: int = 0
    queues: dict[int, OrderedDict[Job, Work]] = field(default_factory=dict)


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

    def pieces(self) -> Iterator[tuple[InputRun, Lane, int, int]]:
        """Yield (run, lane, lo, hi): the tasks cut where one input run ends and the next begins."""
        for start, hi in self.spans:
            lo = start
            while lo < hi:
                found = self.work.locate(lo)
                assert found is not None, "a taken task without inputs"
                run, lane = found
                end = min(hi, run.hi)
                yield run, lane, lo, end
                lo = end


class Pool:
    """Ready tasks of all works on this node."""

    def __init__(self) -> None:
        self.works: dict[Job, Work] = {}
        self._owners: dict[OwnerKey, Owner] = {}
        self._active: dict[OwnerKey, Owner] = {}
        """Owners with ready tasks."""
        self._parsed: dict[bytes, WireOptions] = {}

    # ---- filling ----------------------------------------------------------------------------------------------------

    def open(self, job: Job, name: str, owner: OwnerKey, keeper: str | None) -> Work:
        """Return the work of a job, made if it is not there."""
        work = self.works.get(job)
        if work is None:
            work = self.works[job] = Work(job, name, owner, keeper)
            self._owners.setdefault(owner, Owner()).works += 1
        return work

    def close(self, job: Job) -> None:
        """Forget a job: none of its tasks is ready any more."""
        work = self.works.pop(job, None)
        if work is None:
            return
        for lane in work.lanes.values():
            lane.ready, lane.alone = RangeSet(), RangeSet()
            self._queue(lane)
        owner = self._owners[work.owner]
        owner.works -= 1
        if not owner.works:
            del self._owners[work.owner]

    def convert(self, work: Work, owner: OwnerKey, keeper: str | None) -> None:
        """Let a work be another's from now on: its keeper has changed. What was taken from it stays so."""
        lanes = [lane for hot in list(work.hot.values()) for lane in hot.values()]
        ready = [(lane, lane.ready) for lane in lanes]
        for lane in lanes:
            lane.ready = RangeSet()
            self._queue(lane)
        before = self._owners[work.owner]
        before.works -= 1
        if not before.works:
            del self._owners[work.owner]
        work.owner, work.keeper = owner, keeper
        self._owners.setdefault(owner, Owner()).works += 1
        for lane, spans in ready:
            lane.ready = spans
            self._queue(lane)

    def append(self, work: Work, batch: InputBatch) -> list[Lane]:
        """Take in a batch of inputs; its tasks are known, none is ready yet. Returns the lanes that are new.

        Raises:
            ValueError: its options are none; nothing was taken in.
        """
        table = [self._options(raw) for raw in batch.opts]
        new = []
        for run in batch.runs:
            packed, options = table[run.opts]
            key = (run.fn, packed, run.packed)
            for piece in self._unknown(work, run):
                lane = work.lanes.get(key)
                if lane is None:
                    lane = work.lanes[key] = self._lane(work, key, options, batch.opts[run.opts])
                    new.append(lane)
                lane.runs += 1
                at = bisect_right(work.starts, piece.lo)
                work.starts.insert(at, piece.lo)
                work.runs.insert(at, (piece, lane))
                work.unfinished.insert(at, RangeSet([(piece.lo, piece.hi)]))
        return new

    def _options(self, raw: Mapping[str, object]) -> tuple[bytes, WireOptions]:
        """Return options in one order, and what they mean; most batches carry the same few."""
        if not raw:
            return _NO_OPTIONS
        if not all(isinstance(name, str) for name in raw):
            msg = "options whose names are no text"
            raise ValueError(msg)
        packed = pack(sorted(raw.items()))
        options = self._parsed.get(packed)
        if options is None:
            if not is_shallow(raw):
                msg = "options nested too deep"
                raise ValueError(msg)
            if len(self._parsed) >= PARSED_MAX:
                self._parsed.clear()
            options = self._parsed[packed] = WireOptions.from_wire(raw)
        return packed, options

    @staticmethod
    def _unknown(work: Work, run: InputRun) -> list[InputRun]:
        """Return the parts of a run whose inputs are not here; a range granted again may be cut in another way."""
        if not work.runs or run.lo >= work.runs[-1][0].hi:
            return [run]
        at = max(bisect_right(work.starts, run.lo) - 1, 0)
        gaps, lo = [], run.lo
        while at < len(work.starts) and work.starts[at] < run.hi:
            have = work.runs[at][0]
            if have.hi > run.lo:
                a, b = max(run.lo, have.lo), min(run.hi, have.hi)
                work.unfinished[at].add(a, b)
                if have.deps is not None and run.deps is not None:
                    # Kept since this node served the job itself: they waited then, and are granted with their values.
                    fill(have.data[a - have.lo : b - have.lo], have.deps, run.data[a - run.lo : b - run.lo], run.deps)
                if lo < have.lo:
                    gaps.append((lo, have.lo))
                lo = max(lo, have.hi)
            at += 1
        if lo < run.hi:
            gaps.append((lo, run.hi))
        if gaps == [(run.lo, run.hi)]:
            return [run]
        if run.packed:
            return []  # a packed run travels whole or not at all
        return [replace(run, lo=a, hi=b, data=run.data[a - run.lo : b - run.lo]) for a, b in gaps]

    def finished(self, work: Work, lo: int, hi: int) -> None:
        """Let go of the inputs of tasks that will not run any more."""
        at = max(bisect_right(work.starts, lo) - 1, 0)
        while at < len(work.starts) and work.starts[at] < hi:
            left = work.unfinished[at]
            left.discard(lo, hi)
            if left:
                at += 1
                continue
            lane = work.runs[at][1]
            lane.runs -= 1
            if not lane.runs and len(work.lanes) > LANES_IDLE_MAX:
                work.lanes.pop(lane.key, None)
            del work.starts[at], work.runs[at], work.unfinished[at]

    @staticmethod
    def _lane(work: Work, key: LaneKey, options: WireOptions, raw: Mapping[str, object]) -> Lane:
        union = work.codes.get(key[0])
        minor, tree = (None, None) if union is None else binding(union)
        work.lanes_made += 1
        extra = {name: amount for name, amount in options.resources.items() if name not in ("cpu", "mem") and amount}
        return Lane(
            work=work,
            key=key,
            number=work.lanes_made,
            fn=key[0],
            options=options,
            cpus=max(options.resources.get("cpu", 1), 0.0),
            resources=extra,
            minor=minor,
            tree=tree,
            packed=key[2],
            raw=raw,
        )

    def make_ready(self, work: Work, lo: int, hi: int, *, alone: bool = False) -> None:
        """Let tasks [lo, hi) be taken, as far as their inputs are here and those they depend on have ended."""
        while lo < hi:
            found = work.locate(lo)
            if found is None:
                at = bisect_right(work.starts, lo)
                lo = work.starts[at] if at < len(work.starts) else hi
                continue
            run, lane = found
            end = min(hi, run.hi)
            for a, b in [(lo, end)] if run.deps is None else run.ready(lo, end):
                lane.ready.add(a, b)
                if alone:
                    lane.alone.add(a, b)
            self._queue(lane)
            lo = end

    def remove(self, work: Work, lo: int, hi: int) -> None:
        """Take tasks out that need not run (done elsewhere, cancelled)."""
        at = max(bisect_right(work.starts, lo) - 1, 0)
        while at < len(work.starts) and work.starts[at] < hi:
            lane = work.runs[at][1]
            if lane.ready.discard(max(lo, work.starts[at]), min(hi, work.runs[at][0].hi)):
                lane.alone.discard(lo, hi)
                self._queue(lane)
            at += 1

    def _queue(self, lane: Lane) -> None:
        """Let a lane stand in the queues exactly while it has ready tasks."""
        work, level = lane.work, lane.options.priority
        lanes = work.hot.setdefault(level, {})
        owner = self._owners[work.owner]
        if lane.ready:
            lanes[lane.key] = lane
            owner.queues.setdefault(level, OrderedDict()).setdefault(work.job, work)
            if work.owner not in self._active:
                # Whoever had nothing to do has no credit for that: else it would hold up all others later.
                least = min((other.served_s for other in self._active.values()), default=0.0)
                owner.served_s = max(owner.served_s, least)
                self._active[work.owner] = owner
            return
        lanes.pop(lane.key, None)
        if lanes:
            return
        del work.hot[level]
        queue = owner.queues.get(level, OrderedDict())
        queue.pop(work.job, None)
        if not queue:
            owner.queues.pop(level, None)
        if not owner.queues:
            self._active.pop(work.owner, None)

    # ---- taking -----------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether any task is ready."""
        return bool(self._active)

    def candidates(self, *, foreign: bool = True) -> Iterator[Lane]:
        """Yield the lanes with ready tasks, the one to serve first in front; `foreign`: granted ones as well."""
        if not self._active:
            return
        first = min(self._active.values(), key=lambda owner: owner.served_s)
        yield from self._lanes_of(first, foreign=foreign)
        for owner in sorted(self._active.values(), key=lambda owner: owner.served_s):
            if owner is not first:
                yield from self._lanes_of(owner, foreign=foreign)

    @staticmethod
    def _lanes_of(owner: Owner, *, foreign: bool) -> Iterator[Lane]:
        for level in sorted(owner.queues, reverse=True):
            for work in owner.queues[level].values():
                if foreign or work.keeper is None:
                    yield from work.hot[level].values()

    def take(self, lane: Lane, count: int, *, safe: bool = False) -> Taken:
        """Take up to `count` ready tasks of a lane that has some, all with one attempt number; `safe`: no risky one."""
        taken = self._taken(lane, count, safe=safe)
        self._queue(lane)
        queue = self._owners[lane.work.owner].queues.get(lane.options.priority)
        if queue is not None and lane.work.job in queue:
            queue.move_to_end(lane.work.job)
        return taken

    def take_at(self, lane: Lane, first: int, count: int) -> Taken:
        """Take up to `count` ready tasks of a lane from this one on, which is ready and need not run alone."""
        work = lane.work
        hi = next(hi for lo, hi in lane.ready.within(first, first + count) if lo == first)
        fenced = [*lane.alone.within(first, hi)[:1], *work.risky.within(first, hi)[:1]]
        end = min(hi, work.attempts.alike(first, hi), *(a for a, _ in fenced))
        lane.ready.discard(first, end)
        self._queue(lane)
        return Taken(work, lane, ((first, end),), work.attempts.get(first) or 1, alone=False)

    @staticmethod
    def _taken(lane: Lane, count: int, *, safe: bool) -> Taken:
        work = lane.work
        ready = lane.ready - work.risky if safe and work.risky else lane.ready
        lo, hi = ready.first() or (0, 0)
        if not lane.alone and not work.attempts:
            return Taken(work, lane, tuple(lane.ready.take(count)), 1, alone=False)
        attempt = work.attempts.get(lo) or 1
        if lo in lane.alone:
            lane.ready.discard(lo, lo + 1)
            lane.alone.discard(lo, lo + 1)
            return Taken(work, lane, ((lo, lo + 1),), attempt, alone=True)
        fenced = lane.alone.within(lo, hi)
        end = min(lo + count, work.attempts.alike(lo, hi), *(a for a, _ in fenced[:1]))
        lane.ready.discard(lo, end)
        return Taken(work, lane, ((lo, end),), attempt, alone=False)

    def take_last(self, lane: Lane, count: int) -> list[Taken]:
        """Take up to `count` ready tasks of a lane from its end, the last ones first; none that has to run alone."""
        work = lane.work
        out: list[Taken] = []
        for start, hi in reversed(list(lane.ready - lane.alone if lane.alone else lane.ready)):
            lo = max(start, hi - count)
            pieces = []
            at = lo
            while at < hi:
                end = work.attempts.alike(at, hi)
                pieces.append(Taken(work, lane, ((at, end),), work.attempts.get(at) or 1, alone=False))
                at = end
            out += reversed(pieces)
            lane.ready.discard(lo, hi)
            count -= hi - lo
            if not count:
                break
        self._queue(lane)
        return out

    def put_back(self, taken: Taken, spans: Sequence[Span]) -> None:
        """Make taken tasks ready again that were not started."""
        if self.works.get(taken.work.job) is not taken.work:
            return
        for lo, hi in spans:
            taken.lane.ready.add(lo, hi)
            if taken.alone:
                taken.lane.alone.add(lo, hi)
        self._queue(taken.lane)

    def served(self, work: Work, seconds: float) -> None:
        """Charge time to the owner of a work."""
        owner = self._owners.get(work.owner)
        if owner is not None:
            owner.served_s += seconds

    def ready(self) -> int:
        """Return how many tasks are ready in all."""
        return sum(work.ready() for work in self.works.values())


def segments(taken: Taken) -> list[Segment]:
    """Return what a worker needs to run these tasks."""
    out: list[Segment] = []
    for run, lane, lo, end in taken.pieces():
        data, offset = run.cut(lo, end)
        key = run.lo.to_bytes(8, "big") if run.packed else b""
        out.append(Segment(lo, end, lane.fn, run.shape, data, offset, key))
    return out
