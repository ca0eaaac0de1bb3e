"""The workers of this node: which tasks each gets next, how many at once, and what becomes of them when one dies.

A *grain* is what goes to a worker in one run: about `grain_s` of work by measured rates, at most `grain_calls` single
submits, one task while the rate of a function is unknown. Two grains may be with a worker, so that it never waits for
us; a worker with nothing to do makes us recall what another has not started.

Rule: this file decides about workers and slots alone. It takes from the pool it is given and reports what became of
tasks to its caller; it knows no peers, clients or journals.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.threads import threads_for
from p2pgrid.node.events import Effect, Kill, Outcome, Recall, Run, SetTimer
from p2pgrid.node.grains import RunInfo, RunningOptions, Worker
from p2pgrid.node.pool import Job, Lane, Pool, Taken, segments

LENT_MAX = 16
"""Slots that are lent at most, while tasks wait for others that they have started."""
LENT_FREE = 12
"""So many of them are for whatever is ready; the rest for what is waited for."""
LEND_AFTER_S = 0.05
"""A wait that is over before then is not worth another process."""
AGAIN_S = 1.0
"""So long a lent slot is left alone whose process died: it may be that none can be started."""
OVERLAP = 5
OVERLAP_S = 0.05
WARM_KEPT = 64
"""A run that took so much longer than its tasks kept the processor busy was waiting, with many of them at once."""


class Running:
    """Slots and grains of one node."""

    def __init__(
        self, slots: int, resources: Mapping[str, float], options: RunningOptions, node: str, pythons: int = 1
    ) -> None:
        self.workers = {i: Worker(i, python=i % pythons) for i in range(slots)}
        self.slots = slots
        self.grid_slots = slots
        """Slots that tasks of our own jobs are shared among; kept up to date by whoever knows the members."""
        self.node = node
        self.resources = dict(resources)
        self.options = options
        self.stopping = False
        self._runs = 0
        self._seconds_per_task: OrderedDict[bytes, float] = OrderedDict()
        self._overlapping: dict[bytes, None] = {}
        """Functions whose tasks mostly wait, many of them at once in one worker (`async def`)."""
        self._waiting: tuple[Lane, float] | None = None  # a wide lane that slots are being kept free for
        self._recall_due = False
        self.done = 0
        """Tasks that have ended here, in this life."""
        self.awaited: Callable[[], Iterable[Lane]] = list
        """Lanes of what tasks here wait for."""
        self._waiting_runs = 0
        """How many workers have a task that waits, with nothing below it; none, mostly."""
        self._parents: OrderedDict[bytes, None] = OrderedDict()
        """Functions that wait for tasks: they come one at a time."""

    # ---- what is running --------------------------------------------------------------------------------------------

    def idle(self) -> list[Worker]:
        """Return the workers that wait for a run; those that may be lent now among them."""
        idle = [w for w in self.workers.values() if w.ready and not w.runs]
        if len(self.workers) == self.slots:
            return idle
        room = self._lendable()
        return [w for w in idle if not w.lent] + [w for w in idle if w.lent][:room]

    def innermost(self, worker: Worker) -> RunInfo | None:
        """Return what a worker runs now, or what waits there with nothing below it."""
        return worker.below[-1] if worker.below else worker.runs[0] if worker.runs else None

    def active(self) -> int:
        """Return how many workers run something that does not wait."""
        return sum(info is not None and info.at is None for info in map(self.innermost, self.workers.values()))

    def lends_again_s(self) -> float:
        """Return until when a slot is left alone that was lent and whose process died; it may be long ago."""
        return max((worker.again_s for worker in self.workers.values() if worker.lent), default=0.0)

    def _lendable(self, now: float | None = None) -> int:
        """Return how many more slots may be lent: as many as have waited for a moment."""
        if not self._waiting_runs:
            return 0
        used = sum(w.lent and bool(w.runs) for w in self.workers.values())
        waiting = 0
        for worker in self.workers.values():
            info = self.innermost(worker)
            if info is not None and info.at is not None and (now is None or now >= info.waits_s + LEND_AFTER_S):
                waiting += 1
        return max(0, min(waiting, LENT_MAX) - used)

    def free_slots(self) -> int:
        """Return how many more one-slot tasks could start now."""
        return 0 if self.stopping else max(0, min(len(self.idle()), int(self.slots - self._cpus_used())))

    def spans(self, job: Job) -> RangeSet:
        """Return the tasks of a job that are with workers."""
        return RangeSet(span for w in self.workers.values() for r in w.all_runs if r.job == job for span in r.left)

    def first_of_each(self, job: Job) -> list[int]:
        """Return the tasks of a job that run now, as far as we know without asking the workers."""
        begun = (info for w in self.workers.values() for info in w.begun if info.job == job and info.left)
        return [info.left.first()[0] if info.at is None else info.at for info in begun]  # type: ignore[index]

    def busy(self) -> bool:
        """Whether any worker has a run."""
        return any(w.runs for w in self.workers.values())

    def speed(self) -> float:
        """Return the known task rate of this node, tasks per second over all slots (0: unknown)."""
        if not self._seconds_per_task:
            return 0.0
        newest = next(reversed(self._seconds_per_task.values()))
        return self.slots / max(newest, 1e-7)

    def typical_s(self) -> float:
        """Return how long the newest tasks take here; a second while that is unknown."""
        return self._seconds_per_task[next(reversed(self._seconds_per_task))] if self._seconds_per_task else 1.0

    def seconds(self, fn: bytes) -> float | None:
        """Return how long a task of this function takes here, if that is known."""
        return self._seconds_per_task.get(fn)

    def rates(self, most: int) -> list[tuple[bytes, float]]:
        """Return how long tasks of functions take here, those that ran last."""
        return list(islice(reversed(self._seconds_per_task.items()), most))

    def backlog(self, pool: Pool, eligible: Any, enough_s: float) -> tuple[float, float]:
        """Return how many slot-seconds of work wait here, counted up to about `enough_s`, and those of the newest task.

        What a worker runs now does not count; tasks of unknown length count as long ones, so that few are asked for.
        """
        known = self._seconds_per_task
        typical = known[next(reversed(known))] if known else 1.0
        waits_s = 0.0
        for worker in self.workers.values():
            begun = worker.begun
            for info in worker.all_runs:
                lane = info.taken.lane
                count = info.left.size - (1 if info in begun else 0)
                waits_s += max(count, 0) * known.get(lane.fn, typical) * max(lane.cpus, 1)
        for lane in pool.candidates():
            if waits_s > enough_s:
                break
            if eligible(lane):
                waits_s += lane.ready.size * known.get(lane.fn, typical) * max(lane.cpus, 1)
        return waits_s, typical

    def _cpus_used(self) -> float:
        # Whatever is queued behind a run takes no more than it: only one-slot tasks are queued.
        # What waits for tasks that it has started lends what it asked for.
        if not self._waiting_runs:
            return sum([w.runs[0].taken.lane.cpus for w in self.workers.values() if w.runs])
        inner = [info for info in map(self.innermost, self.workers.values()) if info is not None and info.at is None]
        return sum([info.taken.lane.cpus for info in inner])

    def _resources_free(self, lane: Lane) -> bool:
        for name, amount in lane.resources.items():
            inner = [info for info in map(self.innermost, self.workers.values()) if info is not None]
            used = sum(info.taken.lane.resources.get(name, 0.0) for info in inner if info.at is None)
            if used + amount > self.resources.get(name, 0.0):
                return False
        return True

    # ---- feeding ----------------------------------------------------------------------------------------------------

    def feed(self, pool: Pool, eligible: Any, now: float) -> list[Effect]:
        """Give tasks to workers while there are both. `eligible(lane)` says whether this node may run it at all."""
        out: list[Effect] = []
        if self.stopping:
            return out
        starved = not pool.waits
        queued = 0
        for worker in self.workers.values():
            if worker.runs:
                queued += 1
            if worker.lent:
                continue
            while worker.ready and not worker.runs and not starved:  # another may be better suited, and get it
                starved = not self._give(worker, pool, eligible, now, out)
        if not starved and self._waiting_runs:
            self._lend(pool, eligible, now, out)
        if not starved:
            for worker in self.workers.values():
                if worker.below or (worker.runs and worker.runs[0].at is not None):
                    continue
                if worker.ready and len(worker.runs) == 1 and not self._prefetch(worker, pool, eligible, now, out):
                    break
        elif queued and not self._recall_due and any(self._unstarted(w) > 0 for w in self.workers.values()):
            self._recall_due = True
            out.append(SetTimer(("recall",), now + self.options.recall_after_s))
        return out

    def _lend(self, pool: Pool, eligible: Any, now: float, out: list[Effect]) -> None:
        """Let others run in the place of tasks that wait."""
        for _ in range(self._lendable(now)):
            idle = [w for w in self.workers.values() if w.lent and w.ready and not w.runs and w.again_s <= now]
            used = sum(w.lent and bool(w.runs) for w in self.workers.values())
            number = len(self.workers)
            if not idle and (number >= self.slots + LENT_MAX or self.lends_again_s() > now):
                return
            lane = self._choose_awaited(eligible) or (self._choose(pool, eligible, now) if used < LENT_FREE else None)
            if lane is None:
                return
            if not idle:
                self.workers[number] = Worker(number, ready=True, lent=True)
                idle = [self.workers[number]]
            self._start(next((w for w in idle if w.serves(lane)), idle[0]), pool, lane, now, out)

    def _choose_awaited(self, eligible: Any) -> Lane | None:
        return next(
            (
                lane for lane in self.awaited()
                if eligible(lane) and self.has_room(lane) and lane.offers(safe=self._runs_risky(lane))
            ),
            None,
        )  # fmt: skip

    def has_room(self, lane: Lane) -> bool:
        """Whether a task of a lane could run now, by what it asks for."""
        return self._resources_free(lane) and self._cpus_used() + lane.cpus <= self.slots

    def _give(self, worker: Worker, pool: Pool, eligible: Any, now: float, out: list[Effect]) -> bool:
        lane = self._choose(pool, eligible, now)
        if lane is None:
            return False
        self._start(self._suited(worker, lane), pool, lane, now, out)
        return True

    def _suited(self, worker: Worker, lane: Lane) -> Worker:
        """Return the idle worker that runs tasks of a lane soonest: one that has its source tree, or needs none."""
        if lane.tree is None and worker.serves(lane):
            return worker
        idle = [one for one in self.idle() if one.serves(lane)]
        return next((one for one in idle if one.tree == lane.tree), idle[0] if idle else worker)

    def _choose(self, pool: Pool, eligible: Any, now: float) -> Lane | None:
        """Return the lane to serve next; slots are kept free for one that waited over a second for enough of them."""
        if self._waiting is not None and not (self._waiting[0].ready and eligible(self._waiting[0])):
            self._waiting = None
        used = -1.0
        for lane in pool.candidates():
            if not eligible(lane) or not lane.offers(safe=self._runs_risky(lane)):
                continue
            if used < 0:
                used = self._cpus_used()
            if not self._resources_free(lane):
                continue  # whoever holds them may run for hours: the slots are for others meanwhile
            if used + lane.cpus <= self.slots:
                if self._waiting is None or lane is self._waiting[0]:
                    self._waiting = None
                    return lane
                if now - self._waiting[1] < 1.0:
                    return lane
                return None
            if self._waiting is None:
                self._waiting = (lane, now)
        return None

    def _prefetch(self, worker: Worker, pool: Pool, eligible: Any, now: float, out: list[Effect]) -> bool:
        """Queue a second grain behind a short one of the same kind, so that the worker never waits for us."""
        front = worker.runs[0].taken.lane
        if front.cpus > 1 or front.resources or self._seconds_per_task.get(front.fn, 1.0) > self.options.grain_s:
            return True
        if self._overlaps(front) or front.fn in self._parents or worker.runs[0].waited:
            return True
        for lane in pool.candidates():
            if not eligible(lane):
                continue
            if not worker.serves(lane) or not lane.offers(safe=True):
                return True
            short = self._seconds_per_task.get(lane.fn, 1.0) <= self.options.grain_s
            if lane.work.keeper is None and lane.ready.size < self.grid_slots - self.slots:
                return True  # the last few: a member that is idle begins them now
            if lane.cpus <= 1 and not lane.resources and short:
                self._start(worker, pool, lane, now, out, safe=True)
                return True
            return True
        return False

    def _runs_risky(self, lane: Lane) -> bool:
        """Whether a task of its job runs here that is suspected of bringing nodes down."""
        risky = lane.work.risky
        return bool(risky) and bool(self.spans(lane.work.job) & risky)

    def _overlaps(self, lane: Lane) -> bool:
        """Whether tasks of a lane mostly wait: their function is `async def`, or was seen to keep no processor busy."""
        return lane.options.overlap or lane.fn in self._overlapping

    def grain(self, lane: Lane) -> int:
        """Return how many tasks of a lane to hand out at once."""
        overlaps = self._overlaps(lane) and not lane.resources and lane.cpus <= 1
        per_task = self._seconds_per_task.get(lane.fn, 0.0 if overlaps else None)
        if per_task is None or lane.fn in self._parents:
            return 1
        calls = self.options.overlap_calls if overlaps else self.options.grain_calls
        most = self.options.grain_items if lane.packed else calls
        per_task = max(per_task, 1e-9)
        # Shared out towards the end, but not into crumbs: handing over costs as much as some milliseconds of work.
        slots = self.slots if lane.work.keeper is not None else max(self.slots, self.grid_slots)
        if overlaps:
            # Fewer than wait at once in a child would leave it waiting, and come one after the other.
            given = sum(info.left.size for w in self.workers.values() for info in w.runs if info.taken.lane is lane)
            return max(1, min(most, max(-(-(lane.ready.size + given) // slots), self.options.overlap_least)))
        fair = max(-(-lane.ready.size // (2 * slots)), int(self.options.crumb_s / per_task))
        return max(1, min(most, fair, int(self.options.grain_s / per_task)))

    def _start(
        self, worker: Worker, pool: Pool, lane: Lane, now: float, out: list[Effect], *, safe: bool = False
    ) -> None:  # fmt: skip
        taken = pool.take(lane, self.grain(lane), safe=safe or self._runs_risky(lane))
        if not worker.serves(lane):
            worker.tree = None
            worker.warm.clear()
            if lane.pythons is not None and worker.python not in lane.pythons:
                worker.python = lane.pythons[0]
        worker.tree = lane.tree or worker.tree
        worker.threads = threads_for(lane.cpus)
        info = self._info(worker, taken, now, queued=bool(worker.runs))
        worker.runs.append(info)
        out.append(self._run(worker, info))

    def _info(self, worker: Worker, taken: Taken, now: float, *, queued: bool) -> RunInfo:
        self._runs += 1
        return RunInfo(self._runs, taken, RangeSet(taken.spans), now, queued=queued, python=worker.python)

    def _run(self, worker: Worker, info: RunInfo, inside: tuple[int, int] | None = None) -> Run:
        taken = info.taken
        lane = taken.lane
        options = lane.options
        memory = options.resources.get("mem")
        return Run(
            worker=worker.id,
            run=info.run,
            job=lane.work.job,
            segments=segments(taken),
            codes=lane.work.codes,
            context={
                "name": lane.work.name,
                "attempt": taken.attempt,
                "node": self.node,
                "prints": options.prints,
                "env": dict(options.env or {}),
                "cpu": lane.cpus,
                "show": lane.work.shown,
                **({"keep": options.keep} if options.keep != "value" else {}),
                **({"nested": options.nested} if options.nested else {}),
            },
            timeout_s=options.timeout_s,
            memory=None if memory is None else int(memory),
            tree=lane.tree,
            python=worker.python,
            inside=inside,
        )

    # ---- tasks that wait --------------------------------------------------------------------------------------------

    def waits(self, worker: Worker, info: RunInfo, index: int, *, may_run: bool, now: float) -> list[Effect]:
        """A task waits for others: whatever is behind it is for whoever is free."""
        if info.at is None:
            info.at, info.waits_s, info.waited = index, now, True
            self._waiting_runs += 1
        info.waits += 1
        if may_run:
            self._parents[info.taken.lane.fn] = None
            if len(self._parents) > self.options.rates_kept:
                self._parents.popitem(last=False)
        behind = sum(one.left.size for one in worker.runs) > 1 or any(one.left.size > 1 for one in worker.below)
        return [Recall(worker.id)] if may_run and behind else []

    def waits_no_more(self, worker: Worker, info: RunInfo) -> list[Effect]:
        """It goes on; what was to run below it and has not begun does not."""
        info.waits -= 1
        if info.waits or info.at is None:
            return []
        self._forget_wait(info)
        late = worker.below[worker.below.index(info) + 1 :] if info in worker.below else worker.below
        return [Recall(worker.id)] if late and info in worker.all_runs else []

    def _forget_wait(self, info: RunInfo) -> None:
        if info.at is not None:
            info.at, info.waits = None, 0
            self._waiting_runs -= 1

    def run_below(
        self, worker: Worker, index: int, pool: Pool, lane: Lane, first: int, now: float
    ) -> list[Effect]:  # fmt: skip
        """Let tasks of a lane run below one of this worker that waits."""
        outer = self.innermost(worker)
        assert outer is not None, "a task that waits is with its worker"
        info = self._info(worker, pool.take_at(lane, first, self.grain(lane)), now, queued=False)
        worker.below.append(info)
        worker.tree = lane.tree or worker.tree
        return [self._run(worker, info, (outer.run, index))]

    # ---- what workers report ----------------------------------------------------------------------------------------

    def worker_ready(self, worker: int) -> None:
        """Take a (new) child into service."""
        if worker in self.workers:
            self.workers[worker].ready = True

    def find(self, worker: int, run: int) -> RunInfo | None:
        """Return a run that is with a worker."""
        child = self.workers.get(worker)
        for info in () if child is None else child.all_runs:
            if info.run == run:
                return info
        return None

    def progressed(
        self, info: RunInfo, outcomes: Sequence[Outcome], busy_s: float, pool: Pool, now: float
    ) -> None:  # fmt: skip
        """Note which tasks of a run have ended and how long they took."""
        count = 0
        for outcome in outcomes:
            count += info.left.discard(outcome.lo, outcome.hi)
        pool.served(info.taken.work, busy_s * max(info.taken.lane.cpus, 1))
        if not count:
            return
        self.done += count
        fn, sample = info.taken.lane.fn, busy_s / count
        info.busy_s += busy_s
        warm = any(fn in worker.warm for worker in self.workers.values() if info in worker.runs)
        if warm and not info.queued and not info.waited and now - info.since_s > max(OVERLAP_S, OVERLAP * info.busy_s):
            self._overlapping[fn] = None
            if len(self._overlapping) > self.options.rates_kept:
                del self._overlapping[next(iter(self._overlapping))]
        known = self._seconds_per_task.pop(fn, sample)
        self._seconds_per_task[fn] = known + 0.3 * (sample - known)
        if len(self._seconds_per_task) > self.options.rates_kept:
            self._seconds_per_task.popitem(last=False)

    def ended(self, worker: int, info: RunInfo, now: float) -> None:
        """Take a finished run from its worker."""
        child = self.workers[worker]
        self._forget_wait(info)
        if info in child.below:
            child.below.remove(info)
            return
        child.runs.remove(info)
        child.recalled = False
        child.warm[info.taken.lane.fn] = None
        if len(child.warm) > WARM_KEPT:
            child.warm.popitem(last=False)
        if child.runs:
            child.runs[0].since_s = now

    def died(self, worker: int, now: float) -> list[RunInfo]:
        """Take a dead child out of service; return the runs that were with it, that whose task ran first."""
        child = self.workers.get(worker)
        if child is None:
            return []
        runs = list(child.all_runs)
        self._waiting_runs -= sum(info.at is not None for info in runs)
        child.runs, child.below = [], []
        child.ready, child.recalled = child.lent, False
        child.again_s = now + AGAIN_S
        child.tree = child.threads = None
        child.warm.clear()
        return runs

    # ---- taking back ------------------------------------------------------------------------------------------------

    def _unstarted(self, worker: Worker) -> int:
        below = sum(max(0, r.left.size - 1) for r in worker.below)
        return 0 if worker.recalled else max(0, sum(r.left.size for r in worker.runs) - 1) + below

    def recall(self, now: float) -> list[Effect]:
        """On the timer: ask the worker with the most unstarted work to give it back, if another is still idle."""
        self._recall_due = False
        if self.stopping or not self.idle():
            return []
        loaded = [w for w in self.workers.values() if self._unstarted(w) > 0]
        if not loaded:
            return []
        worst = max(loaded, key=lambda w: (self._seconds(w), -w.id))
        if now - worst.runs[0].since_s < self.options.recall_after_s / 2:
            self._recall_due = True
            return [SetTimer(("recall",), now + self.options.recall_after_s)]
        worst.recalled = True
        return [Recall(worst.id)]

    def queues_for_others(self) -> bool:
        """Whether a worker has tasks of other nodes that it has not begun."""
        return any(self._unstarted(w) and w.runs[-1].taken.work.keeper is not None for w in self.workers.values())

    def free_up(self, least_s: float, wanted: Callable[[Lane], bool]) -> list[Effect]:
        """Ask the worker with the most unstarted work to give it back for other nodes, if it is as much as that."""
        fit = [w for w in self.workers.values() if self._unstarted(w) > 0 and wanted(w.runs[-1].taken.lane)]
        worst = max(fit, key=lambda w: (self._seconds(w), -w.id), default=None)
        if self.stopping or worst is None or self._seconds(worst) * (1 - 1 / (self._unstarted(worst) + 1)) < least_s:
            return []
        worst.recalled = True
        return [Recall(worst.id)]

    def look(self, now: float) -> None:
        """Learn from tasks that still run: they take longer than was known, if they have by now."""
        for worker in self.workers.values():
            info = self.innermost(worker)
            if info is None or info.waited or self._overlaps(info.taken.lane):
                continue
            fn, so_far = info.taken.lane.fn, (now - info.since_s) / (info.taken.count - info.left.size + 1)
            if so_far > self._seconds_per_task.get(fn, so_far):
                self._seconds_per_task[fn] = so_far

    def _seconds(self, worker: Worker) -> float:
        return sum(r.left.size * self._seconds_per_task.get(r.taken.lane.fn, 1.0) for r in worker.all_runs)

    def cancel(self, job: Job, cancelled: RangeSet | None) -> list[Effect]:
        """Stop tasks of a job that are with workers (None: all of it)."""
        out: list[Effect] = []
        for worker in self.workers.values():
            for info in worker.all_runs:
                if info.job != job:
                    continue
                spans = list(info.left if cancelled is None else info.left & cancelled)
                if spans:
                    out.append(Kill(worker.id, info.run, spans))
        return out

    def stop(self) -> list[Effect]:
        """Start nothing new; give back what has not started."""
        self.stopping = True
        return [Recall(w.id) for w in self.workers.values() if w.runs]

    def kill_all(self) -> list[Effect]:
        """End whatever runs."""
        return [Kill(w.id, w.runs[0].run, None) for w in self.workers.values() if w.runs]
