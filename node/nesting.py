"""Nesting: tasks that start tasks and wait for them.

What a task has started is a job of its own, kept where the task runs and nowhere else: it belongs to that attempt of
the task (`Spec.parent`) and ends with it, whether that has returned, was killed, or went down with its worker or node.

A task that waits needs no processor. What it waits for runs below it, in its own process, where that has not begun
(leapfrogging); or what *that* has started, if it runs elsewhere on this node. Otherwise the slot is lent after a moment
(`running`). So tasks may wait for each other as deep as they like: a chain of them ends on one slot. Only where nothing
runs, no slot is left to be lent, and what is waited for cannot run below its waiter, would they wait for ever; then
what is waited for fails with a RecursionError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from p2pgrid.core.errors import GridError, NotAuthorized, NotFound, PeerError
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ids import job_name
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.record import TaskOf, unpack_spec
from p2pgrid.core.wire import pack
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.grains import RunInfo, Worker
from p2pgrid.node.kept import Kept
from p2pgrid.node.nested_logs import NestedLogs
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Lane, Work
from p2pgrid.node.running import LEND_AFTER_S, LENT_MAX

LEND = "lend"
STUCK = "stuck-wait"
STUCK_S = 5.0
"""So long nothing runs here while tasks wait for what could run, before that fails …"""
STUCK_AMONG_S = 60.0
"""… and so long where another node might run it."""
LOOKED_MAX = 256
"""Jobs that are looked at for something to run below a task that waits."""


@dataclass(slots=True, eq=False)
class Wait:
    """A task of a worker here that waits for others."""

    worker: Worker
    info: RunInfo
    index: int
    may_run: bool
    """Whether others may run below it."""
    wanted: list[tuple[bytes, RangeSet]]
    since_s: float


class Nesting(Handler):
    """The families of tasks at this node, and who of them waits."""

    def __init__(self, parts: Parts, fitness: Fitness, outcomes: Outcomes) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self.outcomes = outcomes
        self.cancel: Callable[[Kept], object] = lambda _: None
        """Cancels a job as a whole."""
        self.workers: dict[int, int] = {}
        """Which worker's process a client is."""
        self.waits: dict[tuple[int, int], Wait] = {}
        """By client and number, the newest last."""
        self.children: dict[bytes, dict[int, dict[bytes, None]]] = {}
        """Jobs that were started by the task of a job, by its index."""
        self._done = -1
        """How many tasks had ended when it was noticed that nothing runs."""
        self._stuck_s: float | None = None
        self.running.awaited = self._awaited
        self.logs = NestedLogs(self.config.keeping.log_bytes)
        self.keeping.logged = self.logs.note

    # ---- families ----------------------------------------------------------------------------------------------------

    def joined(self, event: e.ClientJoined) -> None:
        if event.worker is not None:
            self.workers[event.client] = event.worker

    def gone(self, client: int) -> None:
        # Its process is about to end, and who waited in it is still to be known then.
        self.workers.pop(client, None)

    def is_task(self, client: int, spec: bytes) -> bool:
        """Whether a task opens a job, which has the rights of its own: it may, whatever this node may.

        Raises:
            PeerError: somebody says so who is none.
        """
        parent = unpack_spec(spec).parent
        if parent is not None and client not in self.workers:
            raise PeerError("a job of a task, from a program that is no task")
        return parent is not None

    def refusal(self, client: int, spec: bytes) -> GridError | None:
        """Return why a task may not open a job, if it may not."""
        parent = unpack_spec(spec).parent
        assert parent is not None, "asked about tasks only"
        if self._run_of(client, parent.job, parent.task, parent.attempt) is None:
            return NotFound("the task that starts this is over", next="start it before the task returns")
        if self.parts.refusing:
            return NotAuthorized(self.parts.refusing, next="stop one of the two and wait three minutes")
        return None

    def tree_of(self, client: int, code: bytes) -> bytes:
        """Return a source tree that a task has come with, for what it starts; b"" if it has not."""
        worker = self.running.workers.get(self.workers.get(client, -1))
        runs = () if worker is None else worker.all_runs
        return next((run.taken.work.codes[code] for run in runs if code in run.taken.work.codes), b"")

    def opened(self, kept: Kept) -> None:
        parent = kept.spec.parent
        if parent is not None:
            self.children.setdefault(parent.job, {}).setdefault(parent.task, {})[kept.id] = None

    def over(self, job: bytes, spans: Iterable[Span]) -> None:
        """These tasks are over, or their attempt is: what they have started ends with them, and nobody wants it."""
        ended = [(job, list(spans))]
        while ended:  # no recursion: families may be a thousand generations deep
            parent, over = ended.pop()
            theirs = self.children.get(parent)
            if theirs is None:
                continue
            for lo, hi in over:
                self.logs.forget(parent, lo, hi)
                for index in [index for index in theirs if lo <= index < hi]:
                    for child in theirs.pop(index):
                        self._forget(child)
                        ended.append((child, list(_EVERYTHING)))
            if not theirs:
                self.children.pop(parent, None)

    def _forget(self, job: bytes) -> None:
        """Nobody wants a job of a task any more."""
        kept = self.keeping.jobs.get(job)
        if kept is not None:
            if not kept.ended:
                self.cancel(kept)
            self.out += self.keeping.delete(job, "")

    def summary(self, job: bytes) -> dict[str, int]:
        """Return how many jobs the tasks of a job have started that run here, and how many tasks these have."""
        kids = [self.keeping.jobs[child] for child in self._family(job) if child in self.keeping.jobs]
        return {
            "jobs": len(kids), "tasks": sum(kept.known.size for kept in kids),
            "done": sum(kept.done.size for kept in kids),
        }  # fmt: skip

    def _family(self, job: bytes) -> Iterator[bytes]:
        family = [job]
        for parent in family:
            for children in self.children.get(parent, {}).values():
                yield from children
                family += children

    def root(self, parent: TaskOf) -> TaskOf:
        """Return the task of a program's own job above which no other is known here."""
        for _ in range(LOOKED_MAX * 4):
            kept = self.keeping.jobs.get(parent.job)
            if kept is None or kept.spec.parent is None:
                break
            parent = kept.spec.parent
        return parent

    # ---- who waits ---------------------------------------------------------------------------------------------------

    def _run_of(self, client: int, job: bytes, index: int, attempt: int | None) -> RunInfo | None:
        worker = self.running.workers.get(self.workers.get(client, -1))
        if worker is None:
            return None
        return next(
            (
                info for info in worker.all_runs
                if info.job == job and index in info.left and attempt in (None, info.taken.attempt)
            ),
            None,
        )  # fmt: skip

    def wait(self, client: int, body: Any, now: float) -> None:
        """A task waits for others."""
        number, job, index, may_run, wanted = body
        info = self._run_of(client, job, index, None)
        if info is None:
            return  # it was killed meanwhile
        worker = self.running.workers[self.workers[client]]
        self.waits[client, number] = Wait(worker, info, index, may_run, wanted, now)
        self.out += self.running.waits(worker, info, index, may_run=may_run, now=now)

    def waited(self, client: int, number: int) -> None:
        """It waits no longer."""
        self._end((client, number))

    def ended(self, runs: list[RunInfo]) -> None:
        """These are with a worker no more."""
        self.waits = {key: wait for key, wait in self.waits.items() if wait.info not in runs}

    def _end(self, key: tuple[int, int]) -> None:
        wait = self.waits.pop(key, None)
        if wait is not None:
            self.out += self.running.waits_no_more(wait.worker, wait.info)

    # ---- what runs meanwhile -----------------------------------------------------------------------------------------

    def feed(self, now: float) -> None:
        """Have what is waited for run below the tasks that wait, where that is possible."""
        if not self.waits:
            self._stuck_s = None
            return
        due: float | None = None
        for wait in reversed(list(self.waits.values())):
            if self.running.innermost(wait.worker) is not wait.info or wait.info.at is None:
                continue
            if wait.may_run and self._below(wait, now):
                continue
            if self.pool.waits and (lends_s := max(wait.since_s + LEND_AFTER_S, self.running.lends_again_s())) > now:
                due = lends_s if due is None else min(due, lends_s)
        if due is not None and due < self.parts.timers.get((LEND,), float("inf")):
            self.parts.timer((LEND,), due)

    def _below(self, wait: Wait, now: float) -> bool:
        """Run something below a task that waits; return whether there was something."""
        for work, spans in self._useful(wait):
            for lanes in work.hot.values():
                for lane in lanes.values():
                    first = (lane.ready & spans).first()
                    if first is None or not self._may_run_below(wait, lane, first[0]):
                        continue
                    self.out += self.running.run_below(wait.worker, wait.index, self.pool, lane, first[0], now)
                    return True
        return False

    def _may_run_below(self, wait: Wait, lane: Lane, first: int) -> bool:
        """Whether a task may share the process of another: whatever ends one of them early would end both."""
        options = lane.options
        bounded = options.timeout_s is not None or "mem" in options.resources
        alone = first in lane.alone or first in lane.work.risky or wait.info.taken.alone
        return (
            not bounded and not alone and wait.worker.serves(lane) and self.fitness.eligible(lane)
            and self.running.has_room(lane)
        )  # fmt: skip

    def _useful(self, wait: Wait) -> Iterator[tuple[Work, RangeSet]]:
        """Yield what helps a task that waits: what it waits for, then what that has started."""
        wanted = list(wait.wanted)
        looked: set[bytes] = set()
        while wanted and len(looked) < LOOKED_MAX:
            further: list[tuple[bytes, RangeSet]] = []
            for job, spans in wanted:
                work = self.pool.works.get(job)
                if work is not None and work.hot:
                    yield work, spans
                for index, children in self.children.get(job, {}).items():
                    if index in spans:
                        further += [(child, _EVERYTHING) for child in children if child not in looked]
                looked.add(job)
            wanted = further

    def _awaited(self) -> Iterator[Lane]:
        """Yield the lanes of what tasks here wait for; a slot that is lent is for them first."""
        for wait in reversed(list(self.waits.values())):
            for work, spans in self._useful(wait):
                for lanes in list(work.hot.values()):
                    yield from [lane for lane in lanes.values() if lane.ready & spans]

    # ---- nothing runs ------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """After feeding: see whether tasks wait for each other with nobody left to run anything."""
        if not self.waits or self.running.active() or self._next_stuck() is None:
            self._stuck_s = None
            return
        if self._stuck_s is None or self._done != self.running.done:
            self._stuck_s, self._done = now, self.running.done
        self.parts.timer_unless_set((STUCK,), now + STUCK_S)

    def stuck(self, now: float) -> None:
        """On the timer."""
        self.look(now)
        if self._stuck_s is None:
            return
        found = self._next_stuck()
        assert found is not None, "looked at just now"
        lane, spans = found
        elsewhere = any(self.fitness.fits(lane, peer) for peer in self.peers if peer not in self.parts.suspects)
        if now - self._stuck_s < (STUCK_AMONG_S if elsewhere else STUCK_S):
            return
        kept = self.keeping.jobs.get(lane.work.job)
        if kept is not None:
            text = (
                f"tasks wait for tasks that they have started, too many at once for this node: all its slots and "
                f"{LENT_MAX} that it lent wait, and {job_name(kept.id)} cannot run below its waiter; next: start fewer "
                "at a time, or give what is started the resources of what starts it"
            )
            self._stuck_s = None
            self.outcomes.fail_with(kept, list(spans), pack(encode_exception(RecursionError(text))))
            self.parts.hungry = True

    def _next_stuck(self) -> tuple[Lane, RangeSet] | None:
        for wait in reversed(list(self.waits.values())):
            for job, spans in wait.wanted:
                work = self.pool.works.get(job)
                for lanes in [] if work is None else list(work.hot.values()):
                    for lane in lanes.values():
                        if self.fitness.eligible(lane) and (ready := lane.ready & spans):
                            return lane, ready
        return None


_EVERYTHING = RangeSet([(0, 1 << 62)])
