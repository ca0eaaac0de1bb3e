"""What the workers of this node tell: they are ready, they have results, they cannot run something, they died.

Results of jobs that are kept here go into their records, results for other keepers into what is owed to them. Of a
worker that died all but the task it died of runs again; where nobody knows which that was, whatever it had runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pgrid.core.shapes import CRASH
from p2pgrid.core.wire import pack
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.grains import RunInfo
from p2pgrid.node.members import Members
from p2pgrid.node.moves import RERUN
from p2pgrid.node.nesting import Nesting
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.prints import Prints

LAST_WORDS_BYTES = 4096


class Working(Handler):
    """The workers of this node. `feed` gives them the next grains."""

    def __init__(
        self, parts: Parts, fitness: Fitness, outcomes: Outcomes, members: Members, prints: Prints, nesting: Nesting,
        feed: Callable[[float], None],
    ) -> None:  # fmt: skip
        super().__init__(parts)
        self.fitness = fitness
        self.outcomes = outcomes
        self.members = members
        self.naming = members.granting.gathering.arriving
        self.prints = prints
        self.nesting = nesting
        self.feed = feed

    def ready(self, event: e.WorkerReady, _now: float) -> None:
        """Have a worker be given work."""
        self.running.worker_ready(event.worker)

    def done(self, event: e.WorkerDone, now: float) -> None:
        """Take in results, what a worker gives back, and the end of a run."""
        info = self.running.find(event.worker, event.run)
        if info is None:
            return  # of a run that was taken from it meanwhile
        self.running.progressed(info, event.outcomes, event.busy_s, self.pool, now)
        if info.taken.attempt > 1:
            known = self.keeping.jobs.get(info.job)
            fresh = (one for one in event.outcomes if known is None or known.is_again(one.lo, info.taken.attempt))
            again = sum(outcome.hi - outcome.lo for outcome in fresh)
            self.parts.counts["rerun"] += again
            if info.taken.work.keeper is None:
                self.parts.moves.count(info.job, self.config.node_id, RERUN, again)
        returned = list(event.returned)
        for lo, hi in returned:
            info.left.discard(lo, hi)
        if event.final:
            assert not info.left, "a worker ended a run and kept tasks"
            self.running.ended(event.worker, info, now)
            if info.waited:
                self.nesting.ended([info])
        work = info.taken.work
        if returned:
            self.pool.put_back(info.taken, self.outcomes.wanted(work, returned))
        if event.unfit:
            self._unfit(info, event.unfit)
        logs: Sequence[tuple[int, bytes]] = event.logs
        if work.job in self.nesting.children:
            ended = [(one.lo, one.hi) for one in event.outcomes]
            logs = self.nesting.logs.joined(work.job, logs, ended)
            self.nesting.over(work.job, ended)
        self.feed(now)  # the next grain leaves before the results are looked at
        if logs and work.keeper is None and work.job in self.keeping.jobs:
            effect = self.keeping.log(self.keeping.jobs[work.job], logs)
            if effect is not None:
                self.out.append(effect)
        outcomes = self.naming.sorted_out(info.taken, event.outcomes)
        if work.keeper is not None:
            self.outcomes.owe(work, outcomes, info.taken.attempt, now, logs, event.busy_s)
        elif outcomes:
            self.outcomes.report(work, outcomes, info.taken.attempt)

    def _last_logs(self, event: e.WorkerDied, runs: Sequence[RunInfo]) -> dict[int, dict[int, bytes]]:
        """Return what the tasks of each run of a dead worker have printed, and what those below them have."""
        logs: dict[int, dict[int, bytes]] = {}
        for info in runs:  # the innermost first
            own = [(index, text) for run, index, text in event.logs if run == info.run]
            logs[info.run] = dict(self.nesting.logs.joined(info.job, own, info.left))
            kept = self.keeping.jobs.get(info.job)
            if kept is not None:
                self.nesting.logs.note(kept, list(logs[info.run].items()))
        return logs

    def _unfit(self, info: RunInfo, why: str) -> None:
        lane, work = info.taken.lane, info.taken.work
        lane.cannot[info.python] = why
        lane.fits = None
        if self.fitness.eligible(lane):
            return  # by another interpreter
        lane.unfit[self.config.node_id] = "; ".join(lane.cannot.values())
        if work.keeper is not None:
            self.members.unfit(work, lane, why)
        else:
            self.outcomes.unfit_everywhere(work, lane)

    def died(self, event: e.WorkerDied, now: float) -> None:
        """Run again what a dead worker had; the task that it died of has that for a result."""
        runs = self.running.died(event.worker, now)
        self.nesting.ended(runs)
        logs = self._last_logs(event, runs)
        for info in reversed(runs):  # the outermost first: what it has started ends with it, and need not run again
            self.nesting.over(info.job, info.left)
        for position, info in enumerate(runs):
            left = info.left
            printed = logs[info.run]
            culprit = None
            if event.cause != "killed":
                if event.index is not None and event.run == info.run and event.index in left:
                    culprit = event.index
                elif position == 0 and left.size == 1:
                    culprit = left.first()[0]  # type: ignore[index]
            if culprit is not None:
                left.discard(culprit, culprit + 1)
            work = info.taken.work
            wanted = self.outcomes.wanted(work, list(left))
            unknown = position == 0 and culprit is None and event.cause != "killed"
            if info.at is not None and info.at in left and (position or event.cause != "killed"):
                unknown = True  # what ran below it has taken it along: now it has a process of its own
            kept = None if work.keeper else self.keeping.jobs.get(work.job)
            if culprit is not None and event.stderr:  # its last words are its log: nobody else can send it any more
                printed.setdefault(culprit, event.stderr.encode() + b"\n")
            last = [(culprit, printed.pop(culprit))] if culprit is not None and culprit in printed else []
            self.prints.left(work, list(printed.items()), now)
            if unknown and kept is not None and wanted:
                self.outcomes.reissue(kept, wanted, alone=True)  # one of them has begun
                continue
            for lo, hi in wanted:
                self.pool.make_ready(work, lo, hi, alone=unknown or info.taken.alone)
            if culprit is not None:
                data = pack([event.cause, event.detail, event.stderr[-LAST_WORDS_BYTES:]])
                crash = e.Outcome(culprit, culprit + 1, CRASH, data)
                if kept is not None:
                    effect = self.keeping.log(kept, last)
                    self.out += [effect] if effect is not None else []
                if work.keeper is not None:
                    self.outcomes.owe(work, [crash], info.taken.attempt, now, last)
                else:
                    self.outcomes.report(work, [crash], info.taken.attempt)
