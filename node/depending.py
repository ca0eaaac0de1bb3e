"""Depending: tasks whose arguments other tasks return wait here until all of those have ended.

A task waits as long as its run's table (`core.deps`) has an id where it needs a value; as tasks end, values take the
place of ids, and a task that lacks none is made ready. Its values go wherever it goes. When one of those it waits for
fails, is cancelled, or is known to nobody for `unknown_s`, it fails as DependencyFailed, and with it who waits for it.

Values of tasks that ended before are read from memory or by way of the disk, at most FETCH_MAX at once.

Rule: this file decides who waits. Values stay packed; what becomes of ready tasks is the pool's business, and tasks of
jobs that are kept at other nodes are asked for by `elsewhere`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2pgrid.core.batch import InputRun
from p2pgrid.core.chains import may
from p2pgrid.core.deps import IN_LIST, VALUE, TaskId, Value
from p2pgrid.core.errors import DependencyFailed, NotFound, ResultLost, TaskCancelled
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ids import job_name
from p2pgrid.core.large import LARGE, Large, read_large
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import BatchId
from p2pgrid.core.ref import pickled_value
from p2pgrid.core.shapes import FAILURE, PACKED, failure_text
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.kept import ABANDONED, CANCELLED, Fresh, Kept
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts

TIMER = "depends"
LONGER = 6
FETCH_MAX = 256
"""Batches of results read from disk at once."""
CIRCLE_STEPS_MAX = 100_000


@dataclass(slots=True, eq=False)
class Held:
    """Tasks of one run that wait."""

    job: bytes
    run: InputRun
    missing: dict[int, int] = field(default_factory=dict)
    """How many values each of them lacks."""
    users: dict[int, list[int]] = field(default_factory=dict)
    """By place in the table of the run: who lacks that."""


class Ended(NamedTuple):
    """How a task ended: an outcome in which it is one, or none."""

    shape: int
    data: Any
    lo: int
    hi: int


class Depending(Handler):
    """The tasks of jobs kept here that wait for others, and the tasks that somebody waits for."""

    def __init__(self, parts: Parts, outcomes: Outcomes) -> None:
        super().__init__(parts)
        self.outcomes = outcomes
        self.watched = outcomes.watched
        outcomes.on_results = self._results
        outcomes.on_cancelled = self._cancelled
        outcomes.on_out = self._out
        outcomes.on_forgotten = self._forgotten
        outcomes.on_damaged = self._damaged
        self.seek: Callable[[TaskId], None] = lambda _: None
        """Asked to find out about a task of a job that is not kept here."""
        self.settled: Callable[[TaskId], None] = lambda _: None
        """Told about every task that nobody waits for any more."""
        self.overdue: Callable[[bytes, Sequence[int], float], bool] = lambda *_: False
        """Asked, about tasks of a job elsewhere, whether it can still find out if there are such."""
        self.waits: dict[TaskId, list[tuple[Held, int]]] = {}
        """Who waits for a task, and at which place of their table it stands."""
        self.unknown: dict[TaskId, float] = {}
        """Tasks that nobody knows so far, and until when that is waited for."""
        self._longer: dict[TaskId, int] = {}
        """How often a task of a job of which this node has a copy was waited for once more."""
        self._held: dict[bytes, dict[int, Held]] = {}
        """Of each job, by the index of every task that waits."""
        self._failing: deque[tuple[TaskId, bytes]] = deque()
        self._is_failing = False
        self._wanted: dict[tuple[bytes, BatchId], dict[TaskId, None]] = {}
        """What is wanted of results that have to be read from disk."""
        self._queue: deque[tuple[bytes, BatchId]] = deque()
        self._fetching: dict[int, list[tuple[bytes, BatchId]]] = {}

    # ---- who waits ---------------------------------------------------------------------------------------------------

    def hold(self, kept: Kept, runs: Iterable[InputRun], patience_s: float | None = None) -> None:
        """Let the tasks of these runs wait for what they depend on; `patience_s` for what nobody knows."""
        fresh: dict[TaskId, None] = {}
        early: list[TaskId] = []
        known = self.watched.get(kept.id, RangeSet()).copy()
        for run in runs:
            if run.is_whole:
                continue
            held = Held(kept.id, run)
            early += [TaskId(kept.id, i) for lo, hi in known.within(run.lo, run.hi) for i in range(lo, hi)]
            for lo, hi in (RangeSet([(run.lo, run.hi)]) - kept.done) - kept.cancelled:
                for index in range(lo, hi):
                    if self._enter(held, index):
                        early.append(TaskId(kept.id, index))
            for place in held.users:
                task = self._task(held, place)
                if task not in self.waits:
                    fresh[task] = None
                    self.watched.setdefault(task.job, RangeSet()).add(task.index, task.index + 1)
                self.waits.setdefault(task, []).append((held, place))
            if held.missing:
                self._held.setdefault(kept.id, {}).update(dict.fromkeys(held.missing, held))
        for task in [task for task in fresh if task in self.waits]:
            self.look(task, self.config.unknown_s if patience_s is None else patience_s)
        for task in early:
            if self._is_circle(task):
                self.fail(task, encoded(NotFound(f"{name_of(task)} waits for itself", code="circle")))
        self._read_more()

    @staticmethod
    def _enter(held: Held, index: int) -> bool:
        """Note what a task lacks; return whether it is one of its own job that comes after it."""
        run, is_odd = held.run, False
        assert run.deps is not None
        for place in dict.fromkeys(run.data[index - run.lo][1]):
            dep = run.deps[place]
            if isinstance(dep, TaskId):
                held.missing[index] = held.missing.get(index, 0) + 1
                held.users.setdefault(place, []).append(index)
                is_odd = is_odd or (dep.index >= index and dep.job in (b"", held.job))
        return is_odd

    @staticmethod
    def _task(held: Held, place: int) -> TaskId:
        dep = held.run.deps[place]  # type: ignore[index]
        assert isinstance(dep, TaskId)
        return dep if dep.job else TaskId(held.job, dep.index)

    def _unwatch(self, task: TaskId) -> list[tuple[Held, int]]:
        """Wait for a task no more; return who did."""
        waiting = self.waits.pop(task, None)
        if waiting is None:
            return []
        self.unknown.pop(task, None)
        self._longer.pop(task, None)
        watched = self.watched[task.job]
        watched.discard(task.index, task.index + 1)
        if not watched:
            del self.watched[task.job]
        self.settled(task)
        return waiting

    def _is_circle(self, first: TaskId) -> bool:
        """Whether a task that was waited for before it was known waits for itself: no program of ours says such."""
        todo, seen = [first], {first}
        while todo and len(seen) < CIRCLE_STEPS_MAX:
            job, index = todo.pop()
            work = self.pool.works.get(job)
            found = work.locate(index) if work is not None else None
            if found is None or found[0].deps is None:
                continue
            run = found[0]
            for dep in [run.deps[place] for place in run.data[index - run.lo][1]]:  # type: ignore[index]
                if not isinstance(dep, TaskId):
                    continue
                task = TaskId(dep.job or job, dep.index)
                if task == first:
                    return True
                if task not in seen:
                    seen.add(task)
                    todo.append(task)
        return False

    # ---- what becomes of what is waited for --------------------------------------------------------------------------

    def look(self, task: TaskId, patience_s: float) -> None:
        """See what is known of a task that somebody waits for."""
        kept = self.keeping.jobs.get(task.job)
        if kept is None:
            self.doubt(task, patience_s)
            self.seek(task)
        elif task.index in kept.done:
            self._read(kept, task)
        elif task.index in kept.cancelled or kept.state in (CANCELLED, ABANDONED):
            self.fail(task, encoded(TaskCancelled(f"{name_of(task)} was cancelled")))
        elif kept.total is not None and task.index >= kept.total:
            self.fail(task, encoded(no_such(task)))
        elif not self.is_known(kept, task.index):
            self.doubt(task, patience_s)

    def is_known(self, kept: Kept, index: int) -> bool:
        """Whether the inputs of a task have come; for a moment they are in the pool only."""
        work = self.pool.works.get(kept.id)
        return index in kept.known or (work is not None and work.locate(index) is not None)

    def doubt(self, task: TaskId, patience_s: float) -> None:
        """Nobody knows this task; it may be on its way."""
        until_s = self.unknown.setdefault(task, self.parts.now + patience_s)
        if until_s < self.parts.timers.get((TIMER,), float("inf")):
            self.parts.timer((TIMER,), until_s)

    def appeared(self, job: bytes, lo: int, hi: int) -> None:
        """The inputs of these tasks have come."""
        for a, b in self.watched.get(job, RangeSet()).within(lo, hi):
            for index in range(a, b):
                self.unknown.pop(TaskId(job, index), None)

    def due(self, now: float) -> None:
        """On the timer: what nobody knew for too long is known to nobody."""
        elsewhere: dict[bytes, list[int]] = {}
        for task in [task for task, until_s in self.unknown.items() if until_s <= now]:
            kept = self.keeping.jobs.get(task.job)
            copy = kept is not None and not kept.serving and may(self.parts.own_roles, "read")
            if copy and self._longer.get(task, 0) < LONGER:  # what its client sends may have to wait as well
                self._longer[task] = self._longer.get(task, 0) + 1
                self.unknown[task] = now + self.config.unknown_s
                continue
            self._longer.pop(task, None)
            del self.unknown[task]
            elsewhere.setdefault(task.job, []).append(task.index)
        for job, indices in elsewhere.items():
            if not self.overdue(job, indices, now):
                for index in indices:
                    self.fail(TaskId(job, index), encoded(no_such(TaskId(job, index))))
        if self.unknown:
            self.parts.timer((TIMER,), min(self.unknown.values()))

    def ended(self, task: TaskId, end: Ended) -> None:
        """A task has ended with this outcome: whoever waits for it has its value, or fails."""
        if end.shape == FAILURE:
            self.fail(task, end.data)
            return
        place = task.index - end.lo
        large = read_large(end.data) if end.shape == LARGE else None
        if large is not None:
            value = Value(VALUE, pickled_value(large.name, large.holders))
        else:
            value = Value(IN_LIST, end.data, place) if end.shape == PACKED else Value(VALUE, end.data[place])
        for held, at in self._unwatch(task):
            held.run.deps[at] = value  # type: ignore[index]
            if large is not None:
                self._need(held.job, large)
            self._supply(held, held.users.pop(at, ()))

    def _need(self, job: bytes, large: Large) -> None:
        """A large value is not carried along: it stays where it is until this job does not need it any more."""
        kept = self.keeping.jobs.get(job)
        if kept is not None:
            self.outcomes.needs(kept, [kept.refs.setdefault(large.name, large._replace(is_ref=True))], inputs=True)

    def _supply(self, held: Held, users: Sequence[int]) -> None:
        kept, work = self.keeping.jobs.get(held.job), self.pool.works.get(held.job)
        ready = []
        for index in users:
            left = held.missing.get(index, 0) - 1
            if left == 0:
                ready.append(index)
                self._free(held, index)
            elif left > 0:
                held.missing[index] = left
        self._let_go(held)
        if kept is None or work is None or not ready:
            return
        for index in ready:
            alone = any(one.kind in "wn" for one in kept.record.tries.get(index, ()))
            self.pool.make_ready(work, index, index + 1, alone=alone)
        found = work.locate(ready[0])
        if found is not None:
            self.outcomes.consider(kept, [found[1]], self.parts.now)
        self.parts.hungry = True

    def _free(self, held: Held, index: int) -> bool:
        """A task does not wait any more; return whether it did."""
        if held.missing.pop(index, 0) == 0:
            return False
        others = self._held[held.job]
        del others[index]
        if not others:
            del self._held[held.job]
        return True

    def _let_go(self, held: Held) -> None:
        """Forget tasks of a run if none of them waits any more."""
        if held.missing:
            return
        for place in held.users:
            task = self._task(held, place)
            if task in self.waits:
                self.waits[task] = [one for one in self.waits[task] if one[0] is not held]
                if not self.waits[task]:
                    self._unwatch(task)
        held.users.clear()

    def fail(self, task: TaskId, cause: bytes) -> None:
        """A task has failed with this: so do those that wait for it, and those that wait for them, in turn."""
        self._failing.append((task, cause))
        if self._is_failing:
            return
        self._is_failing = True
        while self._failing:
            self._fail_all(*self._failing.popleft())
        self._is_failing = False

    def _fail_all(self, task: TaskId, cause: bytes) -> None:
        waiting = self._unwatch(task)
        data = dependency_failed(task, cause) if waiting else b""
        for held, place in waiting:
            users = [index for index in held.users.pop(place, ()) if self._free(held, index)]
            self._let_go(held)
            kept = self.keeping.jobs.get(held.job)
            if users and kept is not None and not kept.ended:
                self.outcomes.fail_with(kept, [(index, index + 1) for index in users], data)

    # ---- told by `outcomes` ------------------------------------------------------------------------------------------

    def _results(self, kept: Kept, fresh: Fresh) -> None:
        """Tasks have ended, some of which somebody waits for."""
        fresh.seal = True  # they are being read
        for _, outcome in fresh.batches:
            end = Ended(outcome.shape, outcome.data, outcome.lo, outcome.hi)
            for lo, hi in self.watched.get(kept.id, RangeSet()).within(outcome.lo, outcome.hi):
                for index in range(lo, hi):
                    self.ended(TaskId(kept.id, index), end)

    def _cancelled(self, job: bytes, spans: RangeSet) -> None:
        for lo, hi in self.watched.get(job, RangeSet()) & spans:
            for index in range(lo, hi):
                task = TaskId(job, index)
                self.fail(task, encoded(TaskCancelled(f"{name_of(task)} was cancelled")))

    def _out(self, job: bytes, spans: RangeSet) -> None:
        """These tasks will not run: they wait no longer."""
        waiting = self._held.get(job)
        if waiting is None:
            return
        few = spans.size <= len(waiting)
        some = (
            [i for lo, hi in spans for i in range(lo, hi) if i in waiting]
            if few
            else [i for i in waiting if i in spans]
        )
        for index in some:
            held = waiting[index]
            self._free(held, index)
            self._let_go(held)

    def _forgotten(self, job: bytes) -> None:
        for index, held in list(self._held.get(job, {}).items()):
            self._free(held, index)
            self._let_go(held)
        for lo, hi in self.watched.get(job, RangeSet()).copy():
            for index in range(lo, hi):
                task = TaskId(job, index)
                self.fail(task, encoded(no_such(task)))

    def refused(self, job: bytes, lo: int, hi: int) -> None:
        """The inputs of these tasks could not be kept; their client may send them again."""
        for a, b in self.watched.get(job, RangeSet()).within(lo, hi):
            for index in range(a, b):
                self.doubt(TaskId(job, index), self.config.unknown_s)

    # ---- values from before ------------------------------------------------------------------------------------------

    def _read(self, kept: Kept, task: TaskId) -> None:
        """Get the value of a task that has ended."""
        batch = self.keeping.batch_of(kept, task.index)
        if batch is None:
            self.fail(task, encoded(_lost(task)))
            return
        if batch in kept.torn:
            return  # it is being had from another keeper
        known = self.keeping.readers.recent((kept.id, batch))
        if known is not None:
            results = kept.record.results[batch]
            self.ended(task, Ended(known[0], known[1], results.lo, results.hi))
            return
        key = (kept.id, batch)
        if key not in self._wanted:
            self._queue.append(key)
        self._wanted.setdefault(key, {})[task] = None

    def _read_more(self) -> None:
        if not self._queue or self._fetching:
            return
        keys = [self._queue.popleft() for _ in range(min(len(self._queue), FETCH_MAX))]
        token = self.parts.token()
        self._fetching[token] = keys
        self.out.append(e.Fetch(token, [(job, "result", pack(batch)) for job, batch in keys]))

    def fetched(self, token: int, rows: Sequence[e.Row]) -> bool:
        """Take in what came from disk; False: it was not for us."""
        keys = self._fetching.pop(token, None)
        if keys is None:
            return False
        values = {(row.job, row.key): row.value for row in rows}
        for key in keys:
            job, batch = key
            tasks = self._wanted.pop(key)
            value = values.get((job, pack(batch)))
            kept = self.keeping.jobs.get(job)
            results = kept.record.results.get(batch) if kept is not None else None
            if value is None and kept is not None and results is not None and self.keeping.readers.mend(kept, batch):
                kept.torn.add(batch)  # they are told when it is here (`_results`), or not to be had (`_damaged`)
                continue
            for task in tasks:
                if value is None or results is None:
                    self.fail(task, encoded(_lost(task)))
                else:
                    shape, data = unpack(value)
                    self.ended(task, Ended(shape, data, results.lo, results.hi))
        self._read_more()
        return True

    def _damaged(self, kept: Kept, batches: Sequence[BatchId]) -> None:
        """Nobody has these results: whoever waits for one of them fails."""
        for results in [kept.record.results[batch] for batch in batches if batch in kept.record.results]:
            for lo, hi in self.watched.get(kept.id, RangeSet()).within(results.lo, results.hi):
                for index in range(lo, hi):
                    self.fail(TaskId(kept.id, index), encoded(_lost(TaskId(kept.id, index))))

    # ---- when a client is gone ---------------------------------------------------------------------------------------

    def needed(self, doomed: Mapping[bytes, RangeSet]) -> dict[bytes, RangeSet]:
        """Return which of these tasks others wait for that are not among them, directly or by way of some that are."""

        def is_doomed(job: bytes, index: int) -> bool:
            return job in doomed and index in doomed[job]

        todo = [
            task for task, waiting in self.waits.items() if is_doomed(*task)
            and any(not is_doomed(held.job, index) for held, place in waiting for index in held.users.get(place, ()))
        ]  # fmt: skip
        out: dict[bytes, RangeSet] = {}
        while todo:
            job, index = todo.pop()
            if out.setdefault(job, RangeSet()).add(index, index + 1):
                todo += [task for task in self.waited_for(job, index) if is_doomed(*task)]
        return out

    # ---- for people --------------------------------------------------------------------------------------------------

    def waiting(self, job: bytes) -> RangeSet:
        """Return the tasks of a job that wait for others."""
        return RangeSet((index, index + 1) for index in self._held.get(job, ()))

    def waited_for(self, job: bytes, index: int) -> list[TaskId]:
        """Return what a task still waits for."""
        held = self._held.get(job, {}).get(index)
        return [self._task(held, place) for place, users in held.users.items() if index in users] if held else []


def dependency_failed(task: TaskId, cause: bytes) -> bytes:
    """Return the failure of tasks that needed what `task` would have returned; `cause` is that one's failure."""
    data = unpack(cause)
    origin, because = name_of(task), ""
    if data.get("qualname") == DependencyFailed.__qualname__ and isinstance(data.get("cause"), dict):
        # The first of a chain is what matters.
        origin = next((one[1] for one in data["dict"] if one[0] == "origin"), origin)
        because = f" because of {origin}"
        data = {**data["cause"], "traceback": data.get("traceback", "")}
    text = failure_text(pack(data))
    error = DependencyFailed(f"{name_of(task)}, whose result is an argument, failed{because}: {text}")
    error.origin = origin
    said = encode_exception(error)
    return pack({**said, "cause": data, "suppress": True, "traceback": data.get("traceback", "")})


def encoded(error: Exception) -> bytes:
    """Return an error as the failure of a task."""
    return pack(encode_exception(error))


def name_of(task: TaskId) -> str:
    """Return the name of a task as people know it."""
    return f"{job_name(task.job)}/{task.index}"


def no_such(task: TaskId) -> NotFound:
    """Return the error of a task that nobody knows."""
    return NotFound(f"no node within reach knows task {name_of(task)}", next="p2pgrid jobs lists what there is")


def _lost(task: TaskId) -> ResultLost:
    return ResultLost(f"the result of {name_of(task)} is damaged on disk", next="submit it again")
