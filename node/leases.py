"""Leases: which members hold which ranges of the jobs kept here, and when that stops being true.

A *grant* hands ranges to a holder; until it is acknowledged it is sent again, three times at most, then taken back.
From then on only the holder's own *claims*, renewed by its heartbeat, keep its ranges covered: a claim that stops
advancing for four beats lapses, or one second after the connection of its holder was reset. Whatever was covered and is
neither done nor claimed any more is uncovered and runs again; running something twice is always safe, so every timeout
may be short (ALGORITHMS §3.6, DESIGN §7).

Rule: this file knows ranges and members, not what tasks are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2pgrid.core.ranges import RangeSet, Span

Job = bytes
Rid = tuple[int, int]  # incarnation of the asker, its number

SETTLED = object()
"""In place of the answer to a request whose asker has acknowledged it: nothing is said again."""


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """Times in seconds."""

    beats_missed: int = 4
    after_reset_s: float = 1.0
    grant_again_s: float = 1.0
    grant_sends: int = 3
    rids_kept: int = 64
    interval_max_s: float = 60.0


@dataclass(slots=True)
class Grant:
    """Ranges handed over and not yet acknowledged."""

    job: Job
    spans: list[Span]
    body: Any
    sends: int
    due_s: float


@dataclass(slots=True)
class Holder:
    """A member that holds ranges of ours."""

    heard_s: float
    interval_s: float = 1.0
    version: tuple[int, int] = (0, 0)
    """Incarnation and seq of the newest claim."""
    needs: tuple[int, int] = (0, 0)
    """Only a claim at least this new can uncover what was granted since."""
    lapses_s: float | None = None
    """Set when the connection was reset."""
    covered: dict[Job, RangeSet] = field(default_factory=dict)
    running: dict[Job, RangeSet] = field(default_factory=dict)
    grants: dict[Rid, Grant] = field(default_factory=dict)
    answered: OrderedDict[Rid, Any] = field(default_factory=OrderedDict)

    @property
    def holds(self) -> bool:
        """Whether anything is covered by this member."""
        return bool(self.grants) or any(self.covered.values())


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

    def grant(self, peer: str, rid: Rid, job: Job, spans: Sequence[Span], body: Any, now: float) -> None:
        """Cover ranges by a member that was just sent them."""
        holder = self._holder(peer, now)
        if not holder.holds:
            holder.heard_s = now
            holder.lapses_s = None
        holder.covered.setdefault(job, RangeSet()).update(spans)
        holder.grants[rid] = Grant(job, list(spans), body, 1, now + self.options.grant_again_s)
        holder.answered[rid] = body
        if len(holder.answered) > self.options.rids_kept:
            holder.answered.popitem(last=False)

    def acknowledged(self, peer: str, rid: Rid, seq: int, now: float) -> None:
        """The member has the ranges; its claims from `seq` on name them."""
        holder = self.holders.get(peer)
        if holder is not None and holder.grants.pop(rid, None) is not None:
            holder.answered[rid] = SETTLED  # the body may be large, and is needed no more
            holder.needs = max(holder.needs, (rid[0], seq))
            holder.heard_s = now

    def due(self, now: float) -> tuple[list[tuple[str, Any]], list[Lapsed]]:
        """Return the grants to send again, and those given up."""
        again: list[tuple[str, Any]] = []
        lost: list[Lapsed] = []
        for peer, holder in self.holders.items():
            for rid, grant in list(holder.grants.items()):
                if grant.due_s > now:
                    continue
                if grant.sends < self.options.grant_sends:
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

    # ---- claims -----------------------------------------------------------------------------------------------------

    def claim(
        self, peer: str, version: tuple[int, int], interval_s: float, claims: dict[Job, tuple[RangeSet, RangeSet]],
        now: float,
    ) -> list[Lapsed] | None:  # fmt: skip
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
            held, running = claims.get(job, (RangeSet(), RangeSet()))
            granted = RangeSet(span for grant in holder.grants.values() if grant.job == job for span in grant.spans)
            before = holder.covered.get(job, RangeSet())
            after = held | (granted & before)
            gone = before - after
            if gone:
                ran = holder.running.get(job, RangeSet()) if reborn else RangeSet()
                dropped.append(Lapsed(peer, job, gone, ran, vanished=reborn))
            holder.covered[job] = after
            holder.running[job] = running
            if not after:
                del holder.covered[job], holder.running[job]
        return dropped

    def heard(self, peer: str, now: float) -> None:
        """Any frame of a member shows that it lives."""
        if peer in self.holders:
            self.holders[peer].heard_s = now

    def returned(self, peer: str, job: Job, spans: RangeSet) -> RangeSet:
        """The member gave ranges back; return those that were covered by it."""
        holder = self.holders.get(peer)
        if holder is None or job not in holder.covered:
            return RangeSet()
        given = spans & holder.covered[job]
        holder.covered[job].difference_update(given)
        return given

    def finished(self, job: Job, lo: int, hi: int) -> None:
        """These tasks need no cover any more."""
        for holder in self.holders.values():
            if job in holder.covered:
                holder.covered[job].discard(lo, hi)

    def forget(self, job: Job) -> list[str]:
        """Drop all cover of a job; return who held some of it."""
        told = []
        for peer, holder in self.holders.items():
            if holder.covered.pop(job, None):
                told.append(peer)
            holder.running.pop(job, None)
            holder.grants = {rid: grant for rid, grant in holder.grants.items() if grant.job != job}
        return told

    def covered(self, job: Job) -> RangeSet:
        """Return the tasks of a job that members hold."""
        return RangeSet(span for holder in self.holders.values() for span in holder.covered.get(job, ()))

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

    def lapse(self, now: float) -> list[Lapsed]:
        """Return what lapsed."""
        out = []
        for peer in [p for p, holder in self.holders.items() if holder.holds and self._ends(holder) <= now]:
            holder = self.holders.pop(peer)
            for job, spans in holder.covered.items():
                if spans:
                    out.append(Lapsed(peer, job, spans, holder.running.get(job, RangeSet()), vanished=True))
        return out

    def _ends(self, holder: Holder) -> float:
        end = holder.heard_s + self.options.beats_missed * holder.interval_s
        return end if holder.lapses_s is None else min(end, holder.lapses_s)

    def next_s(self) -> float | None:
        """Return when to look again, or None if nothing is held."""
        times = [self._ends(holder) for holder in self.holders.values() if holder.holds]
        times += [grant.due_s for holder in self.holders.values() for grant in holder.grants.values()]
        return min(times, default=None)
