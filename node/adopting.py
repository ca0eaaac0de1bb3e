"""Adopting: what another keeper tells of a job goes into the copy here, and has the consequences that it has.

Whoever serves the job lets go of tasks that are done elsewhere, stops what was cancelled there, and goes on with inputs
that it lacked; at the others, readers and tasks that wait for results hear of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pgrid.core import messages as m
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import BatchId
from p2pgrid.core.shapes import failure_text
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from p2pgrid.node.keeping import REASONS_MAX
from p2pgrid.node.kept import ABANDONED, CANCELLED, Fresh, Kept
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.restoring import Restoring
from p2pgrid.node.rows import LOCAL


class Adopting(Handler):
    """Rows of others."""

    def __init__(self, parts: Parts, outcomes: Outcomes, restoring: Restoring) -> None:
        super().__init__(parts)
        self.outcomes = outcomes
        self.restoring = restoring

    def merge(self, kept: Kept, rows: Sequence[e.Row], then: list[Callable[[], None]]) -> list[e.Row]:
        """Take in what is new of these rows; return them, to be stored, and note what is to be done `then`."""
        fresh = []
        done: list[tuple[int, int]] = []
        batches: list[tuple[BatchId, e.Outcome]] = []
        before = kept.state
        for row in rows:
            if row.kind in LOCAL or not kept.rows.wants(row):
                continue
            fresh.append(row)
            kept.rows.put(row)
            if row.kind == "spec":
                continue
            if row.kind == "result":
                node, incarnation, number, lo, hi, failed = unpack(row.meta)[:6]
                shape, data = unpack(row.value or b"")
                batch = BatchId(node, incarnation, number)
                if batch not in kept.record.results:
                    kept.order.sort()
                    self.out += self.keeping.seal_given(kept, lo, hi)
                done += kept.done.missing(lo, hi)
                if kept.done.missing(lo, hi) or batch in kept.torn:
                    batches.append((batch, e.Outcome(lo, hi, shape, data)))
                if failed and len(kept.reasons) < REASONS_MAX:
                    kept.reasons[lo] = failure_text(data)
            if row.kind == "try":
                self._charged(kept, *unpack(row.meta)[:3])
            was = kept.cancelled.copy() if row.kind == "cancel" else None
            self.keeping.merge(kept, row)
            if was is not None:
                self._cancelled(kept, row, was)
        kept.order.sort()
        if fresh:
            then.append(lambda: self._follow(kept, rows, done, before))
        if batches and kept.id in self.outcomes.watched:  # tasks wait for some of these
            self.parts.later.append(lambda: self.outcomes.on_results(kept, Fresh(0, seal=False, batches=batches)))
        return fresh

    @staticmethod
    def _charged(kept: Kept, task: int, kind: str, node: str) -> None:
        """Another keeper has charged a task with the end of a node: once is enough."""
        if kind == "n" and node in kept.named:
            kept.named[node].discard(task, task + 1)

    def _cancelled(self, kept: Kept, row: e.Row, was: RangeSet) -> None:
        """Somebody cancelled tasks at another keeper: whoever serves them stops them, readers are told."""
        flat, reason = unpack(row.meta)[:2]
        if not kept.serving:
            fresh = kept.cancelled - was
            if fresh:
                self.out += [e.Reply(one, m.CANCELLED, 0, [kept.id, fresh.flat()]) for one in kept.watches]
                self._will_not_end(kept, fresh)
            return
        spans = None if flat is None else RangeSet.from_flat(flat)
        self.restoring.door.stop_tasks(kept, spans, reason)

    def _will_not_end(self, kept: Kept, spans: RangeSet | None) -> None:
        """Tasks (None: all) were cancelled at another keeper: whoever waits for one of them here fails."""
        if kept.id in self.outcomes.watched:
            spans = self.outcomes.watched[kept.id] if spans is None else spans
            spans = spans - kept.done
            self.parts.later.append(lambda: self.outcomes.on_cancelled(kept.id, spans))

    def _follow(self, kept: Kept, rows: Sequence[e.Row], done: Sequence[tuple[int, int]], before: str) -> None:
        """Draw the consequences of what another keeper has told."""
        has_ended = kept.ended and before != kept.state
        if has_ended:
            self.out += self.keeping.let_go(kept, inputs=True)
            if kept.state in (CANCELLED, ABANDONED):
                self._will_not_end(kept, None)
        if not kept.serving:
            return
        if has_ended:
            self.outcomes.ended_elsewhere(kept)
            return
        self.outcomes.take_out(kept.id, RangeSet(done))
        for lo, hi in done:
            self.outcomes.stop_copies(kept.id, lo, hi, None)
        if any(row.kind in ("code", "input") for row in rows) and not kept.ended:
            self.restoring.begin(kept)
        self.outcomes.settle(kept)
