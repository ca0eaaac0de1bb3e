"""Doubling: the last tasks of a job that run at slow members run a second time where slots are idle (LATE, adapted).

Only when nothing waits anywhere: a task that has run for half as long again as is usual, at a member that is slower
than others, suspected or has never delivered; or, wherever it is, for many times as long. At most one slot in ten is
given to copies, and no task has more than two. The first result counts, whoever had the other copy is told to stop it.
(ALGORITHMS §3.4, end.) A task that took a worker or a node along is never copied.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from p2pgrid.core import messages as m
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.granting import Granting
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Lane, Taken

TIMER = "double"
AGE = 1.5
"""Times the usual duration that a task may take at a slow member."""
SLOWER = 1.25
"""Times the usual duration that tasks take at a member that is called slow."""
UNHEARD_AGE = 3.0
"""The same for one that has not delivered any."""
STUCK_S, STUCK_AGE = 600.0, 20.0
"""A task at a member that is not slow may be stuck: seconds, and times the usual duration, whichever is more."""
LOOK_S = 0.1
"""At most so often it is looked whether a task may be copied before the one that is waited for."""
SHARE = 10
"""One of so many slots in the grid may be given to copies."""


class Slow(NamedTuple):
    """A task that may be copied, from a time on."""

    at_s: float
    expected_s: float
    """How long it takes where it is, if that is known; else a long time."""
    lane: Lane
    task: int
    holder: str


class Doubling(Handler):
    """The keeper's last resort against slow members."""

    def __init__(self, parts: Parts, fitness: Fitness, granting: Granting) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self.granting = granting
        self._looked_s = -math.inf
        self._waits: dict[str, None] = {}
        """Members with free slots that asked in vain."""
        granting.spare = self.give
        granting.gathering.looked = self.look

    def gone(self, peer: str) -> None:
        """A member is not connected any more."""
        self._waits.pop(peer, None)

    def give(self, peer: str, rid: tuple[int, int], free: int, now: float) -> bool:
        """Grant a copy to a member with free slots; False: there is none to be made now."""
        if not free or not self.config.speculate:
            return False
        for one in self._slow(now):
            if one.holder != peer and self.fitness.fits(one.lane, peer) and not self._is_slow(one.lane, peer):
                self._waits.pop(peer, None)
                work = one.lane.work
                attempt = work.attempts.get(one.task) or 1
                taken = Taken(work, one.lane, ((one.task, one.task + 1),), attempt, alone=False)
                self.granting.grant(peer, rid, taken, now)
                self.parts.doubled.setdefault(work.job, RangeSet()).add(one.task, one.task + 1)
                self.parts.moves.copied(work.job, peer, one.task, one.holder, now)
                return True
        self._waits[peer] = None
        self.look(now)
        return False

    def look(self, now: float) -> None:
        """Be woken when a task may be copied, if anybody is idle."""
        if not self.config.speculate or self.pool.waits or not (self._waits or self.running.free_slots()):
            return
        if (TIMER,) in self.parts.timers and now - self._looked_s < LOOK_S:
            return  # it walks over all that runs
        self._looked_s = now
        due = min((one.at_s for one in self._candidates()), default=None)
        if due is not None and due < self.parts.timers.get((TIMER,), math.inf):
            self.parts.timer((TIMER,), max(due, now))

    def due(self, now: float) -> None:
        """On the timer: begin copies here, and let idle members ask."""
        if self.pool.waits or self.parts.stopping or self.parts.refusing:
            return
        for one in self._slow(now):
            if self.running.free_slots() and self.fitness.eligible(one.lane) and not self._am_slow(one):
                work = one.lane.work
                self.parts.doubled.setdefault(work.job, RangeSet()).add(one.task, one.task + 1)
                self.parts.moves.copied(work.job, self.config.node_id, one.task, one.holder, now)
                self.pool.make_ready(work, one.task, one.task + 1)
                self.out += self.running.feed(self.pool, self.fitness.eligible, now)
                continue
            able = [peer for peer in self._waits if peer != one.holder and self.fitness.fits(one.lane, peer)]
            known = self._known(one.lane) if able else []
            able = [peer for peer in able if not self._is_slow(one.lane, peer, known)]
            if able:  # the fastest
                peer = min(able, key=lambda peer: self.granting.rate(peer, one.lane) or math.inf)
                del self._waits[peer]
                self.out.append(e.Send(peer, m.P_WORK, []))

    def _slow(self, now: float) -> list[Slow]:
        """Return the tasks to copy now, those that would end last in front, as many as there may be copies."""
        found = [one for one in self._candidates() if one.at_s <= now]
        if not found:
            return found
        copies = sum(self._copies(job) for job in list(self.parts.doubled))
        room = max(1, self.parts.grid_slots() // SHARE) - copies
        return sorted(found, key=lambda one: -one.expected_s)[: max(room, 0)]

    def _copies(self, job: bytes) -> int:
        """Return how many tasks of a job have a copy that still runs."""
        kept = self.keeping.jobs.get(job)
        if kept is None or kept.ended:
            del self.parts.doubled[job]
            return 0
        return (self.parts.doubled[job] - kept.done).size

    def _candidates(self) -> Iterator[Slow]:
        """Yield what runs at members and may be copied, now or later."""
        at_others: dict[bytes, list[float]] = {}
        for work in self.pool.works.values():
            kept = self.keeping.jobs.get(work.job)
            if work.keeper is not None or kept is None or kept.ended:
                continue
            here, doubled = self.running.spans(work.job), self.parts.doubled.get(work.job, ())
            for holder, index, since_s in self.leases.began(work.job):
                found = work.locate(index)
                if found is None or index in kept.done or index in doubled or index in here:
                    continue
                if any(one.kind in "wn" for one in kept.record.tries.get(index, ())):
                    continue
                lane = found[1]
                known = at_others.get(lane.fn)
                if known is None:
                    known = at_others[lane.fn] = self._known(lane)
                theirs_s = self.granting.rate(holder, lane)
                usual_s = _middle(known, theirs_s if holder in self.peers else None)
                if usual_s is None:
                    continue
                if theirs_s is None:
                    wait_s = UNHEARD_AGE * usual_s
                elif theirs_s > SLOWER * usual_s or holder in self.parts.suspects:
                    wait_s = AGE * usual_s
                else:
                    wait_s = max(STUCK_S, STUCK_AGE * usual_s)
                yield Slow(since_s + wait_s, STUCK_S if theirs_s is None else theirs_s, lane, index, holder)

    def _is_slow(self, lane: Lane, peer: str, known: Sequence[float] | None = None) -> bool:
        """Whether a connected member is known to be slower than others at a lane; `known`: how long it takes all."""
        theirs_s = self.granting.rate(peer, lane)
        if theirs_s is None:
            return False
        usual_s = _middle(self._known(lane) if known is None else known, theirs_s)
        return usual_s is not None and theirs_s > SLOWER * usual_s

    def _am_slow(self, one: Slow) -> bool:
        own_s = self.running.seconds(one.lane.fn)
        theirs_s = self.granting.rate(one.holder, one.lane) if one.holder in self.peers else None
        usual_s = _middle(self._known(one.lane), theirs_s)
        return own_s is not None and usual_s is not None and own_s > SLOWER * usual_s

    def _known(self, lane: Lane) -> list[float]:
        """Return how long tasks of a lane take the connected members and this node, in order."""
        known = [seconds for peer, seconds in self.granting.rates.of(lane.fn).items() if peer in self.peers]
        own_s = self.running.seconds(lane.fn)
        if own_s is not None:
            known.append(own_s)
        known.sort()
        return known


def _middle(known: Sequence[float], but: float | None) -> float | None:
    """Return the median of sorted numbers, one of them left out; None: there are no others."""
    many = len(known) if but is None else len(known) - 1
    if not many:
        return None
    skip = len(known) if but is None else bisect_left(known, but)
    above, below = many // 2, (many - 1) // 2
    return (known[below + (below >= skip)] + known[above + (above >= skip)]) / 2
