"""Worker children: they take their time, may die of a task, and tell their node by events, as real ones do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from p2pgrid.core.batch import CALLS
from p2pgrid.core.deps import DEPENDENT
from p2pgrid.core.errors import ObjectLost
from p2pgrid.core.failure import encode_exception
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.wire import pack, unpack
from p2pgrid.node import events as e
from p2pgrid.simulations import truth as t

if TYPE_CHECKING:
    from p2pgrid.simulations.node import Node

REPLY_S = 0.0002
"""From a worker to its node or back."""
AGAIN_S = 0.1
"""A new child is there after that."""


class Child:
    """One worker process of a node."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number
        self.runs: list[tuple[e.Run, list[tuple[int, e.Segment]]]] = []
        self.current: int | None = None
        self._step = 0
        self._since_s = 0.0
        self._left_s: float | None = None

    @property
    def task(self) -> tuple[bytes, int] | None:
        """What it runs now."""
        return None if self.current is None else (self.runs[0][0].job, self.current)

    def queue(self, run: e.Run) -> None:
        """Take a run."""
        if self.node.lacks:
            back = [(segment.lo, segment.hi) for segment in run.segments]
            done = e.WorkerDone(self.number, run.run, [], True, back, 0.0, unfit=self.node.lacks)  # noqa: FBT003
            self.node.later(REPLY_S, done)
            return
        self.runs.append((run, [(i, segment) for segment in run.segments for i in range(segment.lo, segment.hi)]))
        self.node.expect(len(self.runs) <= 2, "more than two runs with a worker")  # noqa: PLR2004 - as it is named
        self._next()

    def _next(self) -> None:
        if not self.runs or self.current is not None or not self.node.alive:
            return
        run, tasks = self.runs[0]
        self.current = index = tasks[0][0]
        node = self.node
        self._since_s = node.world.now
        self._step += 1
        truth = node.world.truth(run.job)
        truth.runs[index] += 1
        plan = truth.plan(index)
        node.world.began(node, self.number, run.job, index, run.context["attempt"])
        node.world.at(plan.seconds / node.speed, self._due, self._step, node.life, plan)

    def suspend(self) -> None:
        """The machine sleeps: a task that runs takes that much longer."""
        self._left_s = self.node.world.now

    def resume(self) -> None:
        """It goes on."""
        assert self._left_s is not None, "resumed without having been suspended"
        slept_s, self._left_s = self.node.world.now - self._left_s, None
        if self.current is not None:
            run = self.runs[0][0]
            plan = self.node.world.truth(run.job).plan(self.current)
            left_s = self._since_s + slept_s + plan.seconds / self.node.speed - self.node.world.now
            self._since_s += slept_s
            self._step += 1
            self.node.world.at(max(left_s, 0.0), self._due, self._step, self.node.life, plan)

    def _due(self, step: int, life: int, plan: t.Plan) -> None:
        if not self.node.alive or self.node.life != life or self._step != step or self._left_s is not None:
            return
        run, tasks = self.runs[0]
        index, segment = tasks[0]
        truth = self.node.world.truth(run.job)
        ill = plan.outcome if truth.runs[index] <= plan.times else t.OK
        if ill == t.NODE:
            self.node.world.fell(self.node)
        elif ill in t.CAUSES:
            self.die(index, t.CAUSES[ill], "killed by signal SIGSEGV" if ill == t.CRASH else f"{ill} after 1 s")
        else:
            self._done(run, tasks, self._outcome(ill, truth, plan, index, segment), truth)

    def _outcome(self, ill: str, truth: t.Truth, plan: t.Plan, index: int, segment: e.Segment) -> e.Outcome:
        if truth.forged:
            return e.Outcome(index, index + 1, 0, [b"of a job that nobody submitted"])
        if segment.shape == DEPENDENT:
            call, places = segment.data[0][index - segment.lo]
            given = call == b"%d" % index and self._is_right(truth, index, [segment.data[1][place] for place in places])
        elif segment.shape == CALLS:
            given = segment.data[index - segment.lo] == b"%d" % index
        else:
            given = unpack(segment.data)[segment.offset + index - segment.lo] == index
        self.node.expect(given, "a task got another task's arguments")
        if ill == t.RAISE:
            return e.Outcome(index, index + 1, 2, pack(encode_exception(ObjectLost(f"task {index}"))))
        value = truth.value(index, plan)
        if self.node.lies and self.node.rng.random() < self.node.lies:
            value += b" and a lie"
            truth.lied.setdefault(index, []).append(value)
        if segment.shape in (CALLS, DEPENDENT):
            return e.Outcome(index, index + 1, 0, [value])
        return e.Outcome(index, index + 1, 1, pack([value]))

    def _is_right(self, truth: t.Truth, index: int, values: list[Any]) -> bool:
        """Whether a task got what those that it depends on have returned."""
        assert truth.needs is not None, "values for a task that needs none"
        needs = truth.needs(index)
        return len(needs) == len(values) and all(
            self.node.world.truths[need.job].may_be(need.index, data if shape == 0 else unpack(data)[place])
            for need, (shape, data, place) in zip(needs, values, strict=True)
        )

    def _done(self, run: e.Run, tasks: list[Any], outcome: e.Outcome, truth: t.Truth) -> None:
        tasks.pop(0)
        if not tasks:
            self.runs.pop(0)
        busy_s = self.node.world.now - self._since_s
        truth.ended += 1
        truth.worked_s += busy_s * self.node.speed
        self.current = None
        self.node.world.finished(self.node, self.number)
        self.node.handle(e.WorkerDone(self.number, run.run, [outcome], not tasks, [], busy_s))
        self._next()

    def die(self, index: int | None, cause: str, detail: str = "") -> None:
        """The process ends; a new one follows."""
        run = self.runs[0][0].run if self.runs else None
        died = e.WorkerDied(self.number, run, index, cause, detail, "Segmentation fault\n")
        self._end()
        self.node.world.finished(self.node, self.number)
        self.node.world.at(REPLY_S, self._died, self.node.life, died)

    def _end(self) -> None:
        self.runs.clear()
        self.current = None
        self._step += 1

    def _died(self, life: int, died: e.WorkerDied) -> None:
        if self.node.alive and self.node.life == life:
            self._end()  # what came meanwhile came to nobody
            self.node.handle(died)
            self.node.later(AGAIN_S, e.WorkerReady(self.number))

    def kill(self, run: int, spans: Sequence[tuple[int, int]] | None) -> None:
        """Kill what runs, if it is meant; else give back what has not started."""
        runs = self.runs[0][0].run if self.runs else None
        meant = spans is None or (runs == run and any(lo <= (self.current or 0) < hi for lo, hi in spans))
        if self.current is not None and meant:
            self.die(self.current, "killed")
        else:
            self.recall()

    def recall(self) -> None:
        """Give back what has not started."""
        for position, (run, tasks) in list(enumerate(self.runs)):
            keep = 1 if position == 0 and self.current is not None else 0
            back = RangeSet((i, i + 1) for i, _ in tasks[keep:])
            if back:
                del tasks[keep:]
                self.node.later(0.0, e.WorkerDone(self.number, run.run, [], not tasks, list(back), 0.0))
        self.runs = [(run, tasks) for run, tasks in self.runs if tasks]
