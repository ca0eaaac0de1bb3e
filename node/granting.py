"""Granting: what a keeper hands to members that ask, how much at once, and what becomes of what they hold.

What they send back is taken in by `gathering`.

How much: *guided self-scheduling*. A member gets what it would like to have queued, by the rates its results showed,
or for a part of the time that the job will still take, up to a second, so that it seldom has to ask; but never more
than half its share of what is left: the last tasks leave one by one, so that all nodes end together.
What: ranges with the inputs and functions they need, except those that the member acknowledged before.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import TREES
from p2pgrid.core.chains import WORK
from p2pgrid.core.errors import WorkerCrashed
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.record import Try
from p2pgrid.core.shapes import Claimed
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.gathering import Gathering
from p2pgrid.node.kept import Kept
from p2pgrid.node.leases import SETTLED, Grant, Lapsed, Withdrawn
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parcels import Key, parcel
from p2pgrid.node.parts import Handler, Parts, slots_of
from p2pgrid.node.pool import RISKY, Lane, Taken, Work
from p2pgrid.node.rates import Rates

GRANT_BYTES = 4 << 20
"""Inputs in one grant, unless a single task or packed run has more."""
CALLS_MAX, ITEMS_MAX = 4096, 65_536
"""Tasks in one grant, per slot of the member."""
PEERS_KEPT = 1024
RECALL_S = 0.1
"""As much waits inside a worker only if it was taken for shorter than it is."""
AHEAD = 0.3
"""What part of the time that a job will still take a member is given work for, at most `ahead_s`: fewer requests."""
FAR_S = 0.02
"""A member whose round trip takes longer is given some more at once, while nobody knows how long tasks take."""
FAR_TASKS = 4
"""So many per slot, if that is no more than its part of them."""
HINTS = 8
"""Members named to one that asks in vain, because work waits there."""
NAMED_S = 1.0
"""Who was named to others within that long has less left for the next that asks."""
KNOWN_KEPT = 4096
"""Inputs and functions per member of which is remembered that it has them."""

CALLED_PER_TASK, CALLED_LEAST = 2, 2
"""So many idle members are told of tasks that wait: more than can come, for one of them may be busy by now, or gone."""

Life = tuple[str, int]
"""A member and its incarnation."""


class Granting(Handler):
    """The keeper's side of the conversations with members."""

    def __init__(self, parts: Parts, fitness: Fitness, outcomes: Outcomes) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self.outcomes = outcomes
        self.rates = Rates()
        self.gathering = Gathering(parts, outcomes, self.rates)
        self.spare: Callable[[str, tuple[int, int], int, float], bool] = lambda *_: False
        """Asked for something else that a member may do for which there is no task."""
        self.told: dict[str, None] = {}
        """Who knows that there is work here."""
        self._waiters: dict[str, None] = {}
        """Who asked last and was given nothing, the longest waiting first: they are idle."""
        self._called: dict[str, None] = {}
        """Those of them that were told that there is work, and have not asked since."""
        self._known: dict[str, tuple[int, OrderedDict[Key, None]]] = {}
        """What a member has, in which of its lives."""
        self._named_to: Counter[str] = Counter()
        """How often members were named as holders of work lately, and since when that is counted."""
        self._named_since_s = -math.inf
        parts.ran_at = self.rates.members

    def down(self, peer: str) -> None:
        """A member is not reachable."""
        for known in (self.told, self._waiters, self._called):
            known.pop(peer, None)

    def up(self, peer: str, now: float) -> None:
        """A member is reachable (again)."""
        self.down(peer)
        for rid, body in self.leases.up(peer, now):
            self._send(peer, rid, body)
        self.watch()
        if not self.pool.waits and self.backlogs(besides=peer) and self._of_use(peer):
            self.out.append(e.Send(peer, m.P_WORK, []))  # it asks, and is told who holds it

    def _of_use(self, peer: str) -> bool:
        """Whether a member may run some of what is kept here."""
        lanes = (lane for work in self.pool.works.values() if work.keeper is None for lane in work.lanes.values())
        return peer not in self.parts.suspects and any(self.fitness.fits(lane, peer) for lane in lanes)

    def offer(self, now: float) -> None:
        """Tell members that there is work, once each."""
        if len(self.told) >= len(self.peers) or not self.pool.waits or self.parts.stopping:
            return
        lanes = list(self.pool.candidates(foreign=False))
        for peer in self._wanted() if lanes or self._waiters else ():
            if peer in self.parts.suspects:
                continue
            # Who could run none of it is not asked to ask: it would be told again at once, for ever.
            if any(self.fitness.fits(lane, peer) for lane in lanes):
                self.told[peer] = None
                self.out.append(e.Send(peer, m.P_WORK, []))
        self.parts.timer_unless_set(("offer",), now + self.config.holding.ask_again_s)

    def told_again(self) -> None:
        """On the timer: whoever did not come is told once more."""
        self.told.clear()
        self._called.clear()

    def _wanted(self) -> list[str]:
        """Return whom to tell: all, or where there are more idle members than tasks, only a few of these.

        In a grid of a hundred idle members a program that submits one task at a time would else have all of them ask
        for each, and get nothing.
        """
        untold = self.peers.keys() - self.told.keys()
        idle = [peer for peer in self._waiters if peer in untold and peer not in self.parts.suspects]
        enough = CALLED_PER_TASK * self.pool.ready() + CALLED_LEAST
        if len(idle) + len(self._called) <= enough:
            return sorted(untold)
        called = idle[: max(enough - len(self._called), 0)]
        self._called.update(dict.fromkeys(called))
        return called

    def watch(self) -> None:
        """Look at the leases when the next of them may lapse."""
        due = self.leases.next_s()
        if due is not None and due < self.parts.timers.get(("lease",), float("inf")):
            self.parts.timer(("lease",), due)

    # ---- granting ----------------------------------------------------------------------------------------------------

    def want(self, peer: str, body: Any, now: float) -> None:
        rid, free, _, seconds = body
        self._called.pop(peer, None)
        self._waiters.pop(peer, None)
        if not self.parts.may(peer, WORK):
            self.parts.log_once(peer, "asks for work, which its certificate does not allow")
        before = self.leases.answered(peer, rid)
        if self.leases.is_large(peer, rid):
            self.out.append(e.Send(peer, m.P_COMING, [list(rid)]))
            return
        if before is not None and not isinstance(before, Withdrawn):
            if before is not SETTLED:
                self.out.append(e.Send(peer, m.P_GRANT, before))
            return
        shut = self.parts.stopping or before is not None or peer in self.parts.suspects
        waits = False
        for lane in () if shut else self.pool.candidates(foreign=False):
            safe = self._has_risky(peer, lane.work)
            if not self.fitness.fits(lane, peer):
                continue
            if not lane.offers(safe=safe):
                waits = True
            else:
                taken = self._fitting(lane, (peer, rid[0]), self._share(lane, peer, free, seconds), safe=safe)
                self.grant(peer, rid, taken, now, begins=free)
                self.parts.moves.granted(taken.work.job, peer, taken.spans, taken.count - free, now)
                return
        if not shut:
            if self.spare(peer, rid, free, now):
                return
            self.running.look(now)
            self.out += self.running.free_up(
                RECALL_S, lambda lane: lane.work.keeper is None and self.fitness.fits(lane, peer)
            )
        if not waits:  # else it is told again after a while
            self.told.pop(peer, None)
        if not shut:
            self._waiters[peer] = None
        hints = [] if shut else self._hints(peer, now)
        self.out.append(e.Send(peer, m.P_NONE, [list(rid), [list(one) for one in hints]] if hints else [list(rid)]))

    def _hints(self, peer: str, now: float) -> list[tuple[str, float]]:
        """Return at whom the most work waits; those that ask at the same time are sent to different ones."""
        if now - self._named_since_s > NAMED_S:
            self._named_since_s = now
            self._named_to.clear()
        found = sorted(self.backlogs(besides=peer).items(), key=lambda one: -one[1] / (1 + self._named_to[one[0]]))
        self._named_to.update(one for one, _ in found[:HINTS])
        return found[:HINTS]

    def backlogs(self, besides: str = "") -> dict[str, float]:
        """Return by member how many seconds of our work wait there, as far as its claims and results show."""
        out = {}
        for peer, holder in self.leases.holders.items():
            held = sum([covered.size for covered in holder.covered.values()])
            if held <= 1 or peer == besides or peer not in self.peers or peer in self.parts.suspects:
                continue
            slots = max(slots_of(self.peers[peer]), 1)
            if held > slots:  # what was granted just now may not be claimed as running yet
                waits_s = sum(covered.size * self._seconds(peer, job) for job, covered in holder.covered.items())
                out[peer] = waits_s * (held - slots) / held / slots
        return out

    def _seconds(self, peer: str, job: bytes) -> float:
        """Return how long a task of a job takes a member, about."""
        work = self.pool.works.get(job)
        lane = next(iter(work.lanes.values()), None) if work is not None else None
        known = None if lane is None else self.rates.get(peer, lane.fn) or self.running.seconds(lane.fn)
        return 1.0 if known is None else known

    def grant(self, peer: str, rid: tuple[int, int], taken: Taken, now: float, *, begins: int = 0) -> None:
        """Hand tasks to a member, which has free slots for so many of them."""
        body, brings, size = self._body((peer, rid[0]), rid, taken)
        self.leases.grant(peer, rid, taken.work.job, taken.spans, body, now, size=size, brings=brings)
        if begins:
            self.leases.goes_on(peer, max(slots_of(self.peers.get(peer, {})), 1), now)
        self.rates.began(peer, now)
        self._send(peer, rid, body)
        self.parts.tell_shown(peer, taken.work.job)
        self.watch()

    def _send(self, peer: str, rid: tuple[int, int], body: Any) -> None:
        self.out.append(e.Send(peer, m.P_GRANT, body))
        if self.leases.is_large(peer, rid):
            self.out.append(e.Send(peer, m.P_COMING, [list(rid)]))

    def _share(self, lane: Lane, peer: str, free: int, seconds: float) -> int:
        """Return how many tasks of a lane a member gets that has `free` slots and would queue `seconds` of work."""
        slots = max(slots_of(self.peers.get(peer, {})), 1)
        everywhere = max(self.parts.grid_slots(), slots)
        left = lane.ready.size
        cpus = max(lane.cpus, 1)
        free = min(free, slots)
        theirs = self.rates.get(peer, lane.fn)
        each = theirs or self.running.seconds(lane.fn)
        most = slots * (ITEMS_MAX if lane.packed else CALLS_MAX)
        if theirs is not None:
            seconds = max(seconds, slots * min(self.config.ahead_s, AHEAD * left * theirs * cpus / everywhere))
        if each is not None:
            wanted = min(seconds / (max(each, 1e-7) * cpus), most)
        else:
            wanted = free / cpus * (FAR_TASKS if (self.parts.round_trip_s(peer) or 0.0) > FAR_S else 1)
        guided = math.ceil(left * slots / (self.config.guided * everywhere))
        begun = min(int(free / cpus), -(-left * slots // everywhere))
        return max(1, begun, min(int(wanted), guided))

    def _has_risky(self, peer: str, work: Work) -> bool:
        """Whether a member holds a task of this work that is suspected of bringing nodes down."""
        return bool(work.risky) and bool(self.leases.held(peer, work.job) & work.risky)

    def _fitting(self, lane: Lane, life: Life, count: int, *, safe: bool) -> Taken:
        """Take tasks whose inputs do not exceed what one grant may carry; at least one."""
        taken = self.pool.take(lane, count, safe=safe)
        spans: list[tuple[int, int]] = []
        room = GRANT_BYTES
        for run, _, lo, hi in taken.pieces():
            end = hi
            if run.packed:
                room -= 0 if self._has(life, (lane.work.job, (run.lo, run.hi))) else len(run.data)
            else:
                for index, size in enumerate(run.sizes(lo, hi), lo):
                    room -= size
                    if room < 0:
                        end = index
                        break
            if not spans and end == lo:
                end = lo + 1
            if (room < 0 and spans and run.packed) or end == lo:
                break
            spans.append((lo, end))
            if end < hi or room < 0:
                break
        kept = RangeSet(spans)
        rest = RangeSet(taken.spans) - kept
        if not rest:
            return taken
        self.pool.put_back(taken, list(rest))
        return Taken(taken.work, taken.lane, tuple(kept), taken.attempt, taken.alone)

    def _body(self, life: Life, rid: tuple[int, int], taken: Taken) -> tuple[list[Any], list[Key], int]:
        """Return ranges with all a holder needs to run them and does not have, what that is, and how large."""
        body, brings, size = parcel([taken], lambda key: self._has(life, key))
        return [list(rid), *body], brings, size

    def _has(self, life: Life, key: Key) -> bool:
        incarnation, known = self._known.get(life[0], (0, ()))
        return incarnation == life[1] and key in known

    def acknowledged(self, peer: str, body: Any, now: float) -> None:
        rid, seq = body
        grant = self.leases.acknowledged(peer, rid, seq, now)
        if isinstance(grant, Withdrawn):
            self._say_over(peer, grant.job, None)
        elif grant is not None:
            self._remember(peer, rid[0], grant)
            self._say_over(peer, grant.job, RangeSet(grant.spans))

    def _remember(self, peer: str, incarnation: int, grant: Grant) -> None:
        life, known = self._known.get(peer, (0, OrderedDict()))
        if life != incarnation:
            known = OrderedDict()
        for key in grant.brings:
            known[key] = None
        while len(known) > KNOWN_KEPT:
            known.popitem(last=False)
        self._known.pop(peer, None)
        self._known[peer] = (incarnation, known)
        if len(self._known) > PEERS_KEPT:
            del self._known[next(iter(self._known))]

    def _say_over(self, peer: str, job: bytes, held: RangeSet | None) -> bool:
        """Tell a holder what of this it need not run; return whether its job is over."""
        kept = self.keeping.jobs.get(job)
        if kept is None or kept.ended:
            self.out.append(e.Send(peer, m.P_DROP, [job, None]))
            return True
        over = RangeSet() if held is None else (held & kept.done) | (held & kept.cancelled)
        if over:
            # What is done elsewhere or cancelled need not run there; what it did itself it hears of by its acks.
            self.out.append(e.Send(peer, m.P_DROP, [job, over.flat()]))
        return False

    # ---- claims ------------------------------------------------------------------------------------------------------

    def claim(self, peer: str, body: Any, now: float) -> None:
        incarnation, seq, interval, claims, part, parts = body
        if not self.parts.may(peer, WORK):
            self.parts.log_once(peer, "claims work, which its certificate does not allow")
            return
        whole = self.leases.whole(peer, (incarnation, seq), part, parts, claims)
        if whole is None:
            return
        named = dict(whole)
        for job in list(named):
            if self._say_over(peer, job, named[job].held):
                del named[job]
                continue
            if not self.keeping.jobs[job].answers:
                del named[job]  # it crossed the word that another serves it; there it claims again
                continue
            named[job] = self._of_what_was_given(peer, job, named[job])
            for thief, spans in named[job].handed.items():
                self.leases.entrust(thief, job, spans)
                self.parts.moves.handed(job, peer, thief, spans)
        before = {job: self.leases.held(peer, job) for job in named}
        dropped = self.leases.claim(peer, (incarnation, seq), interval, named, now)
        for job, had in before.items():
            self.parts.moves.claimed(job, peer, self.leases.held(peer, job) - had, now)
        self.watch()
        if dropped is None:
            return
        for lapsed in dropped:
            self._uncover(lapsed, now)
        for job, said in named.items():
            self.parts.tell_shown(peer, job)
            for thief, spans in said.handed.items():
                self._named(peer, thief, job, spans, now)
            work = self.pool.works.get(job)
            if work is not None and work.keeper is None:
                # Claimed by a holder that we took for dead: it is covered again, unless it is old.
                for lo, hi in said.held & self.leases.held(peer, job):
                    self.pool.remove(work, lo, hi)
        self.gathering.looked(now)

    def _named(self, victim: str, thief: str, job: bytes, handed: RangeSet, now: float) -> None:
        """A member says what it handed to another; what that one did with it may have been heard of before."""
        back, why = self.leases.early(thief, job, handed, now)
        kept, work = self.keeping.jobs.get(job), self.pool.works.get(job)
        if back and kept is not None and work is not None:
            self.gathering.back(kept, work, thief, self.leases.returned(victim, job, back), why, now)
        self.gathering.named(thief, job, now)

    def _of_what_was_given(self, peer: str, job: bytes, claim: Claimed) -> Claimed:
        """Return as much of a claim as its member was ever given: or it could keep a job from everybody.

        What it took from another member counts as given once that one has said so, which may be a moment later. What is
        done it names if our word of that crossed its claim.
        """
        held, running, handed = claim
        given = self.leases.given(peer, job)
        if given is not None:
            more = held - given
            if more and more - self.leases.covered(job):
                self.parts.log_once(peer, "claims tasks that it was not given")
            held, running = held & given, running & given
            handed = {thief: spans & given for thief, spans in handed.items()}
        if over := held & self.keeping.jobs[job].done:
            held, running = held - over, running - over
        return Claimed(held, running, handed)

    def rate(self, peer: str, lane: Lane) -> float | None:
        """Return how long a task of a lane takes a member, if it has delivered any."""
        return self.rates.get(peer, lane.fn)

    def _uncover(self, lapsed: Lapsed, now: float) -> None:
        """Nobody holds these tasks any more: they run again."""
        kept = self.keeping.jobs.get(lapsed.job)
        if kept is None or kept.ended or not kept.serving:
            return
        others = self.leases.covered(lapsed.job) | self.running.spans(lapsed.job)
        spans = ((lapsed.spans - kept.done) - kept.cancelled) - others
        if not lapsed.vanished:
            for lane in self.outcomes.work_of(kept).lanes.values():
                spans = spans - lane.ready  # its thief gave it back before
        if not spans:
            return
        charged = lapsed.running & spans
        if not charged and spans.size == 1:
            charged = spans
        if lapsed.vanished:
            for lo, hi in charged:
                for task in range(lo, hi):
                    self.charge(kept, task, lapsed.holder)
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
        self.watch()

    def charge(self, kept: Kept, task: int, holder: str) -> None:
        """A node vanished while it ran this task."""
        one = Try("n", holder, self.keeping.incarnation, self.keeping.next_number())
        self.out.append(self.keeping.tried(kept, task, one))
        crashes = kept.record.crashes(task, "n")
        if crashes >= RISKY:
            self.outcomes.work_of(kept).risky.add(task, task + 1)
        if crashes >= self.config.node_crashes_max:
            error = WorkerCrashed(f"{kept.name}/{task}: {self.config.node_crashes_max} nodes vanished while running it")
            self.outcomes.fail(kept, [(task, task + 1)], error)

    def returned(self, peer: str, body: Any, now: float) -> None:
        job, given, why, lacks = body
        if lacks and peer in self._known:
            known = self._known[peer][1]
            for key in [key for key in known if key[0] in (job, TREES)]:
                del known[key]
        kept, work = self.keeping.jobs.get(job), self.pool.works.get(job)
        if kept is None or kept.ended or work is None or work.keeper is not None:
            return
        held = self.leases.returned(peer, job, given)
        if given - held:
            self.leases.came_early(peer, job, given - held, why, now)
        self.gathering.back(kept, work, peer, held, why, now, asked=not (why or lacks))
