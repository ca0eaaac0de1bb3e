"""Outcomes: what becomes of tasks. Which results stand, what runs again and how, when a job is over.

Failures of the user's code are results. A task that kills its worker, or whose node vanishes, runs again, alone, a
bounded number of times; one that raises, only where its options ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from p2pgrid.core import messages as m
from p2pgrid.core.errors import (
    GridError,
    TaskMemoryExceeded,
    TaskTimeout,
    Unschedulable,
    WorkerCrashed,
)
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.large import LARGE, Large
from p2pgrid.core.missing import nowhere
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.record import BatchId, Try
from p2pgrid.core.shapes import CRASH, FAILURE, lineage
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.holding import lots
from p2pgrid.node.kept import Fresh, Kept, Promise, Source
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Lane, Work

PUT_OFF_MAX = 1024
"""Reports of failed executions of one job that wait for its inputs."""


class Outcomes(Handler):
    """Decides about the tasks of the jobs kept here, whoever ran them."""

    def __init__(self, parts: Parts, fitness: Fitness) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self._put_off: dict[bytes, list[tuple[Sequence[e.Outcome], int, Source | None, Sequence[Promise]]]] = {}
        """Failed executions that came while the inputs of their job were being read."""
        self.watched: dict[bytes, RangeSet] = {}
        """Tasks that others wait for (`depending`)."""
        self.on_results: Callable[[Kept, Fresh], None] = lambda *_: None
        self.on_cancelled: Callable[[bytes, RangeSet], None] = lambda *_: None
        self.on_out: Callable[[bytes, RangeSet], None] = lambda *_: None
        """Told what will not run any more; `on_forgotten`: which job not."""
        self.on_forgotten: Callable[[bytes], None] = lambda _: None
        self.on_damaged: Callable[[Kept, Sequence[BatchId]], None] = lambda *_: None
        """Told which results are damaged here and were not to be had from anybody."""

    def work_of(self, kept: Kept) -> Work:
        work = self.pool.open(kept.id, kept.name, (kept.spec.owner, kept.spec.session), None)
        work.codes = kept.record.codes
        return work

    def take_out(self, job: bytes, spans: RangeSet) -> None:
        """These tasks need not run any more: let go of what they needed."""
        work = self.pool.works.get(job)
        if work is not None:
            for lo, hi in spans:
                self.pool.remove(work, lo, hi)
                self.pool.finished(work, lo, hi)
        self.on_out(job, spans)

    def needs(self, kept: Kept, objects: Iterable[Large], *, inputs: bool = False) -> None:
        """Have the shell keep objects that a job needs."""
        session = b"" if kept.spec.detach else kept.spec.session
        self.out.append(e.Needs(kept.id, session, list(objects), kept.spec.copies, inputs))

    def forget(self, job: bytes) -> None:
        """A job is no longer kept here: stop it everywhere."""
        self.on_forgotten(job)
        self._stop(job)

    def ended_elsewhere(self, kept: Kept) -> None:
        """Another keeper has ended a job: stop it everywhere. Its results are here, or will be."""
        self.on_out(kept.id, kept.known)
        self._stop(kept.id)

    def _stop(self, job: bytes) -> None:
        self.pool.close(job)
        self.out += self.running.cancel(job, None)
        for peer in self.leases.forget(job):
            self.out.append(e.Send(peer, m.P_DROP, [job, None]))

    def wanted(self, work: Work, spans: Sequence[Span]) -> list[Span]:
        """Return which of these tasks are still to be run here."""
        if work.keeper is not None:
            debt = self.holding.debts.get(work.keeper)
            held = debt.held.get(work.job, RangeSet()) if debt else RangeSet()
            return list(held & RangeSet(spans))
        kept = self.keeping.jobs.get(work.job)
        if kept is None or kept.ended:
            return []
        return list((RangeSet(spans) - kept.done) - kept.cancelled)

    # ---- what fits nowhere -------------------------------------------------------------------------------------------

    def consider(self, kept: Kept, lanes: Sequence[Lane], now: float, *, known: bool = False) -> None:
        """Tasks that no node may run: refuse them now if asked to, else say so after a while.

        `known`: they could run a moment ago; a node that is away for a moment fails no task, strict or not.
        """
        for lane in lanes:
            if not lane.ready or self.fitness.somewhere(lane):
                continue
            if lane.options.strict and not known:
                self.fail(kept, list(lane.ready), Unschedulable(self.fitness.why(lane)))
            else:
                self.parts.timer_unless_set(("stuck", kept.id, lane.number), now + self.config.notice_after_s)

    def notice(self, job: bytes, number: int, now: float) -> None:
        kept, work = self.keeping.jobs.get(job), self.pool.works.get(job)
        if kept is None or work is None:
            return
        lane = next((one for one in work.lanes.values() if one.number == number), None)
        if lane is None or not lane.ready or self.fitness.somewhere(lane):
            return
        if lane.unfit:
            self.unfit_everywhere(work, lane)
            return
        text = self.fitness.why(lane)
        if lane.options.strict:
            self.fail(kept, list(lane.ready), Unschedulable(text))
            return
        self.out.append(e.Log("info", f"{kept.name} waits: {text}"))
        for client in sorted(set(kept.watches) | kept.programs):
            self.out.append(e.Reply(client, m.NOTICE, 0, [job, text]))

    def unfit_everywhere(self, work: Work, lane: Lane) -> None:
        """If no node is left that can load the function, its tasks fail with the reason."""
        kept = self.keeping.jobs.get(work.job)
        if kept is None or self.fitness.somewhere(lane):
            return
        unfit = {self.name_of(node): why for node, why in lane.unfit.items()}
        has_run = [self.name_of(node) for node in self.parts.ran_at(lane.fn) if node not in lane.unfit]
        lane.try_again()
        self.fail(kept, list(lane.ready), nowhere(unfit, has_run))

    def name_of(self, node: str) -> str:
        return self.config.name if node == self.config.node_id else self.parts.name_of(node)

    # ---- what workers and members report -----------------------------------------------------------------------------

    def owe(
        self, work: Work, outcomes: Sequence[e.Outcome], attempt: int, now: float,
        logs: Sequence[tuple[int, bytes]] = (), busy_s: float = 0.0,
    ) -> None:  # fmt: skip
        """Send what became of tasks that others keep to their keeper, with what they printed and how long they took."""
        keeper = str(work.keeper)
        if not (outcomes or logs) or not self.holding.holds(keeper, work.job):
            return
        if any(outcome.shape == LARGE for outcome in outcomes):
            self.parts.stored.add(work.job)
        bounds = self.config.holding
        for lot in lots(outcomes, logs, busy_s, bounds.lot_bytes, self.config.keeping.log_bytes):
            number = self.keeping.next_number()
            for _ in lot.outcomes:  # every outcome of a lot has a number of its own
                self.keeping.next_number()
            self.out += self.holding.finished(keeper, work.job, number, attempt, lot, now)
        for outcome in outcomes:
            self.pool.remove(work, outcome.lo, outcome.hi)
            self.pool.finished(work, outcome.lo, outcome.hi)

    def report(self, work: Work, outcomes: Sequence[e.Outcome], attempt: int) -> None:
        """Take in what became of tasks of a job kept here that ran here."""
        kept = self.keeping.jobs.get(work.job)
        if kept is not None:
            self.accept(kept, outcomes, attempt)

    def accept(
        self, kept: Kept, outcomes: Sequence[e.Outcome], attempt: int, source: Source | None = None,
        promises: Sequence[Promise] = (),
    ) -> None:  # fmt: skip
        """Record outcomes of a job kept here; failures that are to be tried again make their tasks ready."""
        if kept.ended:
            self.out += self.keeping.when_ended(kept, promises)
            return
        failed = any(one.shape in (FAILURE, CRASH) and one.lo not in kept.done for one in outcomes)
        if failed and kept.id in self.parts.reading:
            waiting = self._put_off.setdefault(kept.id, [])
            if len(waiting) < PUT_OFF_MAX and (outcomes, attempt, source, promises) not in waiting:
                waiting.append((outcomes, attempt, source, promises))
            return  # what is not put off is said again, for nobody acknowledged it
        for position, outcome in enumerate(outcomes):
            if outcome.shape in (FAILURE, CRASH):
                outcomes = self._judge(kept, outcomes, position, source)
                break
        fresh, effects = self.keeping.deliver(kept, outcomes, attempt, source)
        self.out += effects
        if promises:
            # A task that runs again was noted as failed just before: whoever ran it forgets that once it is on disk.
            fresh.awaited = any(outcome.lo == outcome.hi for outcome in outcomes)
        if kept.id in self.watched:
            self.on_results(kept, fresh)
        self.parts.later.append(lambda: self._keep(kept, fresh, source, promises))

    def resume(self, job: bytes) -> None:
        """The inputs of a job have been read: judge what failed meanwhile."""
        kept = self.keeping.jobs.get(job)
        for outcomes, attempt, source, promises in self._put_off.pop(job, ()):
            if kept is not None and kept.serving:  # else whoever serves it hears of it
                self.accept(kept, outcomes, attempt, source, promises)

    def _keep(self, kept: Kept, fresh: Fresh, source: Source | None, promises: Sequence[Promise]) -> None:
        """The readers have the results; now they leave for the disk."""
        before = len(kept.objects)
        self.out += self.keeping.keep(kept, fresh, promises)
        if len(kept.objects) > before:
            self.needs(kept, kept.objects[before:])
        work = self.pool.works.get(kept.id)
        for lo, hi in fresh.new:
            if work is not None:
                self.pool.remove(work, lo, hi)
                self.pool.finished(work, lo, hi)
            self.stop_copies(kept.id, lo, hi, source)
        if fresh.new:
            self.settle(kept)

    def stop_copies(self, job: bytes, lo: int, hi: int, source: Source | None) -> None:
        """Whoever else runs these tasks need not go on."""
        for peer in self.leases.finished(job, lo, hi):
            if source is None or peer != source.node:
                self.out.append(e.Send(peer, m.P_DROP, [job, [lo, hi]]))
        if source is not None and job in self.parts.doubled:
            self.out += self.running.cancel(job, RangeSet([(lo, hi)]))

    def _judge(
        self, kept: Kept, outcomes: Sequence[e.Outcome], first: int, source: Source | None
    ) -> Sequence[e.Outcome]:
        """Return the outcomes that stand, crashes that are final as failures among them; the others run again."""
        stand = list(outcomes[:first])
        for position in range(first, len(outcomes)):
            outcome = outcomes[position]
            if outcome.shape not in (FAILURE, CRASH) or outcome.lo in kept.done:
                stand.append(outcome)
                continue
            verdict = self._verdict(kept, outcome, position, source)
            # A placeholder keeps every outcome's position, which names it when it came from another node.
            stand.append(verdict or e.Outcome(outcome.lo, outcome.lo, 0, []))
        return stand

    def _verdict(self, kept: Kept, outcome: e.Outcome, position: int, source: Source | None) -> e.Outcome | None:
        """Decide what a failed execution means: a final failure, or None: it runs again."""
        task = outcome.lo
        work = self.pool.works.get(kept.id)
        found = work.locate(task) if work is not None else None
        if work is None or found is None:
            return outcome if outcome.shape == FAILURE else self._crash_failure(kept, outcome)
        options = found[1].options
        if outcome.shape == FAILURE:
            if not options.retries:
                return outcome
            kind = "e"
            retriable = options.retries_on(lineage(outcome.data))
        else:
            cause = unpack(outcome.data)[0]
            kind = {"timeout": "t", "memory": "m"}.get(cause, "w")
            retriable = options.retries_on(_MRO[kind])
        number = source.number + position if source else self.keeping.next_number()
        one = Try(kind, source.node if source else self.config.node_id,
                  source.incarnation if source else self.keeping.incarnation, number)  # fmt: skip
        if one in kept.record.tries.get(task, ()):
            return None  # told twice: it was decided before
        self.out.append(self.keeping.tried(kept, task, one))
        if kind == "w":
            again = kept.record.crashes(task, "w") < self.config.worker_crashes_max
        else:
            again = retriable and sum(kept.record.crashes(task, k) for k in "etm") <= options.retries
        if not again:
            return outcome if outcome.shape == FAILURE else self._crash_failure(kept, outcome)
        self.reissue(kept, [(task, task + 1)], alone=kind == "w")
        return None

    def _crash_failure(self, kept: Kept, outcome: e.Outcome) -> e.Outcome:
        cause, detail, stderr = unpack(outcome.data)
        task = f"{kept.name}/{outcome.lo}"
        last = f"; its last lines: {stderr.strip()}" if stderr.strip() else ""
        was = "" if cause == "exit" else "was "
        error: GridError
        if cause == "timeout":
            error = TaskTimeout(f"{task}: {detail}")
        elif cause == "memory":
            error = TaskMemoryExceeded(f"{task}: {detail}")
        else:
            error = WorkerCrashed(f"{task}: the worker process {was}{detail}{last}", next=f"p2pgrid logs {task}")
        return e.Outcome(outcome.lo, outcome.hi, FAILURE, pack(encode_exception(error)))

    def fail(self, kept: Kept, spans: Sequence[Span], error: GridError) -> None:
        self.fail_with(kept, spans, pack(encode_exception(error)))

    def fail_with(self, kept: Kept, spans: Sequence[Span], data: bytes) -> None:
        """Let these tasks fail with an encoded exception."""
        outcomes = [e.Outcome(i, i + 1, FAILURE, data) for lo, hi in spans for i in range(lo, hi)]
        fresh, effects = self.keeping.deliver(kept, outcomes, 1)
        self.out += effects
        self.out += self.keeping.keep(kept, fresh)
        self.take_out(kept.id, RangeSet(fresh.new))
        if kept.id in self.watched:
            self.on_results(kept, fresh)
        self.settle(kept)

    def reissue(self, kept: Kept, spans: Sequence[Span], *, alone: bool) -> None:
        """Let tasks run again, under a higher attempt number."""
        self.parts.hungry = True
        work = self.work_of(kept)
        self.out += self.keeping.reissued(kept, spans)
        work.attempts = kept.record.attempts
        for lo, hi in spans:
            self.pool.make_ready(work, lo, hi, alone=alone)

    def settle(self, kept: Kept) -> None:
        was_over = kept.ended
        self.out += self.keeping.settle(kept)
        if kept.ended:
            if not was_over:
                self.out += self.keeping.let_go(kept, inputs=True)
            self.pool.close(kept.id)
            for peer in self.leases.forget(kept.id):
                self.out.append(e.Send(peer, m.P_DROP, [kept.id, None]))


_MRO = {
    kind: [[cls.__module__, cls.__qualname__] for cls in error.__mro__]
    for kind, error in (("t", TaskTimeout), ("m", TaskMemoryExceeded), ("w", WorkerCrashed))
}
