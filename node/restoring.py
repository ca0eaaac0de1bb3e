"""Restoring: from the rows of a record on disk back to tasks that may run, after a restart or when a keeper takes over.

What is open becomes ready again, except what claims show to be with other nodes, or what workers of this node have.
A keeper that took over may lack inputs, or the function they belong to, which another has: such tasks wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from p2pgrid.core.batch import decode_batch
from p2pgrid.core.errors import ObjectLost, PeerError
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.node import events as e
from p2pgrid.node.clients import Door
from p2pgrid.node.depending import Depending
from p2pgrid.node.kept import Kept
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import RISKY, Work


class Restoring(Handler):
    """Jobs whose inputs are being read from disk."""

    def __init__(self, parts: Parts, outcomes: Outcomes, door: Door, depending: Depending) -> None:
        super().__init__(parts)
        self.depending = depending
        self.outcomes = outcomes
        self.door = door
        self._reading: dict[int, tuple[bytes, list[tuple[bytes, str, bytes]]]] = {}
        self.lacking: dict[bytes, RangeSet] = {}
        """Tasks whose inputs or function are not here, and are hoped for from other keepers."""
        self.mend: Callable[[Kept], bool] = lambda _: False
        """Whether what is missing of a job may be had from another keeper."""

    def begin(self, kept: Kept) -> None:
        """Read what the open tasks of a job need; they may have been started before, so their attempt number rises."""
        self.leases.inherited.add(kept.id)
        open_tasks = kept.open_tasks
        self.out += self.keeping.reissued(kept, open_tasks, raised=True)
        self.outcomes.settle(kept)
        if kept.ended:
            self.release(kept.id, 0.0)
            return
        keys = [(kept.id, "code", code) for code in kept.rows.keys_of("code")]
        for lo, inputs in sorted(kept.record.inputs.items()):
            if open_tasks.within(lo, inputs.hi):
                keys.append((kept.id, "input", lo.to_bytes(8, "big")))
        token = self.parts.token()
        self._reading[token] = kept.id, keys
        self.parts.reading.add(kept.id)
        self.door.held_back.setdefault(kept.id, [])
        self.out.append(e.Fetch(token, keys))

    def fetched(self, event: e.Fetched, now: float) -> bool:
        """Take in what was read; False: it was not asked for here."""
        job, keys = self._reading.pop(event.token, (b"", []))
        if not job:
            return False
        kept = self.keeping.jobs.get(job)
        if kept is not None and not kept.ended and kept.serving:
            found = {(row.job, row.kind, row.key) for row in event.rows if row.value is not None}
            for key in keys:
                if key not in found:  # it is no part of this copy: whoever has it is asked for it
                    kept.rows.put(e.Row(*key, b"", None))
            self._restored(kept, [row for row in event.rows if row.value is not None], now)
        self.release(job, now)
        return True

    def release(self, job: bytes, now: float) -> None:
        """Let clients go on whose frames had to wait, and judge the failures that had to."""
        if not any(job == one for one, _ in self._reading.values()):
            self.parts.reading.discard(job)
            self.outcomes.resume(job)
        for held_back in self.door.held_back.pop(job, ()):
            self.door.sent(held_back, now)

    def _restored(self, kept: Kept, rows: Sequence[e.Row], now: float) -> None:
        work = self.outcomes.work_of(kept)
        work.attempts = kept.record.attempts
        for row in rows:
            if row.kind == "code":
                kept.record.codes[row.key] = row.value or b""
                kept.synced.add(("code", row.key))
        for row in rows:
            if row.kind == "input":
                lo = int.from_bytes(row.key, "big")
                try:
                    batch = decode_batch(lo, kept.record.inputs[lo].hi, row.value or b"")
                    if all(run.fn in work.codes for run in batch.runs):
                        self.pool.append(work, batch)
                except (PeerError, ValueError):
                    continue  # another keeper's word, and nonsense: its tasks fail
        elsewhere = self.leases.covered(kept.id) | self.running.spans(kept.id)
        lost = RangeSet(_lacking(kept, work))
        for lo, hi in kept.open_tasks - elsewhere - lost:
            self.pool.make_ready(work, lo, hi)
        for lo, hi in kept.done | kept.cancelled:
            self.pool.finished(work, lo, hi)
        self.depending.hold(kept, [run for run, _ in work.runs], self.config.away_s)
        if lost:
            self.lacking[kept.id] = lost
            if not self.mend(kept):
                self.give_up(kept)
        else:
            self.lacking.pop(kept.id, None)
        work.risky = RangeSet((t, t + 1) for t in kept.record.tries if kept.record.crashes(t, "n") >= RISKY)
        for task, tries in kept.record.tries.items():
            if any(one.kind in "wn" for one in tries) and task in kept.open_tasks - elsewhere:
                self.pool.make_ready(work, task, task + 1, alone=True)
        self.outcomes.consider(kept, list(work.lanes.values()), now)

    def give_up(self, kept: Kept) -> None:
        """Nobody has the inputs that are not here."""
        lost = self.lacking.pop(kept.id, RangeSet()) & kept.open_tasks
        if lost:
            error = ObjectLost("the inputs of this task are damaged on disk", next="submit it again")
            self.outcomes.fail(kept, list(lost), error)


def _lacking(kept: Kept, work: Work) -> Iterator[Span]:
    """Yield the open tasks whose inputs or function are not here."""
    for lo, hi in kept.open_tasks:
        at = lo
        while at < hi:
            found = work.locate(at)
            end = min(hi, found[0].hi) if found else at + 1
            if found is None:
                yield at, end
            at = end
