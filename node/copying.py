"""Copying: how the rows of records get to the other keepers, and who was promised something that rests on them.

To each keeper rows flow in frames with numbers, a few at a time; it acknowledges a frame once its rows are synced. A
keeper is *level* in a job when all its rows are there or under way: then only what is new has to be said. It stops to
be level when its connection ends, its queue overflows or it refuses a frame; anti-entropy makes it level again
(`replicas`).

A *hold* is promises that wait until one other keeper has what they rest on: a keeper that is level and has acknowledged
the frame, or one whose copy equals ours.

Rule: this file knows rows by job, peers and numbers; who should be a keeper it is told.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from p2pgrid.core import messages as m
from p2pgrid.node.events import Row, Send
from p2pgrid.node.kept import Job, Promise

FRAMES_BITS = 20
"""Frames of one life have numbers of their own: 2²⁰ per second of it."""
OVERHEAD = 64
"""Bytes of a row in a frame besides key, meta and value, about."""


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """Bytes, or numbers of rows."""

    frame_bytes: int = 48 << 10
    """Rows in one frame; a single larger one exceeds it and leaves on a bulk stream."""
    frame_rows: int = 1024
    window_bytes: int = 4 << 20
    """Rows under way to one keeper."""
    queue_bytes: int = 64 << 20
    """Rows that wait for one keeper; above, it is brought level from the disk later."""
    light_bytes: int = 256 << 10
    """Above so much in the queue, what no promise rests on is left out."""
    wait_s: float = 10.0
    rate: float = 50_000.0
    """Bytes per second that a link must carry for a frame to arrive in time."""


@dataclass(slots=True, eq=False)
class Hold:
    """Promises that wait for a second copy of the rows of one store."""

    jobs: set[Job]
    """Those of whose rows there is none yet."""
    promises: Sequence[Promise]


@dataclass(slots=True)
class _Lot:
    """Rows of one store on their way to one keeper."""

    rows: Sequence[Row]
    size: int
    hold: Hold | None
    catching_up: Job | None = None
    """The job that the keeper is brought level in by them."""


@dataclass(slots=True)
class _Flight:
    size: int
    lots: list[_Lot]
    until_s: float
    """When it counts as lost."""


@dataclass(slots=True)
class _Way:
    """Everything under way to one keeper."""

    queue: deque[_Lot] = field(default_factory=deque)
    queued: int = 0
    flying: dict[int, _Flight] = field(default_factory=dict)
    in_flight: int = 0
    level: set[Job] = field(default_factory=set)
    catching: Counter[Job] = field(default_factory=Counter)
    """Lots under way, or being read, that bring it level."""
    unsure: set[Job] = field(default_factory=set)
    """It was told what is here and asks for what it lacks: that it has all is known when its copy equals ours."""
    late: dict[Job, list[Hold]] = field(default_factory=dict)
    """Acknowledged before it was known to have all that came before."""

    def behind(self, job: Job) -> bool:
        return job in self.unsure or bool(self.catching.get(job))

    def forget(self, job: Job) -> None:
        """What it has of a job is not known any more."""
        self.level.discard(job)
        self.unsure.discard(job)
        self.catching.pop(job, None)
        self.late.pop(job, None)

    def lots(self) -> Iterator[_Lot]:
        """Yield what waits or is under way."""
        yield from self.queue
        for flight in self.flying.values():
            yield from flight.lots


class Copying:
    """The ways to all connected keepers."""

    def __init__(self, options: CopyOptions) -> None:
        self.options = options
        self._ways: dict[str, _Way] = {}
        self._number = 0
        self.filled: set[str] = set()
        """To whom something waits to be sent; only ever asked about, for `frames` is called after every event."""
        self.waiting: dict[Job, dict[Hold, None]] = {}

    def live(self, incarnation: int) -> None:
        """A life begins. No frame has the number of another, whatever the connection and the life.

        What was sent over a connection that has ended may be synced much later, and is acknowledged over the next one.
        """
        self._number = incarnation << FRAMES_BITS

    # ---- who has what -----------------------------------------------------------------------------------------------

    def up(self, peer: str) -> None:
        """A member is reachable; what it has is not known."""
        self._ways[peer] = _Way()
        self.filled.discard(peer)

    def down(self, peer: str) -> None:
        """Its connection ended: what was under way may be lost."""
        self._ways.pop(peer, None)
        self.filled.discard(peer)

    def is_level(self, peer: str, job: Job) -> bool:
        """Whether a member has all rows of a job, or they are under way."""
        way = self._ways.get(peer)
        return way is not None and job in way.level

    def is_known(self, peer: str, job: Job) -> bool:
        """Whether nothing need be asked of a member: it is level for sure, or what it lacks is on its way."""
        way = self._ways.get(peer)
        return way is not None and job in way.level and (job not in way.unsure or bool(way.catching.get(job)))

    def doubt(self, peer: str, job: Job) -> None:
        """A member is told what is here, and asks for what it lacks."""
        way = self._ways.get(peer)
        if way is not None:
            way.level.add(job)
            way.unsure.add(job)

    def behind(self, job: Job, besides: str) -> None:
        """Rows came from one member: of all others it is not known whether they have them."""
        for peer, way in self._ways.items():
            if peer != besides:
                way.level.discard(job)

    def unlevel(self, peer: str, job: Job) -> None:
        """It is not known whether a member has all rows of a job."""
        way = self._ways.get(peer)
        if way is not None:
            way.level.discard(job)

    def compared(self, peer: str, job: Job, *, counts: bool = True) -> None:
        """What a member has is known: what it lacks comes, and is all that it lacks (`caught_up`, `settle`).

        What was synced here before is among that, whether or not it ever was in a frame to that member. `counts`:
        its copy is one that promises may rest on.
        """
        way = self._ways.get(peer)
        if way is not None:
            way.level.add(job)
            way.unsure.discard(job)
            way.late.setdefault(job, []).extend(self.waiting.get(job, ()) if counts else ())

    def settle(self, peer: str, job: Job) -> list[Promise]:
        """Return the promises that may be kept, if a member that was compared with lacks nothing any more."""
        way = self._ways.get(peer)
        if way is None or job not in way.level or way.behind(job):
            return []
        return self._release(way.late.pop(job, ()), job)

    def has_all(self, peer: str, job: Job) -> bool:
        """Whether a member acknowledged all rows of a job."""
        way = self._ways.get(peer)
        if way is None or job not in way.level or way.behind(job):
            return False
        return not any(row.job == job for lot in way.lots() for row in lot.rows)

    def begin(self, peer: str, job: Job) -> None:
        """A member has nothing of a job yet, and gets all of it from now on."""
        way = self._ways.get(peer)
        if way is not None:
            way.level.add(job)

    def catch_up(self, peer: str, job: Job) -> None:
        """What a member lacks of a job is known and comes: it is level, but what it acknowledges counts later."""
        way = self._ways.get(peer)
        if way is not None:
            way.level.add(job)
            way.catching[job] += 1

    def caught_up(self, peer: str, job: Job) -> list[Promise]:
        """One part of what it lacked is there; return the promises that may be kept with the last of them."""
        way = self._ways.get(peer)
        if way is None or not way.catching[job]:
            return []
        way.catching[job] -= 1
        if not way.catching[job]:
            del way.catching[job]
        return self.settle(peer, job)

    def equal(self, peer: str, job: Job) -> list[Promise]:
        """The copy of a member equals ours: all that waited for one is kept."""
        way = self._ways.get(peer)
        if way is None:
            return []
        way.forget(job)
        way.level.add(job)
        return self.release_all(job)

    def forget(self, job: Job) -> list[Promise]:
        """A job is not kept here any more; return the promises that waited for it alone."""
        for way in self._ways.values():
            way.forget(job)
        return self.release_all(job)

    # ---- rows -------------------------------------------------------------------------------------------------------

    def hold(self, jobs: Iterable[Job], promises: Sequence[Promise]) -> Hold:
        """Let promises wait for a second copy."""
        one = Hold(set(jobs), promises)
        for job in one.jobs:
            self.waiting.setdefault(job, {})[one] = None
        return one

    def push(self, peer: str, rows: Sequence[Row], hold: Hold | None = None, catching_up: Job | None = None) -> None:
        """Let rows go to a member that is level in their jobs."""
        way = self._ways.get(peer)
        if way is None:
            return
        size = sum(len(row.key) + len(row.meta) + len(row.value or b"") + OVERHEAD for row in rows)
        if way.queued and way.queued + size > self.options.queue_bytes and catching_up is None:
            for row in rows:
                way.level.discard(row.job)
            return
        way.queue.append(_Lot(rows, size, hold, catching_up))
        self.filled.add(peer)
        way.queued += size

    def push_light(self, peer: str, rows: Sequence[Row]) -> None:
        """Let rows go that no promise rests on, if they are not in the way of others."""
        way = self._ways.get(peer)
        if way is not None and way.queued <= self.options.light_bytes:
            self.push(peer, rows)

    def overdue(self, now: float) -> None:
        """Give up frames that nobody acknowledged."""
        for peer, way in self._ways.items():
            for number in [number for number, flight in way.flying.items() if flight.until_s <= now]:
                self.refused(peer, number)

    @property
    def is_sending(self) -> bool:
        """Whether frames are under way."""
        return any(way.flying for way in self._ways.values())

    def frames(self, now: float) -> list[Send]:
        """Return what may leave now: at once if nothing is under way to a member, else in frames as they fill."""
        out: list[Send] = []
        if not self.filled:
            return out
        for peer, way in self._ways.items():
            if peer not in self.filled:
                continue
            while way.queue and (not way.flying or self._may_leave(way)):
                out.append(self._frame(peer, way, now))
            if not way.queue:
                self.filled.discard(peer)
        return out

    def _may_leave(self, way: _Way) -> bool:
        return way.in_flight < self.options.window_bytes and way.queued >= self.options.frame_bytes

    def _frame(self, peer: str, way: _Way, now: float) -> Send:
        lots = [way.queue.popleft()]
        size, count = lots[0].size, len(lots[0].rows)
        while way.queue:
            size += way.queue[0].size
            count += len(way.queue[0].rows)
            if size > self.options.frame_bytes or count > self.options.frame_rows:
                break
            lots.append(way.queue.popleft())
        self._number += 1
        taken = sum(lot.size for lot in lots)
        way.flying[self._number] = _Flight(taken, lots, now + self.options.wait_s + taken / self.options.rate)
        way.in_flight += taken
        way.queued -= taken
        rows = [list(row) for lot in lots for row in lot.rows]
        return Send(peer, m.P_ROWS, [self._number, rows])

    def synced(self, peer: str, number: int) -> list[Promise]:
        """A member has the rows of a frame on disk; return the promises that may be kept."""
        way = self._ways.get(peer)
        flight = way.flying.pop(number, None) if way is not None else None
        if way is None or flight is None:
            return []
        way.in_flight -= flight.size
        out: list[Promise] = []
        for lot in flight.lots:
            if lot.catching_up is not None:
                out += self.caught_up(peer, lot.catching_up)
            if lot.hold is None:
                continue
            for job in {row.job for row in lot.rows} & lot.hold.jobs & way.level:
                if way.behind(job):
                    way.late.setdefault(job, []).append(lot.hold)
                else:
                    out += self._release([lot.hold], job)
        return out

    def refused(self, peer: str, number: int) -> None:
        """A member did not take the rows of a frame."""
        way = self._ways.get(peer)
        flight = way.flying.pop(number, None) if way is not None else None
        if way is None or flight is None:
            return
        way.in_flight -= flight.size
        for job in {row.job for lot in flight.lots for row in lot.rows}:
            way.forget(job)

    def is_busy(self, peer: str) -> bool:
        """Whether rows that bring a member level are under way to it."""
        way = self._ways.get(peer)
        return way is not None and any(lot.catching_up is not None for lot in way.lots())

    # ---- promises ---------------------------------------------------------------------------------------------------

    def release_all(self, job: Job) -> list[Promise]:
        """Return all promises that waited for a copy of a job."""
        return self._release(list(self.waiting.get(job, ())), job)

    def _release(self, holds: Iterable[Hold], job: Job) -> list[Promise]:
        """There is a second copy of what these promises say of a job."""
        out: list[Promise] = []
        waiting = self.waiting.get(job, {})
        for hold in holds:
            if hold not in waiting:
                continue
            del waiting[hold]
            hold.jobs.discard(job)
            if not hold.jobs:
                out += hold.promises
        if not waiting:
            self.waiting.pop(job, None)
        return out
