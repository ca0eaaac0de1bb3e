"""Holding: the ranges this node was granted by others, and what it owes their keepers.

Every beat while it holds anything: one claim per keeper (what I hold, what I run), and again every lot of results
that its keeper has not acknowledged yet, unless it is large and may still be under way. What was finished stays claimed
until then. When nothing is held nothing is sent: a node without work has said so once and is pushed new work
(ALGORITHMS §3.4, without polling).

Rule: this file knows ranges and keepers, neither workers nor records.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2pgrid.core import messages as m
from p2pgrid.core.ranges import RangeSet, Span
from p2pgrid.core.shapes import HANDED_MAX, VALUES
from p2pgrid.node.events import Outcome, Send

Job = bytes
Rid = tuple[int, int]
Handed = Mapping[Job, Mapping[str, RangeSet]]
"""What was handed to whom, by job."""
ROW_COST, HANDED_COST = 4, 16
"""What a row of a claim takes beside its ranges, and in it the id of a member, counted in numbers."""
HANDED = 3
"""Where in a row stands what was handed over."""


@dataclass(frozen=True, slots=True)
class HoldingOptions:
    """Times in seconds."""

    beat_s: float = 1.0
    ask_again_s: float = 1.0
    rids_kept: int = 256
    forget_s: float = 600.0
    """How long results are kept for a keeper that went away: it may come back, its jobs may not."""
    large_bytes: int = 48 << 10
    """A lot of results above it may leave on a bulk stream and be under way for a while."""
    large_wait_s: float = 10.0
    large_rate: float = 50_000.0
    """Bytes per second that a link must carry for a large lot to arrive in time."""
    lot_bytes: int = 256 << 10
    """Results in one frame; a single larger one may exceed it."""
    claim_bounds: int = 4096
    """Numbers in one frame of a claim; larger claims leave in parts."""
    rtt_weight: float = 0.2
    rtt_max_s: float = 1.0
    """An answer that took longer was large: no reason to queue more than that would cover."""


@dataclass(slots=True)
class Owed:
    """One lot of results that its keeper has not acknowledged; sent again at `due_s`."""

    entry: list[Any]
    size: int
    due_s: float

    @property
    def spans(self) -> list[Span]:
        """The tasks whose results these are."""
        return [(lo, hi) for lo, hi, *_ in self.entry[3]]


@dataclass(slots=True)
class Asked:
    """The one request for work that has no answer yet."""

    peer: str
    rid: Rid
    body: list[Any]
    since_s: float
    again_s: float
    """When it was sent last."""
    until_s: float
    """When it is given up."""


@dataclass(slots=True)
class Debt:
    """What this node owes one keeper."""

    held: dict[Job, RangeSet] = field(default_factory=dict)
    batches: OrderedDict[tuple[Job, int], Owed] = field(default_factory=OrderedDict)
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


class Lot(NamedTuple):
    """Results that travel in one entry; `logs` and `busy_s` are of tasks in it or in one that leaves beside it."""

    outcomes: list[Outcome]
    logs: list[tuple[int, bytes]]
    busy_s: float
    size: int


OVERHEAD = 16
"""Bytes of an outcome or log in a frame besides its data, about."""


def lots(
    outcomes: Sequence[Outcome], logs: Sequence[tuple[int, bytes]], busy_s: float, bytes_max: int, log_bytes: int
) -> list[Lot]:
    """Cut results into lots of at most `bytes_max` each, a single larger one excepted; of a log its end is kept."""
    out = [Lot([], [], busy_s, 0)]

    def room_for(size: int) -> Lot:
        lot = out[-1]
        if lot.size and lot.size + size > bytes_max:
            lot = Lot([], [], 0.0, 0)
            out.append(lot)
        return lot

    for piece in _pieces(outcomes, bytes_max):
        size = _size(piece)
        lot = room_for(size)
        lot.outcomes.append(piece)
        out[-1] = lot._replace(size=lot.size + size)
    for index, text in logs:
        size = min(len(text), log_bytes) + OVERHEAD
        lot = room_for(size)
        lot.logs.append((index, text[-log_bytes:]))
        out[-1] = lot._replace(size=lot.size + size)
    return out


def _size(outcome: Outcome) -> int:
    data = outcome.data
    return OVERHEAD + (len(data) if isinstance(data, bytes) else sum(len(one) + 5 for one in data))


def _pieces(outcomes: Sequence[Outcome], bytes_max: int) -> Iterator[Outcome]:
    """Yield outcomes, those of many values cut where they get larger than `bytes_max`."""
    for outcome in outcomes:
        if outcome.shape != VALUES or outcome.hi - outcome.lo == 1 or _size(outcome) <= bytes_max:
            yield outcome
            continue
        start, size = outcome.lo, 0
        for at in range(outcome.lo, outcome.hi):
            one = len(outcome.data[at - outcome.lo]) + 5
            if at > start and size + one > bytes_max:
                yield Outcome(start, at, VALUES, outcome.data[start - outcome.lo : at - outcome.lo])
                start, size = at, 0
            size += one
        yield Outcome(start, outcome.hi, VALUES, outcome.data[start - outcome.lo :])


class Holding:
    """All ranges granted by others."""

    def __init__(self, options: HoldingOptions) -> None:
        self.options = options
        self.debts: dict[str, Debt] = {}
        self.hints: OrderedDict[str, None] = OrderedDict()
        """Keepers that said they have work."""
        self.ahead: dict[str, None] = {}
        """Keepers that had nothing when they were asked before a slot was free: they do not know when one is."""
        self.asked: Asked | None = None
        self.rtt_s = 0.0
        """How long an answer to a request for work takes, transfer of the inputs included."""
        self._incarnation = 0
        self._number = 0
        self._served_s: dict[str, float] = {}
        """How long tasks of each keeper kept this node busy."""

    def begin(self, incarnation: int) -> None:
        """Start a life."""
        self._incarnation = incarnation

    # ---- asking -----------------------------------------------------------------------------------------------------

    def hint(self, peer: str) -> None:
        """A keeper has work."""
        if peer not in self.hints:
            # Whoever had nothing for us has no credit for that: else it would hold up all others later.
            least = min((self._served_s.get(one, 0.0) for one in self.hints), default=0.0)
            self._served_s[peer] = max(self._served_s.get(peer, 0.0), least)
            self.hints[peer] = None

    def ask(self, slots: int, speed: float, seconds: float, now: float, *, turn: bool = False) -> list[Send]:
        """Ask the keeper that has work and was served least, one at a time: `slots` are free, `seconds` are wanted.

        `turn`: one of `unserved`, of which there is one.
        """
        if not self.hints or self.asked is not None:
            return []
        among = self.unserved() if turn else self.hints
        peer = min(among, key=lambda one: self._served_s.get(one, 0.0))
        self.hints.move_to_end(peer)
        self._number += 1
        rid = (self._incarnation, self._number)
        body = [list(rid), slots, speed, seconds]
        self.asked = Asked(peer, rid, body, now, now, now + 5 * self.options.ask_again_s)
        return [Send(peer, m.P_WANT, body)]

    def unserved(self) -> list[str]:
        """Return the keepers that have work and of which nothing is held here."""
        return [peer for peer in self.hints if peer not in self.debts or not any(self.debts[peer].held.values())]

    def ask_again(self, now: float) -> list[Send]:
        """Repeat a request that has no answer; after a while it is given up."""
        asked = self.asked
        if asked is None or now - asked.again_s < self.options.ask_again_s:
            return []
        if now < asked.until_s:
            asked.again_s = now
            return [Send(asked.peer, m.P_WANT, asked.body)]
        self.asked = None
        self.hints.pop(asked.peer, None)
        return []

    def coming(self, peer: str, rid: Rid, now: float) -> None:
        """The answer is large and under way: wait for it, and go on saying so, which shows that we are here."""
        if self.asked is None and rid[0] == self._incarnation and rid not in self.debts.setdefault(peer, Debt()).seen:
            # It was asked for over a connection that ended meanwhile.
            self.asked = Asked(peer, rid, [list(rid), 0, 0.0, 0.0], now, now, now)
            self.hint(peer)
        if self.asked is not None and (self.asked.peer, self.asked.rid) == (peer, rid):
            self.asked.until_s = now + 5 * self.options.ask_again_s

    def _answered(self, peer: str, rid: Rid, now: float) -> bool:
        asked = self.asked
        if asked is None or (asked.peer, asked.rid) != (peer, rid):
            return False
        self.asked = None
        took = min(now - asked.since_s, self.options.rtt_max_s)
        self.rtt_s = self.rtt_s + self.options.rtt_weight * (took - self.rtt_s) if self.rtt_s else took
        return True

    def refused(self, peer: str, rid: Rid, now: float) -> None:
        """The keeper has nothing for us now; it will say when it has."""
        asked = self.asked
        if self._answered(peer, rid, now):
            self.hints.pop(peer, None)
            if asked is not None and not asked.body[1]:
                self.ahead[peer] = None

    def idle(self) -> None:
        """A slot is free: who had nothing for one that was not is asked once more, and knows it then."""
        for peer in self.ahead:
            self.hint(peer)
        self.ahead.clear()

    def met(self, peer: str, rid: Rid, now: float) -> tuple[bool, list[Send]]:
        """Meet a grant; return whether it is to be taken in, and its acknowledgement."""
        self._answered(peer, rid, now)
        if rid[0] != self._incarnation:
            return False, []  # meant for a former life; unacknowledged, the keeper takes it back
        debt = self.debts.setdefault(peer, Debt())
        ack = Send(peer, m.P_GRANT_ACK, [list(rid), debt.seq + 1])
        if rid in debt.seen:
            return False, [ack]
        debt.seen[rid] = None
        if len(debt.seen) > self.options.rids_kept:
            debt.seen.popitem(last=False)
        return True, [ack]

    def take(self, peer: str, job: Job, spans: Sequence[Span]) -> list[Span]:
        """Take ranges over; return those that are new to us."""
        debt = self.debts.setdefault(peer, Debt())
        held = debt.held.setdefault(job, RangeSet())
        fresh = [span for lo, hi in spans for span in held.missing(lo, hi)]
        held.update(fresh)
        return fresh

    def give_back(self, peer: str, job: Job, spans: RangeSet, why: str, *, lacks: bool = False) -> list[Send]:
        """Hold these no more and say so; the next claim says it once more. `lacks`: inputs or functions of the job."""
        self.drop(peer, job, spans)
        self.debts.setdefault(peer, Debt()).farewell = True
        return [Send(peer, m.P_RETURN, [job, spans.flat(), why, lacks])]

    # ---- owing ------------------------------------------------------------------------------------------------------

    def finished(self, peer: str, job: Job, number: int, attempt: int, lot: Lot, now: float) -> list[Send]:
        """Send results to their keeper now, and again until they are acknowledged."""
        debt = self.debts.setdefault(peer, Debt())
        outcomes = [list(outcome) for outcome in lot.outcomes]
        logs = [list(one) for one in lot.logs]
        entry = [job, [self._incarnation, number], attempt, outcomes, logs, lot.busy_s]
        self._served_s[peer] = self._served_s.get(peer, 0.0) + lot.busy_s
        debt.batches[job, number] = Owed(entry, lot.size, self._again_s(lot.size, now))
        return [Send(peer, m.P_RESULTS, [entry])]

    def _again_s(self, size: int, now: float) -> float:
        if size > self.options.large_bytes:
            return now + self.options.large_wait_s + size / self.options.large_rate
        return now + self.options.beat_s / 2  # with the next beat, unless it just left

    def acknowledged(self, peer: str, acks: Iterable[tuple[Job, int, int]]) -> list[tuple[Job, list[Span]]]:
        """The keeper has these batches on disk; return the tasks we are free of."""
        debt = self.debts.get(peer)
        free = []
        for job, incarnation, number in acks:
            owed = None
            if debt is not None and incarnation == self._incarnation:
                owed = debt.batches.pop((job, number), None)
            if debt is None or owed is None:
                continue
            spans = owed.spans
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

    def move(self, job: Job, before: str, peer: str) -> None:
        """Another node keeps a job from now on: what is held and owed for it is held for that one."""
        debt = self.debts.get(before)
        if debt is None:
            return
        other = self.debts.setdefault(peer, Debt())
        held = debt.held.pop(job, None)
        if held:
            other.held.setdefault(job, RangeSet()).update(held)
        for key in [key for key in debt.batches if key[0] == job]:
            owed = debt.batches.pop(key)
            owed.due_s = -math.inf
            other.batches[key] = owed

    def settle(self, peer: str, job: Job) -> list[list[Any]]:
        """The job is kept by this node itself from now on: hold nothing of it, and return the results that are owed."""
        debt = self.debts.get(peer)
        if debt is None:
            return []
        debt.held.pop(job, None)
        return [debt.batches.pop(key).entry for key in [key for key in debt.batches if key[0] == job]]

    def unfinished(self, peer: str, job: Job) -> RangeSet:
        """Return what is held of a job for a keeper and has no result yet."""
        debt = self.debts.get(peer)
        if debt is None or job not in debt.held:
            return RangeSet()
        owed = (owed for (of, _), owed in debt.batches.items() if of == job)
        return debt.held[job] - RangeSet(span for one in owed for span in one.spans)

    def holds(self, peer: str, job: Job) -> bool:
        """Whether anything of a job is held for a keeper."""
        debt = self.debts.get(peer)
        return debt is not None and bool(debt.held.get(job))

    def owes(self) -> bool:
        """Whether any keeper has to hear from us."""
        return any(debt.owes for debt in self.debts.values())

    def beat(self, running: dict[Job, list[int]], handed: Handed, now: float) -> list[Send]:
        """Return the claims of this beat and the results to send again; `handed` is named as what others have."""
        out: list[Send] = []
        for peer, debt in self.debts.items():
            if debt.owes:
                out += self.claim(peer, running, handed)
                out += self._again(peer, debt, now)
        return out

    def claim(self, peer: str, running: dict[Job, list[int]], handed: Handed) -> list[Send]:
        """Return the claim that says to a keeper what is held now."""
        debt = self.debts[peer]
        debt.seq += 1
        debt.farewell = False
        parts = self._claims(debt, running, handed)
        return [
            Send(peer, m.P_CLAIM, [self._incarnation, debt.seq, self.options.beat_s, claims, part, len(parts)])
            for part, claims in enumerate(parts)
        ]

    def _claims(
        self, debt: Debt, running: dict[Job, list[int]], handed: Handed
    ) -> list[list[Any]]:  # fmt: skip
        """Return what is held, in parts that fit a control frame each."""
        parts: list[list[Any]] = [[]]
        room = self.options.claim_bounds
        for job, held in debt.held.items():
            runs = [bound for i in running.get(job, ()) if i in held for bound in (i, i + 1)]
            for row, cost in self._claimed(job, held, runs, handed.get(job, {})):
                if parts[-1] and (cost > room or parts[-1][-1][0] == job):
                    parts.append([])
                    room = self.options.claim_bounds
                parts[-1].append(row)
                room -= cost
        return parts

    def _claimed(
        self, job: Job, held: RangeSet, runs: list[int], handed: Mapping[str, RangeSet]
    ) -> Iterator[tuple[list[Any], int]]:  # fmt: skip
        """Yield rows that say what is held of a job, and how many numbers each has, about: one, unless it is much."""
        out = [(thief, (held & spans).flat()) for thief, spans in handed.items()]
        left = (held - RangeSet(span for spans in handed.values() for span in spans)).flat() if out else held.flat()
        most = max(self.options.claim_bounds - ROW_COST, HANDED_COST + 2)
        row: list[Any] = [job, [], runs]
        room = most - len(runs)
        for thief, flat in [("", left), *out]:
            cost = HANDED_COST if thief else 0
            at = 0
            while at < len(flat):
                if room < cost + 2 or (len(row) > HANDED and len(row[HANDED]) == HANDED_MAX):
                    yield row, most - room + ROW_COST
                    row, room = [job, [], []], most
                piece = flat[at : at + (room - cost) // 2 * 2]
                at += len(piece)
                room -= cost + len(piece)
                if not thief:
                    row[1] = piece
                elif len(row) > HANDED:
                    row[HANDED].append([thief, piece])
                else:
                    row.append([[thief, piece]])
        yield row, most - room + ROW_COST

    def _again(self, peer: str, debt: Debt, now: float) -> list[Send]:
        """Return the results to send again, small ones packed together."""
        frames: list[list[Any]] = []
        room = 0
        for owed in debt.batches.values():
            if owed.due_s > now:
                continue
            owed.due_s = self._again_s(owed.size, now)
            if owed.size > room:
                frames.append([])
                room = self.options.large_bytes  # one that is larger leaves by itself, on a bulk stream
            frames[-1].append(owed.entry)
            room -= owed.size
        return [Send(peer, m.P_RESULTS, entries) for entries in frames]

    def gone(self, peer: str) -> None:
        """The keeper's connection ended: nothing to ask there; what is owed is kept for a while."""
        self.hints.pop(peer, None)
        self.ahead.pop(peer, None)
        self._served_s.pop(peer, None)
        if peer in self.debts:
            self.debts[peer].away = True
        if self.asked is not None and self.asked.peer == peer:
            self.asked = None

    def back(self, peer: str) -> None:
        """The keeper is reachable again; what was under way to it is lost."""
        if peer in self.debts:
            self.debts[peer].away = False
            for owed in self.debts[peer].batches.values():
                owed.due_s = -math.inf

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long: nobody let us wait meanwhile."""
        if self.asked is not None:
            self.asked.since_s += seconds
            self.asked.again_s += seconds
            self.asked.until_s += seconds
        for debt in self.debts.values():
            for owed in debt.batches.values():
                owed.due_s += seconds

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
