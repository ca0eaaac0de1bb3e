"""Members: what other nodes send; here as a holder hears it, in `granting` as a keeper does.

A frame is read as a whole before it is acted on (`core.shapes`): a malformed one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TREES, InputBatch, binding, content_id, decode_batch, is_tree
from p2pgrid.core.chains import SUBMIT
from p2pgrid.core.errors import PeerError
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import from_peer
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.granting import Granting
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Lane, Work
from p2pgrid.node.stock import Stock

STOCK_BYTES = 64 << 20
"""Packed inputs and functions of others that are kept for their next grant."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Functions and inputs of tasks that are handed to this node."""

    codes: dict[bytes, bytes]
    inputs: Sequence[InputBatch]


class Members(Handler):
    """Both sides of the conversations with other nodes."""

    def __init__(self, parts: Parts, fitness: Fitness, outcomes: Outcomes) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self.outcomes = outcomes
        self.granting = Granting(parts, fitness, outcomes)
        self.stock = Stock(STOCK_BYTES)
        self.hinted: Callable[[str, Sequence[tuple[str, float]], float], None] = lambda *_: None
        """Told at whom the work of a keeper waits that has none to give."""
        self._peer_frames: dict[int, Callable[[str, Any, float], None]] = {
            m.P_WANT: self.granting.want,
            m.P_GRANT: self._granted,
            m.P_GRANT_ACK: self.granting.acknowledged,
            m.P_NONE: self._none,
            m.P_COMING: self._coming,
            m.P_CLAIM: self.granting.claim,
            m.P_RESULTS: self.granting.gathering.results,
            m.P_RESULTS_ACK: self._results_ack,
            m.P_DROP: self._drop,
            m.P_WORK: self._work,
            m.P_RETURN: self.granting.returned,
        }

    def up(self, event: e.PeerUp, now: float) -> None:
        self.peers[event.peer] = event.facts
        self.parts.roles[event.peer] = event.roles
        self._count_slots()
        self.holding.back(event.peer)
        self.granting.up(event.peer, now)
        self.parts.timer(("debt", event.peer), None)
        if self.holding.owes():
            self.parts.timer(("beat",), now)  # a connection that was lost for a moment costs no claims
        for work in self.pool.works.values():  # it may have been started again with what it lacked
            for lane in work.lanes.values():
                lane.unfit.pop(event.peer, None)

    def down(self, event: e.PeerDown, now: float) -> None:
        self.peers.pop(event.peer, None)
        self.granting.down(event.peer)
        self._count_slots()
        self.holding.gone(event.peer)
        if event.peer in self.holding.debts:
            self.parts.timer(("debt", event.peer), now + self.config.holding.forget_s)
        for kept in [k for k in self.keeping.jobs.values() if k.serving and not k.ended]:
            work = self.pool.works.get(kept.id)
            if work is not None and work.hot:
                self.outcomes.consider(kept, list(work.lanes.values()), now, known=True)
        self.leases.down(event.peer, now, reset=event.reset)
        self.granting.watch()

    def roles_changed(self, event: e.PeerRoles, now: float) -> None:
        """A member shows another certificate: it may work now, or not any more."""
        self.parts.roles[event.peer] = event.roles
        self.granting.told.pop(event.peer, None)
        self._count_slots()

    def _count_slots(self) -> None:
        self.parts.slots_of_grid = None
        self.running.grid_slots = self.parts.grid_slots()

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long: the silence of others meanwhile was ours."""
        self.leases.stalled(seconds)
        self.holding.stalled(seconds)
        self.parts.timer(("lease",), None)
        self.granting.watch()

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame about work; a type of a later version is passed over. Raises PeerError if it is malformed."""
        body = from_peer(event.kind, event.body)
        if body is not None:
            self._peer_frames[event.kind](event.peer, body, now)

    def feed(self, now: float) -> None:
        if self.holding.ahead and self.running.free_slots():
            self.holding.idle()
        if self.holding.hints and not self.parts.stopping:
            asks = self.holding.ask_again(now)
            if self.holding.asked is None:
                asks += self._asks(now)
            self.out += asks
            self.parts.counts["asked"] += len(asks)
            if asks:
                self.parts.timer(("ask",), now + self.config.holding.ask_again_s)
        if self.holding.owes():
            self.parts.timer_unless_set(("beat",), now + self.config.holding.beat_s)
        self.granting.offer(now)

    def _asks(self, now: float) -> list[e.Send]:
        wants, speed = self.parts.appetite(self.fitness.eligible), self.running.speed()
        if wants is not None:
            return self.holding.ask(wants[0], speed, wants[1], now)
        if self.running.typical_s() <= self.config.queue_s and self.holding.unserved():
            # There is enough here, but nothing of a keeper that has some as well: each has its turns.
            return self.holding.ask(0, speed, self.config.slots * self.config.queue_s, now, turn=True)
        return []

    # ---- as a holder -------------------------------------------------------------------------------------------------

    def _work(self, peer: str, body: Any, now: float) -> None:
        if self._may_hand_out(peer):
            self.holding.hint(peer)

    def _may_hand_out(self, peer: str) -> bool:
        """Whether a member may give work; one that may not would keep this node from asking others."""
        if self.parts.may(peer, SUBMIT):
            return True
        self.parts.log_once(peer, "hands out work, which its certificate does not allow")
        return False

    def _none(self, peer: str, body: Any, now: float) -> None:
        rid, hints = body
        self.holding.refused(peer, rid, now)
        self.hinted(peer, hints, now)

    def _coming(self, peer: str, body: Any, now: float) -> None:
        if not self._may_hand_out(peer):
            return
        self.holding.coming(peer, body[0], now)
        if self.holding.asked is not None:
            self.parts.timer_unless_set(("ask",), now + self.config.holding.ask_again_s)

    def _granted(self, peer: str, body: Any, now: float) -> None:
        rid, job, name, ranges, codes, batches = body
        before = self.pool.works.get(job)
        kept = self.keeping.jobs.get(job)
        if (kept is not None and kept.answers) or (before is not None and before.keeper != peer):
            return  # not acknowledged, it goes back to the keeper
        if self.parts.stopping or self.parts.refusing:
            return
        if not self._may_hand_out(peer):
            return
        opened = self.opened(peer, job, ranges, codes, batches)
        is_new, acks = self.holding.met(peer, rid, now)
        self.out += acks
        if not is_new:
            return
        if opened is None:  # something of it was let go here meanwhile: next time it comes as a whole
            spans = RangeSet((lo, hi) for lo, hi, _, _ in ranges)
            self.out += self.holding.give_back(peer, job, spans, "", lacks=True)
            return
        free = self.running.free_slots()
        fresh = self.admit(peer, job, name, opened, ranges)
        self.parts.counts["prefetched"] += max(fresh - free, 0)

    def opened(self, keeper: str, job: bytes, ranges: Any, codes: Any, batches: Any) -> Opened | None:
        """Return the functions and inputs of what is handed to this node; None: some that it should have are not here.

        Raises:
            PeerError: it is malformed; nothing was taken in.
        """
        spans = RangeSet((lo, hi) for lo, hi, _, _ in ranges)
        if not RangeSet((lo, hi) for lo, hi, _ in batches) >= spans:
            raise PeerError("a grant without the inputs of its tasks")
        before = self.pool.works.get(job)
        unions = dict(codes)
        for code, union in unions.items():
            binding(union)
            if not is_tree(union):
                self.stock.put((keeper, job, code), union, len(union))
            elif content_id(union) == code:
                self.stock.put(("", TREES, code), union, len(union))
            else:
                raise PeerError("a source tree that is not what its id says")
        inputs = self._inputs(keeper, job, before, batches)
        for code in {run.fn: None for batch in inputs or () for run in batch.runs}:
            have = unions.get(code) or (before.codes.get(code) if before else None)
            have = have or self.stock.get((keeper, job, code))
            if have is None:
                return None
            unions[code] = have
            tree = binding(have).tree
            if tree is None or tree in unions:
                continue
            have = (before.codes.get(tree) if before else None) or self.stock.get(("", TREES, tree))
            if have is None:
                return None
            unions[tree] = have
        return None if inputs is None else Opened(unions, inputs)

    def admit(self, keeper: str, job: bytes, name: str, opened: Opened, ranges: Any) -> int:
        """Hold these ranges from now on, and let them run; return how many tasks are new here."""
        work = self.pool.open(job, name, (keeper.encode(), job), keeper)
        work.shown = self.parts.announced.get((keeper, job), 0)
        work.codes.update(opened.codes)
        fresh = self._take_in(work, opened.inputs, ranges)
        self.tidy(keeper, job)
        return fresh

    def _inputs(self, peer: str, job: bytes, work: Work | None, batches: Any) -> list[InputBatch] | None:
        """Return the inputs of a grant; None: it names a packed run that is not here any more."""
        inputs = []
        for lo, hi, data in batches:
            if data:
                batch = decode_batch(lo, hi, data)
                if not all(run.is_whole for run in batch.runs):
                    raise PeerError("a grant of tasks that wait for others")
                if all(run.packed for run in batch.runs):
                    self.stock.put((peer, job, lo, hi), batch, len(data))
                inputs.append(batch)
                continue
            found = work.locate(lo) if work is not None else None
            if found is not None and (found[0].lo, found[0].hi) == (lo, hi) and found[0].packed:
                inputs.append(InputBatch(lo, hi, (found[1].raw,), (replace(found[0], opts=0),)))
            elif (stocked := self.stock.get((peer, job, lo, hi))) is not None:
                inputs.append(stocked)
            else:
                return None
        return inputs

    def _take_in(self, work: Work, inputs: Sequence[InputBatch], ranges: Any) -> int:
        peer = str(work.keeper)
        try:
            for batch in inputs:
                self.parts.append(work, batch)
        except PeerError:
            self.tidy(peer, work.job)
            raise
        spans = [(lo, hi) for lo, hi, _, _ in ranges]
        fresh = RangeSet(self.holding.take(peer, work.job, spans))
        fresh.update(self.victim.regained(work.job, RangeSet(spans)))  # claimed still, but no more here
        lost = RangeSet()
        for lo, hi, attempt, alone in ranges:
            if attempt > 1:
                work.attempts.join(lo, hi, attempt)
            for a, b in RangeSet([(lo, hi)]) & fresh:
                self.pool.make_ready(work, a, b, alone=alone)
                lost.update(work.without_inputs(a, b))
        if lost:  # it overlaps what is here in a way that no keeper of ours would cut it
            self.out += self.holding.give_back(peer, work.job, lost, "", lacks=True)
        return fresh.size - lost.size

    def _results_ack(self, peer: str, body: Any, now: float) -> None:
        for job, spans in self.holding.acknowledged(peer, body):
            self.parts.delivered(job, spans)
            self.tidy(peer, job)

    def _drop(self, peer: str, body: Any, now: float) -> None:
        job, spans = body
        gone = self.holding.drop(peer, job, spans)
        self.parts.delivered(job, spans)
        work = self.pool.works.get(job)
        if work is not None and work.keeper == peer:
            self.outcomes.take_out(job, gone)
            self.out += self.running.cancel(job, gone)
        self.tidy(peer, job)

    def hand_back(self) -> None:
        """Give everything back, for this node ends: its keepers need not wait until its claims lapse."""
        for peer, debt in self.holding.debts.items():
            if not debt.away:
                for job, held in debt.held.items():
                    spans = held - self.victim.taken(job)
                    self.out.append(e.Send(peer, m.P_RETURN, [job, spans.flat(), "", False]))

    def unfit(self, work: Work, lane: Lane, why: str) -> None:
        """Give back what was to call a function of others that this node cannot load."""
        keeper = str(work.keeper)
        spans = lane.ready.copy()
        for lo, hi in spans:
            self.pool.remove(work, lo, hi)
        self.out += self.holding.give_back(keeper, work.job, spans, why)
        lane.try_again()  # its keeper knows; should it give us more of it, something has changed
        self.tidy(keeper, work.job)

    def beat(self, now: float) -> None:
        """Say what is held and what runs."""
        self.out += self.holding.beat(self._running_of_others(), self.victim.out(), now)

    def claim(self, keeper: str) -> list[e.Send]:
        """Return what says to one keeper at once what is held."""
        return (
            self.holding.claim(keeper, self._running_of_others(), self.victim.out())
            if keeper in self.holding.debts
            else []
        )

    def _running_of_others(self) -> dict[bytes, list[int]]:
        foreign = [job for job, work in self.pool.works.items() if work.keeper is not None]
        return {job: self.running.first_of_each(job) for job in foreign}

    def forget(self, _now: float, peer: str) -> None:
        """A keeper stayed away too long."""
        for job in self.holding.forget(peer):
            self.parts.delivered(job, None)
            self.pool.close(job)
            self.out += self.running.cancel(job, None)

    def tidy(self, peer: str, job: bytes) -> None:
        """Let a job go of which nothing is held any more."""
        work = self.pool.works.get(job)
        if work is not None and work.keeper == peer and not self.holding.holds(peer, job):
            self.pool.close(job)
