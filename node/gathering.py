"""Gathering: what members send back of the work that they were given here: results, output, and tasks unstarted.

A result counts whoever sends it, if its sender was ever given the task, by this node or, as it says, by another member.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from p2pgrid.core import messages as m
from p2pgrid.core.chains import WORK
from p2pgrid.core.errors import PeerError
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import CRASH, ResultEntry
from p2pgrid.core.wire import unpack
from p2pgrid.node import events as e
from p2pgrid.node.kept import Kept, Source
from p2pgrid.node.moves import RERUN
from p2pgrid.node.naming import Naming
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parts import Handler, Parts, slots_of
from p2pgrid.node.pool import Work
from p2pgrid.node.rates import Rates

UNNAMED, UNNAMED_BYTES, UNNAMED_KEPT = 16, 4096, 256
"""Lots of results that wait for the word of whoever handed the tasks over: of one member and job; bytes; members."""


class Gathering(Handler):
    """The keeper's side of what comes back."""

    def __init__(self, parts: Parts, outcomes: Outcomes, rates: Rates) -> None:
        super().__init__(parts)
        self.outcomes = outcomes
        self.rates = rates
        self.arriving = Naming(parts, outcomes)
        self.looked: Callable[[float], None] = lambda _: None
        """Told when claims or results have shown what runs where."""
        self._unnamed: OrderedDict[tuple[str, bytes], list[ResultEntry]] = OrderedDict()
        """Results of tasks, by member and job, that nobody has said yet to have handed to it."""

    def named(self, peer: str, job: bytes, now: float) -> None:
        """Somebody has said that it handed tasks to a member: what that one did with them may have come before."""
        if came := self._unnamed.pop((peer, job), None):
            self.results(peer, came, now)

    def results(self, peer: str, body: Iterable[ResultEntry], now: float) -> None:
        """Take in what a member sends. Raises PeerError if nobody submitted such tasks."""
        if not self.parts.may(peer, WORK):
            self.parts.log_once(peer, "sends results, which its certificate does not allow")
            return
        self.leases.heard(peer, now)
        for entry in body:
            job, (incarnation, number), attempt, outcomes, _, _ = entry
            ack = e.Send(peer, m.P_RESULTS_ACK, [[job, incarnation, number]])
            kept = self.keeping.jobs.get(job)
            if kept is None:
                self.out.append(ack)
                continue
            if not kept.serving and not kept.ended:
                continue  # not yet, or not any more: they come again, here or to whoever serves it
            given = None if kept.ended else self.leases.given(peer, job)
            if any(kept.known.missing(lo, hi) for lo, hi, _, _ in outcomes):
                if given is not None:
                    raise PeerError("results of tasks that nobody submitted")
                if kept.ended:
                    self.out.append(ack)
                continue  # who granted them is gone, and their inputs had no second copy: they may still come
            spans = [*((lo, hi) for lo, hi, _, _ in outcomes), *((index, index + 1) for index, _ in entry.logs)]
            if given is not None and any(given.missing(lo, hi) for lo, hi in spans):
                if not RangeSet(spans) - self.leases.covered(job):
                    # From whom it took them has not said so yet; what is large or much comes again with its next beat.
                    waiting = self._unnamed.setdefault((peer, job), [])
                    if len(waiting) < UNNAMED and _size(entry) <= UNNAMED_BYTES and entry not in waiting:
                        waiting.append(entry)
                    if len(self._unnamed) > UNNAMED_KEPT:
                        self._unnamed.popitem(last=False)
                    continue
                self.parts.log_once(peer, "sends results of tasks that it was not given")
                self.out.append(ack)
                continue
            source = Source(peer, self.parts.name_of(peer), incarnation, number)
            if self.keeping.waits_for_disk(kept, source, len(outcomes)) or self.arriving.is_coming(kept, source):
                continue  # the first arrival will be acknowledged
            self._learn(peer, kept, entry, now)
            if attempt > 1:
                again = sum(hi - lo for lo, hi, _, _ in outcomes if kept.is_again(lo, attempt))
                self.parts.moves.count(job, peer, RERUN, again)
            parsed = [e.Outcome(*outcome) for outcome in outcomes]
            self.arriving.accept(kept, parsed, attempt, source, [ack])
        if not self.pool.waits:  # the end is near
            self.parts.later.append(lambda: self._goes_on(peer, now))

    def _goes_on(self, peer: str, now: float) -> None:
        """A member has ended something: it may have begun its last tasks, which may be copied some time."""
        self.leases.goes_on(peer, max(slots_of(self.peers.get(peer, {})), 1), now)
        self.looked(now)

    def _learn(self, peer: str, kept: Kept, entry: ResultEntry, now: float) -> None:
        """Keep the output of tasks that ran elsewhere, and note how long they took there."""
        fresh = [(lo, hi) for lo, hi, _, _ in entry.outcomes if kept.done.missing(lo, hi)]
        logs = [(i, text) for i, text in entry.logs if i in kept.known]
        told = {i for i, _ in logs}
        if entry.outcomes and not fresh:
            return  # told again
        for lo, _, shape, data in entry.outcomes:
            if shape == CRASH and lo not in kept.done and lo not in told:  # its last words are its log
                logs.append((lo, unpack(data)[2].encode() + b"\n"))
        effect = self.keeping.log(kept, logs)
        if effect is not None:
            self.out.append(effect)
        work = self.pool.works.get(kept.id)
        found = work.locate(fresh[0][0]) if work is not None and fresh else None
        # What it says is charged to an owner: no more than there was time for, or one word would outweigh all others.
        slots = max(slots_of(self.peers.get(peer, {})), 1)
        busy_s = min(entry.busy_s, slots * self.rates.since(peer, now))
        if work is None or found is None or busy_s <= 0:
            return
        lane = found[1]
        self.pool.served(work, busy_s * max(lane.cpus, 1))
        self.rates.learn(peer, lane.fn, busy_s / sum(hi - lo for lo, hi, _, _ in entry.outcomes))

    def back(
        self, kept: Kept, work: Work, peer: str, held: RangeSet, why: str, now: float, *, asked: bool = False
    ) -> None:  # fmt: skip
        """Have tasks that a member gave back run again; `asked`: perhaps because this node wanted to run them."""
        job = kept.id
        spans = ((held - kept.done) - kept.cancelled) - self.running.spans(job)  # said twice, it may run here by now
        if asked and any(request.peer == peer for request in self.thief.open.values()):
            self.parts.counts["stolen"] += spans.size
            self.parts.moves.stolen(job, self.config.node_id, peer, spans, now)
        for lo, hi in spans:
            found = work.locate(lo)
            if why and found is not None:
                found[1].unfit[peer] = why
            self.pool.make_ready(work, lo, hi)
        for task, tries in kept.record.tries.items():
            if task in spans and any(one.kind in "wn" for one in tries):
                self.pool.make_ready(work, task, task + 1, alone=True)
        for lane in list(work.lanes.values()):
            if lane.unfit and lane.ready:
                self.outcomes.unfit_everywhere(work, lane)


def _size(entry: ResultEntry) -> int:
    """Return how many bytes of results and output a lot has, about."""
    values = (data if isinstance(data, list) else [data] for _, _, _, data in entry.outcomes)
    texts = (text for _, text in entry.logs)
    return sum(len(one) for row in (*values, texts) for one in row if isinstance(one, bytes))
