"""Leases: which members hold which ranges of the jobs kept here, and when that stops being true.

A *grant* hands ranges to a holder; until it is acknowledged it is sent again, three times at most, then taken back. A
*large* one takes its time on a bulk stream: it is sent again only over a new connection, and as long as its holder is
heard of in any way it is waited for, by its size.
From then on only the holder's own *claims*, renewed by its heartbeat, keep its ranges covered: a claim that stops
advancing for four beats lapses, or one second after the connection of its holder was reset. Whatever was covered and is
neither done nor claimed any more is uncovered and runs again; running something twice is always safe, so every timeout
may be short (ALGORITHMS §3.6, DESIGN §7).

Rule: this file knows ranges and members, not what tasks are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.shapes import Claimed

Job = bytes
Rid = tuple[int, int]  # incarnation of the asker, its number
Claims = Mapping[Job, Claimed]

NOTHING = Claimed(RangeSet(), RangeSet(), {})
RUNNING_KEPT = 1024
"""Tasks that a member may name as running, for whose ages are remembered."""
EARLY_S, EARLY_KEPT = 3.0, 256
"""So long, in seconds, and so many at once, is remembered what came back before it was known to be there."""
_NONE: Mapping[int, float] = {}
SETTLED = object()
"""In place of the answer to a request whose asker has acknowledged it: nothing is said again."""


class Withdrawn(NamedTuple):
    """In place of the answer to a request whose grant may still arrive: its job is over meanwhile."""

    job: Job


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """Times in seconds."""

    beats_missed: int = 4
    after_reset_s: float = 1.0
    grant_again_s: float = 1.0
    grant_sends: int = 3
    rids_kept: int = 64
    interval_max_s: float = 60.0
    large_bytes: int = 48 << 10
    """A grant above it may leave on a bulk stream, long after frames that were sent later."""
    large_wait_s: float = 10.0
    large_rate: float = 50_000.0
    """Bytes per second that a link must carry for a large grant to arrive in time."""

    def patience_s(self, size: int) -> float:
        """Return how long something of so many bytes may be under way without an answer."""
        return self.large_wait_s + size / self.large_rate


@dataclass(slots=True)
class Grant:
    """Ranges handed over and not yet acknowledged."""

    job: Job
    spans: list[Span]
    body: Any
    sends: int
    due_s: float
    size: int = 0
    """In bytes, if it is large, else 0."""
    brings: tuple[Any, ...] = ()
    """What its holder has once it acknowledged it."""


@dataclass(slots=True)
class Holder:
    """A member that holds ranges of ours."""

    heard_s: float
    """When its claims advanced last."""
    alive_s: float = 0.0
    """When any frame came from it last."""
    interval_s: float = 1.0
    version: tuple[int, int] = (0, 0)
    """Incarnation and seq of the newest claim."""
    needs: tuple[int, int] = (0, 0)
    """Only a claim at least this new can uncover what was granted since."""
    lapses_s: float | None = None
    """Set when the connection was reset."""
    covered: dict[Job, RangeSet] = field(default_factory=dict)
    running: dict[Job, RangeSet] = field(default_factory=dict)
    began: dict[Job, dict[int, float]] = field(default_factory=dict)
    """Since when it says that it runs a task, or must."""
    handed: dict[Job, RangeSet] = field(default_factory=dict)
    """What it says to have handed to others; covered by it until they claim it."""
    grants: dict[Rid, Grant] = field(default_factory=dict)
    answered: OrderedDict[Rid, Any] = field(default_factory=OrderedDict)
    parts: tuple[tuple[int, int], dict[int, Claims]] = field(default_factory=lambda: ((0, 0), {}))
    """Version and parts of a claim that has not come as a whole yet."""

    def let_go(self, job: Job) -> None:
        """It holds nothing of a job any more."""
        for known in (self.covered, self.running, self.began, self.handed):
            known.pop(job, None)

    @property
    def holds(self) -> bool:
        """Whether anything is covered by this member."""
        return bool(self.grants) or any(self.covered.values())

    def arriving(self, job: Job) -> RangeSet:
        """Return the tasks of large grants that are under way to it."""
        return RangeSet(span for one in self.grants.values() if one.size and one.job == job for span in one.spans)

    @property
    def awaits(self) -> bool:
        """Whether a large grant is under way to it."""
        return any(grant.size for grant in self.grants.values())

    @property
    def claims(self) -> bool:
        """Whether it covers anything besides large grants that are under way."""
        return not self.awaits or any(covered - self.arriving(job) for job, covered in self.covered.items())


class Lapsed(NamedTuple):
    """Ranges that nobody holds any more; `running` are those its holder was running when it vanished, if it did."""

    holder: str
    job: Job
    spans: RangeSet
    running: RangeSet
    vanished: bool


class Leases:
    """Everything that members hold of the jobs kept here."""

    def __init__(self, options: LeaseOptions) -> None:
        self.options = options
        self.holders: dict[str, Holder] = {}
        self.inherited: set[Job] = set()
        """Jobs of a former life: who was given what of them then is known to their holders only."""
        self._entrusted: set[str] = set()
        self._given: dict[Job, dict[str, RangeSet]] = {}
        """What members were ever given of a job, until it is over; a late claim or result of it is as good as any."""

        self._early: OrderedDict[tuple[str, Job], tuple[RangeSet, str, float]] = OrderedDict()
        """What members gave back that nobody had said yet to have handed to them; with why, and when."""

    def _holder(self, peer: str, now: float) -> Holder:
        holder = self.holders.get(peer)
        if holder is None:
            holder = self.holders[peer] = Holder(now)
        return holder

    # ---- granting ---------------------------------------------------------------------------------------------------

    def answered(self, peer: str, rid: Rid) -> Any:
        """Return the answer that this request got before, or None: a request that arrives twice gets one answer."""
        holder = self.holders.get(peer)
        return None if holder is None else holder.answered.get(rid)

    def grant(
        self, peer: str, rid: Rid, job: Job, spans: Sequence[Span], body: Any, now: float, *, size: int = 0,
        brings: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        """Cover ranges by a member that was just sent them, in a frame of `size` bytes."""
        holder = self._holder(peer, now)
        if not holder.holds:
            holder.heard_s = now
            holder.lapses_s = None
        holder.alive_s = now
        holder.covered.setdefault(job, RangeSet()).update(spans)
        self._entrusted.add(peer)
        self._given.setdefault(job, {}).setdefault(peer, RangeSet()).update(spans)
        large = size if size > self.options.large_bytes else 0
        wait_s = self.options.patience_s(large) if large else self.options.grant_again_s
        holder.grants[rid] = Grant(job, list(spans), body, 1, now + wait_s, large, tuple(brings))
        holder.answered[rid] = body
        if len(holder.answered) > self.options.rids_kept:
            holder.answered.popitem(last=False)

    def acknowledged(self, peer: str, rid: Rid, seq: int, now: float) -> Grant | Withdrawn | None:
        """The member has the ranges; its claims from `seq` on name them. Returns what it has, if that was awaited."""
        holder = self.holders.get(peer)
        if holder is None:
            return None
        grant = holder.grants.pop(rid, None)
        if grant is None:
            before = holder.answered.get(rid)
            return before if isinstance(before, Withdrawn) else None
        holder.answered[rid] = SETTLED  # the body may be large, and is needed no more
        holder.needs = max(holder.needs, (rid[0], seq))
        holder.heard_s = now
        return grant

    def is_large(self, peer: str, rid: Rid) -> bool:
        """Whether the grant for this request may still be under way on a bulk stream."""
        holder = self.holders.get(peer)
        return holder is not None and rid in holder.grants and holder.grants[rid].size > 0

    def due(self, now: float) -> tuple[list[tuple[str, Any]], list[Lapsed]]:
        """Return the grants to send again, and those given up."""
        again: list[tuple[str, Any]] = []
        lost: list[Lapsed] = []
        for peer, holder in self.holders.items():
            for rid, grant in list(holder.grants.items()):
                if grant.due_s > now:
                    continue
                if grant.sends < self.options.grant_sends and not grant.size:
                    grant.sends += 1
                    grant.due_s = now + self.options.grant_again_s
                    again.append((peer, grant.body))
                    continue
                del holder.grants[rid]
                holder.answered.pop(rid, None)
                spans = RangeSet(grant.spans) & holder.covered.get(grant.job, RangeSet())
                if spans:
                    holder.covered[grant.job].difference_update(spans)
                    lost.append(Lapsed(peer, grant.job, spans, RangeSet(), vanished=False))
        return again, lost

    def given(self, peer: str, job: Job) -> RangeSet | None:
        """Return which tasks of a job a member was ever given, or None if that is not known here."""
        return None if job in self.inherited else self._given.get(job, {}).get(peer, RangeSet())

    def was_given(self, peer: str) -> bool:
        """Whether a member was ever given anything: also in a former life, of which nobody here knows whom."""
        return bool(self.inherited) or peer in self._entrusted

    def entrust(self, peer: str, job: Job, spans: RangeSet) -> None:
        """A member was given these by whoever had them."""
        self._entrusted.add(peer)
        self._given.setdefault(job, {}).setdefault(peer, RangeSet()).update(spans)

    # ---- claims -----------------------------------------------------------------------------------------------------

    def whole(self, peer: str, version: tuple[int, int], part: int, parts: int, claims: Claims) -> Claims | None:
        """Return a claim once all its parts are here, else None: half of one would uncover the other half."""
        if parts == 1:
            return claims
        holder = self.holders.get(peer)
        if holder is None or version <= holder.version or version < holder.parts[0]:
            return None
        if version > holder.parts[0]:
            holder.parts = (version, {})
        have = holder.parts[1]
        have[part] = claims
        if len(have) < parts:
            return None
        holder.parts = ((0, 0), {})
        out: dict[Job, Claimed] = {}
        for one in have.values():
            for job, said in one.items():
                before = out.get(job, NOTHING)
                handed = dict(before.handed)
                for thief, spans in said.handed.items():
                    handed[thief] = handed.get(thief, RangeSet()) | spans
                out[job] = Claimed(before.held | said.held, before.running | said.running, handed)
        return out

    def claim(
        self, peer: str, version: tuple[int, int], interval_s: float, claims: Claims, now: float
    ) -> list[Lapsed] | None:
        """Take in a heartbeat; return what it no longer covers (given back, or a former life's); None: it is old."""
        holder = self._holder(peer, now)
        if version <= holder.version:
            return None
        reborn = version[0] > holder.version[0] > 0
        holder.version = version
        holder.heard_s = now
        holder.interval_s = min(max(interval_s, 0.0), self.options.interval_max_s)
        holder.lapses_s = None
        if reborn:
            holder.grants = {rid: grant for rid, grant in holder.grants.items() if rid[0] >= version[0]}
        elif version < holder.needs:
            return []
        dropped = []
        for job in sorted(holder.covered.keys() | claims.keys()):
            held, running, handed = claims.get(job, NOTHING)
            granted = RangeSet(span for grant in holder.grants.values() if grant.job == job for span in grant.spans)
            before = holder.covered.get(job, RangeSet())
            after = held | (granted & before)
            holder.handed.pop(job, None)
            if handed:  # covered by it until somebody else claims them
                away = RangeSet(span for spans in handed.values() for span in spans)
                after = after | ((away & before) - self.covered(job, besides=peer))
                holder.handed[job] = away
            gone = before - after
            if gone:
                ran = holder.running.get(job, RangeSet()) if reborn else RangeSet()
                dropped.append(Lapsed(peer, job, gone, ran, vanished=reborn))
            holder.covered[job] = after
            holder.running[job] = running
            before_s = holder.began.get(job, {})
            named = (task for lo, hi in running for task in range(lo, hi))
            holder.began[job] = {task: before_s.get(task, now) for task in islice(named, RUNNING_KEPT)}
            if not after:
                holder.let_go(job)
        return dropped

    def heard(self, peer: str, now: float) -> None:
        """Results renew what their member holds, as a claim does."""
        if peer in self.holders:
            self.holders[peer].heard_s = now

    def goes_on(self, peer: str, slots: int, now: float) -> None:
        """A member has ended something: if it holds no more than it has slots, it runs all of that by now."""
        holder = self.holders.get(peer)
        if holder is None or sum(covered.size for covered in holder.covered.values()) > min(slots, RUNNING_KEPT):
            return
        for job, covered in holder.covered.items():
            began = holder.began.setdefault(job, {})
            for lo, hi in covered:
                for task in range(lo, hi):
                    began.setdefault(task, now)

    def alive(self, peer: str, now: float) -> None:
        """Any frame shows that a member lives: what is under way to it may arrive. No claim is renewed by that."""
        if peer in self.holders:
            self.holders[peer].alive_s = now

    def up(self, peer: str, now: float) -> list[tuple[Rid, Any]]:
        """The member is reachable (again); return the grants to send again, for what was under way is lost."""
        holder = self.holders.get(peer)
        if holder is None:
            return []
        holder.alive_s = now
        if holder.lapses_s is not None:  # it may have been a moment: its next claim comes at once, if it still has one
            holder.lapses_s = now + self.options.after_reset_s
        for grant in holder.grants.values():
            grant.due_s = now + (self.options.patience_s(grant.size) if grant.size else self.options.grant_again_s)
        return [(rid, grant.body) for rid, grant in holder.grants.items()]

    def returned(self, peer: str, job: Job, spans: RangeSet) -> RangeSet:
        """The member gave ranges back; return those that were covered by it."""
        holder = self.holders.get(peer)
        if holder is None or job not in holder.covered:
            return RangeSet()
        given = spans & holder.covered[job]
        holder.covered[job].difference_update(given)
        return given

    def came_early(self, peer: str, job: Job, spans: RangeSet, why: str, now: float) -> None:
        """The member gave back what it is not known to have: it took that from another, whose word is still to come."""
        spans = spans & self.covered(job, besides=peer)
        if spans:
            self._early[peer, job] = (spans, why, now)
            if len(self._early) > EARLY_KEPT:
                self._early.popitem(last=False)

    def early(self, thief: str, job: Job, handed: RangeSet, now: float) -> tuple[RangeSet, str]:
        """Return what of this, handed to a thief as is said now, it has given back already, and why it did."""
        spans, why, since_s = self._early.get((thief, job), (RangeSet(), "", now))
        if not spans & handed:
            return RangeSet(), ""
        del self._early[thief, job]
        return spans & handed if now - since_s <= EARLY_S else RangeSet(), why

    def finished(self, job: Job, lo: int, hi: int) -> list[str]:
        """These tasks need no cover any more; return who covered some."""
        return [
            peer
            for peer, holder in self.holders.items()
            if job in holder.covered and holder.covered[job].discard(lo, hi)
        ]

    def forget(self, job: Job) -> list[str]:
        """Drop all cover of a job; return who held some of it."""
        self._given.pop(job, None)
        self.inherited.discard(job)
        told = []
        for peer, holder in self.holders.items():
            if holder.covered.pop(job, None):
                told.append(peer)
            holder.let_go(job)
            for rid in [rid for rid, grant in holder.grants.items() if grant.job == job]:
                del holder.grants[rid]
                holder.answered[rid] = Withdrawn(job)
        return told

    def running(self, job: Job) -> Iterator[tuple[str, RangeSet]]:
        """Yield who runs which tasks of a job, as of their newest claims."""
        for peer, holder in self.holders.items():
            if holder.running.get(job):
                yield peer, holder.running[job]

    def began(self, job: Job) -> Iterator[tuple[str, int, float]]:
        """Yield who runs which tasks of a job that nobody else has, and since when."""
        holding = [one for one in self.holders.items() if one[1].covered.get(job)]
        last, shared = 0, False
        for lo, hi in sorted([span for _, one in holding for span in one.covered[job]]):
            shared, last = shared or lo < last, hi
        for peer, holder in holding:
            covered = holder.covered[job]
            for task, since_s in holder.began.get(job, _NONE).items():
                if task not in covered:
                    continue
                if shared:  # rarely: else every member need not be asked for every task
                    others = (one for _, one in holding if one is not holder and task not in one.handed.get(job, ()))
                    if any(task in one.covered[job] for one in others):
                        continue
                yield peer, task, since_s

    def covered(self, job: Job, besides: str = "") -> RangeSet:
        """Return the tasks of a job that members hold, one of them left out."""
        others = (holder for peer, holder in self.holders.items() if peer != besides)
        return RangeSet(span for holder in others for span in holder.covered.get(job, ()))

    def held(self, peer: str, job: Job) -> RangeSet:
        """Return the tasks of a job that one member holds."""
        holder = self.holders.get(peer)
        return RangeSet() if holder is None else holder.covered.get(job, RangeSet()).copy()

    def covering(self, job: Job, spans: RangeSet) -> Iterator[tuple[str, RangeSet]]:
        """Yield who holds which of these tasks."""
        for peer, holder in self.holders.items():
            common = holder.covered.get(job, RangeSet()) & spans
            if common:
                yield peer, common

    # ---- silence ----------------------------------------------------------------------------------------------------

    def down(self, peer: str, now: float, *, reset: bool) -> None:
        """The member's connection ended; if it was reset and a new one refused, its claims lapse soon."""
        holder = self.holders.get(peer)
        if holder is not None and reset:
            holder.lapses_s = now + self.options.after_reset_s

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long: silence meanwhile was ours, not theirs."""
        for holder in self.holders.values():
            holder.heard_s += seconds
            holder.alive_s += seconds
            if holder.lapses_s is not None:
                holder.lapses_s += seconds
            for grant in holder.grants.values():
                grant.due_s += seconds

    def lapse(self, now: float) -> list[Lapsed]:
        """Return what lapsed."""
        out = []
        for peer in [p for p, holder in self.holders.items() if holder.holds and self._ends(holder) <= now]:
            holder = self.holders[peer]
            waits = self._arrives_until(holder) > now
            if not waits:
                del self.holders[peer]
            for job, covered in list(holder.covered.items()):
                arriving = holder.arriving(job) & covered
                held = covered - arriving
                if held:
                    out.append(Lapsed(peer, job, held, holder.running.pop(job, RangeSet()), vanished=True))
                if arriving and not waits:  # it had not begun any of these
                    out.append(Lapsed(peer, job, arriving, RangeSet(), vanished=False))
                holder.covered[job] = arriving
            holder.grants = {rid: grant for rid, grant in holder.grants.items() if grant.size}
        return out

    def _ends(self, holder: Holder) -> float:
        if holder.grants and not holder.claims:
            return self._arrives_until(holder)
        end = holder.heard_s + self.options.beats_missed * holder.interval_s
        return end if holder.lapses_s is None else min(end, holder.lapses_s)

    def _arrives_until(self, holder: Holder) -> float:
        """Return until when large grants under way to a member are waited for, if nothing more is heard of it."""
        if not holder.awaits:
            return -math.inf
        end = max(holder.heard_s, holder.alive_s) + self.options.beats_missed * holder.interval_s
        return end if holder.lapses_s is None else min(end, holder.lapses_s)

    def next_s(self) -> float | None:
        """Return when to look again, or None if nothing is held."""
        first_s = math.inf  # of hundreds of members, after every claim: hence no lists
        for holder in self.holders.values():
            if holder.grants:
                first_s = min(first_s, self._ends(holder), *[grant.due_s for grant in holder.grants.values()])
            elif any(holder.covered.values()):
                first_s = min(first_s, self._ends(holder))
        return None if first_s == math.inf else first_s
