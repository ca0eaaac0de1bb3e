"""Stealing: whom an idle node asks for work, and what a busy one has handed over (ALGORITHMS §3.3–3.6, DESIGN §8).

The *thief* asks those of whom it was told that work waits there: of two drawn at random the one with more, near ones
first, one far one at a time beside them (CRS). Whoever does not answer in time counts as having nothing. After a few
attempts it is *dormant*: it leaves a lifeline with some members, its neighbours on a hypercube among them, and waits.
Only while a keeper says that work is held somewhere does it look again, less and less often: an idle grid is silent.

The *victim* remembers what it handed over until the thief acknowledged it, sends it again three times at most, then
takes it back; and who waits on a lifeline here. What was acknowledged it goes on claiming for some beats, so that the
thief's own claim covers it first: at no time is it uncovered at its keeper.

Rule: this file knows members, numbers and times, neither tasks nor frames.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from p2pgrid.core.ranges import RangeSet

Rid = tuple[int, int]  # incarnation of the thief, its number


@dataclass(frozen=True, slots=True)
class StealOptions:
    """Times in seconds."""

    is_on: bool = True
    near_s: float = 0.005
    """Members with a shorter round trip are near."""
    tries: int = 2
    """How many near members are asked before a node is dormant, and how many far ones."""
    answer_min_s: float = 0.3
    """An answer is waited for at least so long; longer where round trips are."""
    told_s: float = 60.0
    """How long it is remembered that work waits somewhere."""
    told_max: int = 256
    lifelines_max: int = 8
    lifeline_s: float = 60.0
    wake_min_s: float = 5.0
    wake_max_s: float = 60.0
    hand_again_s: float = 1.0
    """At least; four round trips where they are longer."""
    hand_sends: int = 3
    linger_s: float = 2.5
    """How long the victim goes on claiming what was acknowledged: the thief claims every second."""
    waiters_max: int = 256
    rids_kept: int = 256
    large_bytes: int = 48 << 10
    """What is larger may travel on a bulk stream, and is sent once."""
    large_wait_s: float = 10.0
    large_rate: float = 50_000.0
    """Bytes per second that a link must carry for it to arrive in time."""


@dataclass(slots=True)
class Trip:
    """Round trips to a member, and how much they vary (Jacobson)."""

    seconds: float
    deviation_s: float

    def took(self, seconds: float) -> None:
        self.deviation_s += (abs(seconds - self.seconds) - self.deviation_s) / 4
        self.seconds += (seconds - self.seconds) / 8


class Ask(NamedTuple):
    """A request to be sent."""

    peer: str
    rid: Rid


@dataclass(slots=True)
class Request:
    """One that has no answer yet."""

    peer: str
    rid: Rid
    since_s: float
    until_s: float


class Thief:
    """The idle side."""

    def __init__(self, options: StealOptions, rng: random.Random) -> None:
        self.options = options
        self.rng = rng
        self.is_dormant = False
        self.told: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Seconds of work that wait at a member, by what was said of it and when."""
        self.open: dict[bool, Request] = {}
        """By whether the member asked is near: at most one of each."""
        self.trips: OrderedDict[str, Trip] = OrderedDict()
        self._tries = {True: 0, False: 0}
        self._asked: dict[str, None] = {}
        self._lines: dict[str, float] = {}
        """With whom a lifeline was left, and until when it holds."""
        self._pause_s = options.wake_min_s
        self._incarnation = 0
        self._number = 0
        self._met: OrderedDict[tuple[str, Rid], bool] = OrderedDict()

    def begin(self, incarnation: int) -> None:
        """Start a life."""
        self._incarnation = incarnation

    # ---- what is known ----------------------------------------------------------------------------------------------

    def hear(self, told: Iterable[tuple[str, float]], now: float) -> None:
        """Work waits at these members."""
        for peer, seconds in told:
            self.told.pop(peer, None)
            self.told[peer] = (seconds, now)
        while len(self.told) > self.options.told_max:
            self.told.popitem(last=False)

    def waits_at(self, peer: str, now: float) -> float:
        """Return how much work is left at a member, if it goes on as it was said."""
        seconds, since_s = self.told.get(peer, (0.0, now))
        return max(seconds - (now - since_s), 0.0)

    def rouse(self) -> None:
        """There is something new to look for."""
        self.is_dormant = False
        self._tries = {True: 0, False: 0}
        self._asked.clear()

    def rest(self) -> None:
        """There is work here: the next search begins anew."""
        if self.is_dormant or self._asked:
            self._pause_s = self.options.wake_min_s
            self.rouse()

    def is_near(self, peer: str, *, guess_s: float) -> bool:
        """Whether a member is near; `guess_s` is its round trip if it was never measured here."""
        trip = self.trips.get(peer)
        return (guess_s if trip is None else trip.seconds) <= self.options.near_s

    def trip_s(self, peer: str) -> float | None:
        """Return the round trip to a member, if it is known."""
        trip = self.trips.get(peer)
        return None if trip is None else trip.seconds

    # ---- asking -----------------------------------------------------------------------------------------------------

    def ask(self, near: Collection[str], far: Collection[str], now: float) -> list[Ask]:
        """Return whom to ask now, of those that may be asked."""
        out = []
        self._age(now)
        for is_near, able in ((True, near), (False, far)):
            if is_near in self.open or self._tries[is_near] >= self.options.tries:
                continue
            known = [peer for peer in self.told if peer in able and peer not in self._asked]
            if not known:
                continue
            drawn = self.rng.sample(known, min(2, len(known)))
            peer = max(drawn, key=lambda one: self.waits_at(one, now))
            self._asked[peer] = None
            rid = self.rid()
            self.open[is_near] = Request(peer, rid, now, now + self.patience_s(peer))
            out.append(Ask(peer, rid))
        return out

    def rid(self) -> Rid:
        """Return the name of a new request."""
        self._number += 1
        return self._incarnation, self._number

    def patience_s(self, peer: str) -> float:
        """Return how long an answer is waited for."""
        trip = self.trips.get(peer)
        expected = 0.0 if trip is None else trip.seconds + 4 * trip.deviation_s
        return max(self.options.answer_min_s, expected)

    def _age(self, now: float) -> None:
        while self.told:
            peer, (_, since_s) = next(iter(self.told.items()))
            if now - since_s <= self.options.told_s:
                break
            del self.told[peer]

    def answered(self, peer: str, rid: Rid, now: float, *, nothing: bool) -> bool:
        """Take in an answer; return whether it was waited for. `nothing`: there is none to be had."""
        for is_near, request in self.open.items():
            if (request.peer, request.rid) == (peer, rid):
                del self.open[is_near]
                took = now - request.since_s
                trip = self.trips.pop(peer, None) or Trip(took, took / 2)
                trip.took(took)
                self.trips[peer] = trip
                if len(self.trips) > self.options.told_max:
                    self.trips.popitem(last=False)
                if nothing:
                    self._tries[is_near] += 1
                    self.told.pop(peer, None)
                return True
        return False

    def late(self, now: float) -> bool:
        """Give up requests that had no answer in time; return whether there was one."""
        over = [is_near for is_near, request in self.open.items() if request.until_s <= now]
        for is_near in over:
            self.told.pop(self.open.pop(is_near).peer, None)
            self._tries[is_near] += 1
        return bool(over)

    def next_s(self) -> float | None:
        """Return when the next request is given up."""
        return min((request.until_s for request in self.open.values()), default=None)

    def gone(self, peer: str) -> None:
        """A member is not connected any more."""
        self.told.pop(peer, None)
        self.trips.pop(peer, None)
        self._lines.pop(peer, None)
        for is_near in [one for one, request in self.open.items() if request.peer == peer]:
            del self.open[is_near]
            self._tries[is_near] += 1

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long."""
        for request in self.open.values():
            request.since_s += seconds
            request.until_s += seconds

    # ---- work that comes --------------------------------------------------------------------------------------------

    def met(self, peer: str, rid: Rid) -> bool | None:
        """Return whether this hand-over was taken when it arrived before; None: it is new."""
        return self._met.get((peer, rid))

    def settle(self, peer: str, rid: Rid, *, taken: bool) -> None:
        """Remember what became of a hand-over."""
        self._lines.pop(peer, None)
        self._met[peer, rid] = taken
        if len(self._met) > self.options.rids_kept:
            self._met.popitem(last=False)

    def let_go(self, peer: str) -> None:
        """A member answered a lifeline: it remembers it no longer."""
        self._lines.pop(peer, None)

    def is_mine(self, rid: Rid) -> bool:
        """Whether it was asked for in this life."""
        return rid[0] == self._incarnation

    # ---- dormant ----------------------------------------------------------------------------------------------------

    def sleep(self, me: str, members: Collection[str], now: float) -> list[str]:
        """Stop asking; return with whom to leave a (new) lifeline."""
        self.is_dormant = True
        known = sorted((peer for peer in self.told if peer in members), key=lambda one: -self.waits_at(one, now))
        chosen = [*known[:2], *(peer for peer in self._asked if peer in members)]
        out = []
        for peer in dict.fromkeys([*neighbours(me, members, self.options.lifelines_max), *chosen]):
            if self._lines.get(peer, 0.0) - now < self.options.lifeline_s / 2:
                self._lines[peer] = now + self.options.lifeline_s
                out.append(peer)
        return out

    def pause_s(self) -> float:
        """Return how long to sleep before looking again, if there is reason to."""
        pause_s = self._pause_s * self.rng.uniform(0.5, 1.5)
        self._pause_s = min(2 * self._pause_s, self.options.wake_max_s)
        return pause_s


def neighbours(me: str, members: Collection[str], most: int) -> list[str]:
    """Return the neighbours of a node on the hypercube over all of them, in the order of their ids: log₂ n at most."""
    ring = sorted({*members, me})
    at, count = ring.index(me), len(ring)
    out = []
    for bit in range(min(most, max(count - 1, 0).bit_length())):
        other = at ^ (1 << bit)
        out.append(ring[other if other < count else (at + (1 << bit)) % count])
    return [one for one in dict.fromkeys(out) if one != me]


@dataclass(slots=True)
class Hand:
    """What was handed to a thief."""

    job: bytes
    spans: RangeSet
    body: Any
    due_s: float
    sends: int = 1
    is_large: bool = False
    is_taken: bool = False


@dataclass(slots=True)
class Waiter:
    """A dormant member."""

    rid: Rid
    until_s: float
    wants: Any


class Due(NamedTuple):
    """What has to be done about hand-overs now: sent again, taken back, claimed no more."""

    again: Sequence[tuple[str, Any]]
    back: Sequence[Hand]
    over: Sequence[Hand]


@dataclass(slots=True)
class Victim:
    """The busy side."""

    options: StealOptions
    hands: dict[tuple[str, Rid], Hand] = field(default_factory=dict)
    waiters: OrderedDict[str, Waiter] = field(default_factory=OrderedDict)
    _answered: OrderedDict[tuple[str, Rid], None] = field(default_factory=OrderedDict)

    def was_answered(self, peer: str, rid: Rid) -> bool:
        """Whether this request was given something: one that arrives twice gets one answer."""
        return (peer, rid) in self._answered or (peer, rid) in self.hands

    def hand(self, peer: str, rid: Rid, hand: Hand, size: int, trip_s: float, now: float) -> None:
        """Note what is handed over, in a frame of `size` bytes."""
        assert (peer, rid) not in self.hands, "one request, two hand-overs"
        options = self.options
        hand.is_large = size > options.large_bytes
        wait_s = options.large_wait_s + size / options.large_rate if hand.is_large else self._wait_s(trip_s)
        hand.due_s = now + wait_s
        self.hands[peer, rid] = hand
        self._answered[peer, rid] = None
        if len(self._answered) > options.rids_kept:
            self._answered.popitem(last=False)

    def _wait_s(self, trip_s: float) -> float:
        return max(self.options.hand_again_s, 4 * trip_s)

    def settled(self, peer: str, rid: Rid, now: float, *, taken: bool) -> Hand | None:
        """The thief has it, or does not want it; return what comes back."""
        hand = self.hands.get((peer, rid))
        if hand is None or hand.is_taken:
            return None
        if not taken:
            return self.hands.pop((peer, rid))
        hand.is_taken, hand.body = True, None
        hand.due_s = now + self.options.linger_s
        return None

    def due(self, now: float, trip_s: Any) -> Due:
        """Return what is to be done; `trip_s(peer)` is the round trip to a member."""
        again: list[tuple[str, Any]] = []
        back: list[Hand] = []
        over: list[Hand] = []
        for key, hand in list(self.hands.items()):
            if hand.due_s > now:
                continue
            if not hand.is_taken and not hand.is_large and hand.sends < self.options.hand_sends:
                hand.sends += 1
                hand.due_s = now + self._wait_s(trip_s(key[0]))
                again.append((key[0], hand.body))
                continue
            del self.hands[key]
            (over if hand.is_taken else back).append(hand)
        return Due(again, back, over)

    def next_s(self) -> float | None:
        """Return when to look again."""
        return min((hand.due_s for hand in self.hands.values()), default=None)

    def gone(self, peer: str, *, reset: bool) -> list[Hand]:
        """A member is not connected any more; return what comes back, for it will not run it."""
        self.waiters.pop(peer, None)
        if not reset:
            return []  # it may have it, and may be back in a moment
        keys = [key for key, hand in self.hands.items() if key[0] == peer and not hand.is_taken]
        return [self.hands.pop(key) for key in keys]

    def out(self) -> dict[bytes, dict[str, RangeSet]]:
        """Return what is handed over and still named in claims, by job and thief."""
        found: dict[bytes, dict[str, RangeSet]] = {}
        for (peer, _), hand in self.hands.items():
            if hand.spans:
                found.setdefault(hand.job, {}).setdefault(peer, RangeSet()).update(hand.spans)
        return found

    def taken(self, job: bytes) -> RangeSet:
        """Return the tasks of a job that their thieves acknowledged."""
        hands = (hand for hand in self.hands.values() if hand.job == job and hand.is_taken)
        return RangeSet(span for hand in hands for span in hand.spans)

    def regained(self, job: bytes, spans: RangeSet) -> RangeSet:
        """These tasks come back by another way: return those that are out, and forget that they are."""
        out = RangeSet()
        for hand in self.hands.values():
            if hand.job == job:
                back = hand.spans & spans
                hand.spans.difference_update(back)
                out.update(back)
        return out

    def wait(self, peer: str, waiter: Waiter) -> None:
        """Let a member wait on a lifeline."""
        self.waiters.pop(peer, None)
        self.waiters[peer] = waiter
        if len(self.waiters) > self.options.waiters_max:
            self.waiters.popitem(last=False)

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long."""
        for hand in self.hands.values():
            hand.due_s += seconds
