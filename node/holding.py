"""Holding: the ranges this node was granted by others, and what it owes their keepers.

Every beat while it holds anything: one claim per keeper (what I hold, what I run), and again every batch of results
that its keeper has not acknowledged yet. What was finished stays claimed until then. When nothing is held nothing is
sent: a node without work has said so once and is pushed new work (ALGORITHMS §3.4, without polling).

Rule: this file knows ranges and keepers, neither workers nor records.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.node.events import Outcome, Send

Job = bytes
Rid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class HoldingOptions:
    """Times in seconds."""

    beat_s: float = 1.0
    ask_again_s: float = 1.0
    rids_kept: int = 256
    forget_s: float = 600.0
    """How long results are kept for a keeper that went away: it may come back, its jobs may not."""


@dataclass(slots=True)
class Debt:
    """What this node owes one keeper."""

    held: dict[Job, RangeSet] = field(default_factory=dict)
    batches: OrderedDict[tuple[Job, int], list[Any]] = field(default_factory=OrderedDict)
    """Results not yet acknowledged, by job and number."""
    seen: OrderedDict[Rid, None] = field(default_factory=OrderedDict)
    seq: int = 0
    farewell: bool = False
    """One empty claim is still to be sent."""
    away: bool = False
    """Its connection ended: nothing is sent until it is back."""

    @property
    def owes(self) -> bool:
        """Whether the keeper has to hear from us."""
        return not self.away and (bool(self.batches) or any(self.held.values()) or self.farewell)


class Holding:
    """All ranges granted by others."""

    def __init__(self, options: HoldingOptions) -> None:
        self.options = options
        self.debts: dict[str, Debt] = {}
        self.hints: OrderedDict[str, None] = OrderedDict()
        """Keepers that said they have work."""
        self.asked: tuple[str, Rid, float] | None = None
        self._asked_s = 0.0
        self._incarnation = 0
        self._number = 0

    def begin(self, incarnation: int) -> None:
        """Start a life."""
        self._incarnation = incarnation

    # ---- asking -----------------------------------------------------------------------------------------------------

    def hint(self, peer: str) -> None:
        """A keeper has work."""
        self.hints[peer] = None

    def ask(self, slots: int, speed: float, now: float) -> list[Send]:
        """Ask the next keeper that has work, one at a time; a request without an answer is repeated."""
        if slots <= 0 or not self.hints:
            return []
        if self.asked is not None:
            peer, rid, since = self.asked
            if now - self._asked_s < self.options.ask_again_s and peer in self.hints:
                return []
            if peer in self.hints and now - since < 5 * self.options.ask_again_s:
                self._asked_s = now
                return [Send(peer, m.P_WANT, [list(rid), slots, speed])]
            self.hints.pop(peer, None)
            self.asked = None
            if not self.hints:
                return []
        peer = next(iter(self.hints))
        self.hints.move_to_end(peer)
        self._number += 1
        rid = (self._incarnation, self._number)
        self.asked = (peer, rid, now)
        self._asked_s = now
        return [Send(peer, m.P_WANT, [list(rid), slots, speed])]

    def refused(self, peer: str, rid: Rid) -> None:
        """The keeper has nothing for us now; it will say when it has."""
        if self.asked is not None and self.asked[1] == rid:
            self.asked = None
            self.hints.pop(peer, None)

    def granted(self, peer: str, rid: Rid, job: Job, spans: Sequence[Span]) -> tuple[list[Span], list[Send]]:
        """Take ranges over. Returns those that are new to us, and the acknowledgement."""
        if self.asked is not None and self.asked[1] == rid:
            self.asked = None
        if rid[0] != self._incarnation:
            return [], []  # meant for a former life; unacknowledged, the keeper takes it back
        debt = self.debts.setdefault(peer, Debt())
        ack = Send(peer, m.P_GRANT_ACK, [list(rid), debt.seq + 1])
        if rid in debt.seen:
            return [], [ack]
        debt.seen[rid] = None
        if len(debt.seen) > self.options.rids_kept:
            debt.seen.popitem(last=False)
        held = debt.held.setdefault(job, RangeSet())
        fresh = [span for lo, hi in spans for span in held.missing(lo, hi)]
        held.update(fresh)
        return fresh, [ack]

    # ---- owing ------------------------------------------------------------------------------------------------------

    def finished(self, peer: str, job: Job, number: int, attempt: int, outcomes: Sequence[Outcome]) -> list[Send]:
        """Send results to their keeper now, and again until they are acknowledged."""
        debt = self.debts.setdefault(peer, Debt())
        entry = [job, [self._incarnation, number], attempt, [list(outcome) for outcome in outcomes]]
        debt.batches[job, number] = entry
        return [Send(peer, m.P_RESULTS, [entry])]

    def acknowledged(self, peer: str, acks: Iterable[tuple[Job, int, int]]) -> list[tuple[Job, list[Span]]]:
        """The keeper has these batches on disk; return the tasks we are free of."""
        debt = self.debts.get(peer)
        free = []
        for job, incarnation, number in acks:
            entry = None
            if debt is not None and incarnation == self._incarnation:
                entry = debt.batches.pop((job, number), None)
            if debt is None or entry is None:
                continue
            spans = [(lo, hi) for lo, hi, *_ in entry[3]]
            debt.held.get(job, RangeSet()).difference_update(spans)
            free.append((job, spans))
            self._tidy(debt, job)
        return free

    def drop(self, peer: str, job: Job, spans: RangeSet | None) -> RangeSet:
        """Hold these no more (None: none of the job); return what was held of them."""
        debt = self.debts.get(peer)
        if debt is None or job not in debt.held:
            return RangeSet()
        held = debt.held[job]
        gone = held.copy() if spans is None else held & spans
        held.difference_update(gone)
        if spans is None:
            for key in [key for key in debt.batches if key[0] == job]:
                del debt.batches[key]
        self._tidy(debt, job)
        return gone

    @staticmethod
    def _tidy(debt: Debt, job: Job) -> None:
        if not debt.held.get(job):
            debt.held.pop(job, None)
            debt.farewell = True

    def holds(self, peer: str, job: Job) -> bool:
        """Whether anything of a job is held for a keeper."""
        debt = self.debts.get(peer)
        return debt is not None and bool(debt.held.get(job))

    def owes(self) -> bool:
        """Whether any keeper has to hear from us."""
        return any(debt.owes for debt in self.debts.values())

    def beat(self, running: dict[Job, list[int]]) -> list[Send]:
        """Return the claims of this beat and the results to send again."""
        out = []
        for peer, debt in self.debts.items():
            if not debt.owes:
                continue
            debt.seq += 1
            debt.farewell = False
            claims = [
                [job, held.flat(), [bound for i in running.get(job, ()) if i in held for bound in (i, i + 1)]]
                for job, held in debt.held.items()
            ]
            out.append(Send(peer, m.P_CLAIM, [self._incarnation, debt.seq, self.options.beat_s, claims]))
            if debt.batches:
                out.append(Send(peer, m.P_RESULTS, list(debt.batches.values())))
        return out

    def gone(self, peer: str) -> None:
        """The keeper's connection ended: nothing to ask there; what is owed is kept for a while."""
        self.hints.pop(peer, None)
        if peer in self.debts:
            self.debts[peer].away = True
        if self.asked is not None and self.asked[0] == peer:
            self.asked = None

    def back(self, peer: str) -> None:
        """The keeper is reachable again."""
        if peer in self.debts:
            self.debts[peer].away = False

    def forget(self, peer: str) -> list[Job]:
        """The keeper stayed away too long: owe it nothing any more. Returns the jobs that were held for it."""
        debt = self.debts.get(peer)
        if debt is None or not debt.away:
            return []
        jobs = list(debt.held)
        debt.held.clear()
        debt.batches.clear()
        debt.farewell = False
        return jobs
