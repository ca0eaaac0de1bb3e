"""Members: what other nodes send, as a keeper hears it (of our jobs) and as a holder (of theirs).

A frame is read as a whole before it is acted on (`core.shapes`); a malformed one is logged and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import CALLS, decode_batch, encode_batch, python_minor
from p2pgrid.core.errors import (
    PeerError,
    WorkerCrashed,
)
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Try
from p2pgrid.core.shapes import from_peer
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.kept import Kept, Source
from p2pgrid.node.leases import SETTLED, Lapsed
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Taken


class Members(Handler):
    """Both sides of the conversations with other nodes."""

    def __init__(self, parts: Parts, fitness: Fitness, outcomes: Outcomes) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self.outcomes = outcomes
        self.told: dict[str, None] = {}
        """Who knows that there is work here."""
        self._peer_frames: dict[int, Callable[[str, Any, float], None]] = {
            m.P_WANT: self._want,
            m.P_GRANT: self._granted,
            m.P_GRANT_ACK: self._grant_ack,
            m.P_NONE: self._none,
            m.P_CLAIM: self._claim,
            m.P_RESULTS: self._peer_results,
            m.P_RESULTS_ACK: self._results_ack,
            m.P_DROP: self._drop,
            m.P_WORK: self._work,
            m.P_RETURN: self._return,
        }

    def up(self, event: e.PeerUp, now: float) -> None:
        self.peers[event.peer] = event.facts
        self.told.pop(event.peer, None)
        self.holding.back(event.peer)
        self.parts.timer(("debt", event.peer), None)
        for work in self.pool.works.values():  # it may have been started again with what it lacked
            for lane in work.lanes.values():
                lane.unfit.pop(event.peer, None)

    def down(self, event: e.PeerDown, now: float) -> None:
        self.peers.pop(event.peer, None)
        self.told.pop(event.peer, None)
        self.holding.gone(event.peer)
        if event.peer in self.holding.debts:
            self.parts.timer(("debt", event.peer), now + self.config.holding.forget_s)
        for kept in [k for k in self.keeping.jobs.values() if not k.ended]:
            work = self.pool.works.get(kept.id)
            if work is not None and work.hot:
                self.outcomes.consider(kept, list(work.lanes.values()), now, known=True)
        self.leases.down(event.peer, now, reset=event.reset)
        due = self.leases.next_s()
        if due is not None:
            self.parts.timer(("lease",), due)

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame about work; a type of a later version is passed over. Raises PeerError if it is malformed."""
        body = from_peer(event.kind, event.body)
        if body is not None:
            self._peer_frames[event.kind](event.peer, body, now)

    def feed(self, now: float) -> None:
        if self.holding.hints and not self.parts.stopping:
            asks = self.holding.ask(self.running.free_slots(), self.running.speed(), now)
            self.out += asks
            if asks:
                self.parts.timer(("ask",), now + self.config.holding.ask_again_s)
        if self.holding.owes():
            self.parts.timer_unless_set(("beat",), now + self.config.holding.beat_s)
        if len(self.told) < len(self.peers) and self.pool.waits and not self.parts.stopping:
            for peer in sorted(self.peers.keys() - self.told.keys()):
                # Who could run none of it is not asked to ask: it would be told again at once, for ever.
                if any(self.fitness.fits(lane, peer) for lane in self.pool.candidates(foreign=False)):
                    self.told[peer] = None
                    self.out.append(e.Send(peer, m.P_WORK, []))
            self.parts.timer_unless_set(("offer",), now + self.config.holding.ask_again_s)
        if ("lease",) not in self.parts.timers:
            due = self.leases.next_s()
            if due is not None:
                self.parts.timer(("lease",), due)

    # ---- as a keeper -------------------------------------------------------------------------------------------------

    def _want(self, peer: str, body: Any, now: float) -> None:
        rid, slots, _ = body
        before = self.leases.answered(peer, rid)
        if before is not None:
            if before is not SETTLED:
                self.out.append(e.Send(peer, m.P_GRANT, before))
            return
        for lane in () if self.parts.stopping else self.pool.candidates(foreign=False):
            if not self.fitness.fits(lane, peer):
                continue
            share = max(1, slots)
            ours = -(-lane.ready.size * share // (2 * max(self.parts.grid_slots(), share)))
            per_slot = self.running.grain(lane)
            taken = self.pool.take(lane, max(1, min(ours, 64 * per_slot * share)))
            grant = self._grant_body(rid, taken)
            self.leases.grant(peer, rid, taken.work.job, taken.spans, grant, now)
            self.out.append(e.Send(peer, m.P_GRANT, grant))
            return
        self.told.pop(peer, None)
        self.out.append(e.Send(peer, m.P_NONE, [list(rid)]))

    @staticmethod
    def _grant_body(rid: tuple[int, int], taken: Taken) -> list[Any]:
        """Return ranges with all a holder needs to run them; a packed run travels whole, however little is granted."""
        work = taken.work
        batches = []
        codes: dict[bytes, bytes] = {}
        for run, lane, lo, end in taken.pieces():
            codes[run.fn] = work.codes[run.fn]
            a, b = (lo, end) if run.shape == CALLS else (run.lo, run.hi)
            data, _ = run.cut(a, b)
            batches.append([a, b, encode_batch([run.fn], [lane.raw], [(b - a, 0, 0, run.shape, data)])])
        ranges = [[lo, hi, taken.attempt, taken.alone] for lo, hi in taken.spans]
        return [list(rid), work.job, work.name, ranges, [list(item) for item in codes.items()], batches]

    def _grant_ack(self, peer: str, body: Any, now: float) -> None:
        rid, seq = body
        self.leases.acknowledged(peer, rid, seq, now)

    def _claim(self, peer: str, body: Any, now: float) -> None:
        incarnation, seq, interval, named = body
        for job in list(named):
            kept = self.keeping.jobs.get(job)
            if kept is None or kept.ended:
                self.out.append(e.Send(peer, m.P_DROP, [job, None]))
                del named[job]
                continue
            over = (named[job][0] & kept.done) | (named[job][0] & kept.cancelled)
            if over:
                # What is done elsewhere or cancelled need not run there; what it did itself it hears of by its acks.
                self.out.append(e.Send(peer, m.P_DROP, [job, over.flat()]))
        dropped = self.leases.claim(peer, (incarnation, seq), interval, named, now)
        if dropped is None:
            return
        for lapsed in dropped:
            self._uncover(lapsed, now)
        for job, (held, _) in named.items():
            work = self.pool.works.get(job)
            if work is not None:  # claimed by a holder that we took for dead: it is covered again
                for lo, hi in held:
                    self.pool.remove(work, lo, hi)

    def _uncover(self, lapsed: Lapsed, now: float) -> None:
        """Nobody holds these tasks any more: they run again."""
        kept = self.keeping.jobs.get(lapsed.job)
        if kept is None or kept.ended:
            return
        others = self.leases.covered(lapsed.job) | self.running.spans(lapsed.job)
        spans = ((lapsed.spans - kept.done) - kept.cancelled) - others
        if not spans:
            return
        charged = lapsed.running & spans
        if not charged and spans.size == 1:
            charged = spans
        if lapsed.vanished:
            for lo, hi in charged:
                for task in range(lo, hi):
                    self._charge(kept, task, lapsed.holder)
            spans = spans - kept.done
        if not kept.ended:
            self.outcomes.reissue(kept, list(spans), alone=lapsed.vanished)
            # Its holder may have been the only node for them.
            self.outcomes.consider(kept, list(self.outcomes.work_of(kept).lanes.values()), now, known=True)

    def leases_due(self, now: float) -> None:
        again, lost = self.leases.due(now)
        for peer, body in again:
            self.out.append(e.Send(peer, m.P_GRANT, body))
        for lapsed in lost:
            self._uncover(lapsed, now)
        for lapsed in self.leases.lapse(now):
            self._uncover(lapsed, now)

    def _charge(self, kept: Kept, task: int, holder: str) -> None:
        """A node vanished while it ran this task."""
        one = Try("n", holder, self.keeping.incarnation, self.keeping.next_number())
        self.out.append(self.keeping.tried(kept, task, one))
        if kept.record.crashes(task, "n") >= self.config.node_crashes_max:
            error = WorkerCrashed(f"{kept.name}/{task}: {self.config.node_crashes_max} nodes vanished while running it")
            self.outcomes.fail(kept, [(task, task + 1)], error)

    def _peer_results(self, peer: str, body: Any, now: float) -> None:
        self.leases.heard(peer, now)
        for job, (incarnation, number), attempt, outcomes in body:
            ack = e.Send(peer, m.P_RESULTS_ACK, [[job, incarnation, number]])
            kept = self.keeping.jobs.get(job)
            if kept is None:
                self.out.append(ack)
                continue
            if any(kept.known.missing(lo, hi) for lo, hi, _, _ in outcomes):
                raise PeerError("results of tasks that nobody submitted")
            name = str(self.peers.get(peer, {}).get("name", peer[-8:]))
            source = Source(peer, name, incarnation, number)
            if self.keeping.waits_for_disk(kept, source, len(outcomes)):
                continue  # the first arrival will be acknowledged
            parsed = [e.Outcome(*outcome) for outcome in outcomes]
            self.outcomes.accept(kept, parsed, attempt, source, [ack])

    def _return(self, peer: str, body: Any, now: float) -> None:
        job, given, why = body
        kept, work = self.keeping.jobs.get(job), self.pool.works.get(job)
        if kept is None or kept.ended or work is None:
            return
        spans = (self.leases.returned(peer, job, given) - kept.done) - kept.cancelled
        for lo, hi in spans:
            found = work.locate(lo)
            if why and found is not None:
                found[1].unfit[peer] = why
            self.pool.make_ready(work, lo, hi)
        for lane in list(work.lanes.values()):
            if lane.unfit and lane.ready:
                self.outcomes.unfit_everywhere(work, lane)

    # ---- as a holder -------------------------------------------------------------------------------------------------

    def _work(self, peer: str, body: Any, now: float) -> None:
        self.holding.hint(peer)

    def _none(self, peer: str, body: Any, now: float) -> None:
        self.holding.refused(peer, body[0])

    def _granted(self, peer: str, body: Any, now: float) -> None:
        rid, job, name, ranges, codes, batches = body
        decoded = [decode_batch(lo, hi, data) for lo, hi, data in batches]
        unions = dict(codes)
        for union in unions.values():
            python_minor(union)
        inputs = RangeSet((run.lo, run.hi) for batch in decoded for run in batch.runs if run.fn in unions)
        if not inputs >= RangeSet((lo, hi) for lo, hi, _, _ in ranges):
            raise PeerError("a grant without the inputs or functions of its tasks")
        before = self.pool.works.get(job)
        if job in self.keeping.jobs or (before is not None and before.keeper != peer) or self.parts.stopping:
            return  # not acknowledged, it goes back to the keeper
        work = self.pool.open(job, name, (peer.encode(), job), peer)
        work.codes.update(unions)
        try:
            for batch in decoded:
                self.parts.append(work, batch)
        except PeerError:
            self._tidy_foreign(peer, job)
            raise
        fresh, acks = self.holding.granted(peer, rid, job, [(lo, hi) for lo, hi, _, _ in ranges])
        self.out += acks
        for lo, hi, attempt, alone in ranges:
            if attempt > 1:
                work.attempts.join(lo, hi, attempt)
            for a, b in RangeSet([(lo, hi)]) & RangeSet(fresh):
                self.pool.make_ready(work, a, b, alone=alone)
        self._tidy_foreign(peer, job)

    def _results_ack(self, peer: str, body: Any, now: float) -> None:
        for job, _ in self.holding.acknowledged(peer, body):
            self._tidy_foreign(peer, job)

    def _drop(self, peer: str, body: Any, now: float) -> None:
        job, spans = body
        gone = self.holding.drop(peer, job, spans)
        work = self.pool.works.get(job)
        if work is not None and work.keeper == peer:
            self.outcomes.take_out(job, gone)
            self.out += self.running.cancel(job, gone)
        self._tidy_foreign(peer, job)

    def hand_back(self) -> None:
        """Give everything back, for this node ends: its keepers need not wait until its claims lapse."""
        for peer, debt in self.holding.debts.items():
            if not debt.away:
                self.out += [e.Send(peer, m.P_RETURN, [job, held.flat(), ""]) for job, held in debt.held.items()]

    def _tidy_foreign(self, peer: str, job: bytes) -> None:
        work = self.pool.works.get(job)
        if work is not None and work.keeper == peer and not self.holding.holds(peer, job):
            self.pool.close(job)
