"""Thieves: idle nodes that take work from busy ones, this node on either side (DESIGN §8); by what `stealing` decides.

A thief asks its keepers first; what they have not, they say who holds (P_NONE). Of work that this node keeps itself it
knows that from the claims. Inputs and functions travel with what is handed over, except what the thief said it has.
Results go straight to the keeper, under the attempt numbers they were granted with. The keeper is told by the claim of
the thief alone: what it names is covered by it from then on, and what its victim names some beats longer is no harm.

Who hands over work decides what code runs, so only members that may submit are believed; as with grants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.batch import content_id
from p2pgrid.core.chains import SUBMIT, WORK
from p2pgrid.core.errors import PeerError
from p2pgrid.core.ranges import RangeSet
from p2pgrid.core.shapes import from_peer
from p2pgrid.node import events as e
from p2pgrid.node.fitness import Fitness
from p2pgrid.node.granting import GRANT_BYTES, RECALL_S
from p2pgrid.node.members import Members
from p2pgrid.node.outcomes import Outcomes
from p2pgrid.node.parcels import parcel
from p2pgrid.node.parts import Handler, Parts, slots_of
from p2pgrid.node.pool import Lane, Taken
from p2pgrid.node.stealing import Hand, Waiter

STEAL, HANDS, WAKE, SERVE = "steal", "hands", "wake", "serve"
"""Timers."""
SERVE_S = 0.1
"""While others are idle and something waits here, it is looked at so often whether it waits too long."""
CRUMB_S = 0.01
"""Less work is not worth handing over."""
RATES = 8
HAS = 64
FETCH_RATE = 10e6
"""Bytes per second, about, at which inputs reach a thief."""
FETCH_TOO_LONG = 8
"""Inputs that take so many times longer to fetch than to work on stay where they are, unless much waits there."""
MUCH_S = 30.0

Wants = tuple[dict[bytes, float], set[tuple[bytes, Any]]]
"""How long tasks of functions take a thief, and which inputs and functions it has."""


class Thieves(Handler):
    """Both sides of stealing."""

    def __init__(self, parts: Parts, fitness: Fitness, outcomes: Outcomes, members: Members) -> None:
        super().__init__(parts)
        self.fitness = fitness
        self.outcomes = outcomes
        self.members = members
        self._stale: dict[str, None] = {}
        """Keepers of work done since they said who else holds some."""
        self._hinting: dict[str, None] = {}
        """Keepers that said so when they were asked last."""
        members.hinted = self._hinted
        self._frames = {
            m.P_STEAL: self._steal,
            m.P_HANDOVER: self._handed_over,
            m.P_HANDED: self._handed,
            m.P_NOTHING: self._nothing,
            m.P_LIFELINE: self._lifeline,
        }

    def sent(self, event: e.PeerSent, now: float) -> None:
        """Take in a frame between holders. Raises PeerError if it is malformed."""
        self._frames[event.kind](event.peer, from_peer(event.kind, event.body), now)

    def up(self, peer: str) -> None:
        """A member is reachable (again), perhaps one at whom work waits."""
        if peer in self.thief.told:
            self.thief.rouse()

    def down(self, event: e.PeerDown, now: float) -> None:
        self._stale.pop(event.peer, None)
        self._hinting.pop(event.peer, None)
        self.thief.gone(event.peer)
        for hand in self.victim.gone(event.peer, reset=event.reset):
            self._take_back(hand)

    def stalled(self, seconds: float) -> None:
        """Our own loop stood still that long."""
        self.thief.stalled(seconds)
        self.victim.stalled(seconds)
        for name in (STEAL, HANDS):
            at_s = self.parts.timers.get((name,))
            if at_s is not None:
                self.parts.timer((name,), at_s + seconds)

    def feed(self, now: float) -> None:
        """Give to those who wait, or look for work if there is none here."""
        if not self.config.stealing.is_on or self.parts.stopping:
            return
        if self.victim.waiters:
            self._serve(now)
        able = self.config.slots and self.parts.own_roles & WORK
        if able and self.holding.asked is None and not self.holding.hints:
            self._look(now)

    # ---- the idle side ----------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        thief = self.thief
        if self.parts.appetite(self.fitness.eligible) is None:
            thief.rest()
            return
        if self._stale:
            for keeper in self._stale:
                self.holding.hint(keeper)
            self._stale.clear()
            return  # they are asked at once
        if thief.is_dormant:
            return
        if not thief.open and self.leases.holders:
            thief.hear(self.members.granting.backlogs().items(), now)
        if not thief.told and not thief.open:
            return
        able = [peer for peer in self.peers if self._may_be_asked(peer)]
        near = [peer for peer in able if thief.is_near(peer, guess_s=self._guess_s(peer))]
        asks = thief.ask(near, [peer for peer in able if peer not in near], now)
        self.parts.counts["asked"] += len(asks)
        for ask in asks:
            self.out.append(e.Send(ask.peer, m.P_STEAL, [list(ask.rid), *self._wants()]))
        if thief.open:
            self._wait_for_answers()
        elif not asks:
            self._sleep(able, now)

    def _may_be_asked(self, peer: str) -> bool:
        able = slots_of(self.peers[peer]) > 0 and peer not in self.parts.suspects
        return able and self.parts.may(peer, SUBMIT) and self.parts.may(peer, WORK)

    def _guess_s(self, peer: str) -> float:
        known = self.parts.round_trip_s(peer)
        if known is not None:
            return known
        return 0.0 if self.config.preset in {"local", "lan"} else 1.0

    def _trip_s(self, peer: str) -> float:
        return self.thief.trip_s(peer) or self.parts.round_trip_s(peer) or 0.0

    def _wants(self) -> list[Any]:
        """Return what a victim has to know of this node: how fast it is, what it has."""
        rates = [list(one) for one in self.running.rates(RATES)]
        has: dict[bytes, tuple[dict[bytes, None], dict[tuple[int, int], None]]] = {}
        count = 0
        for work in self.pool.works.values():
            if work.keeper is None or count > HAS:
                continue
            codes, runs = has.setdefault(work.job, ({}, {}))
            codes.update(dict.fromkeys(list(work.codes)[:HAS]))
            packed = [(run.lo, run.hi) for run, _ in work.runs if run.packed]
            runs.update(dict.fromkeys(packed[:HAS]))
            count += len(codes) + len(runs)
        for key in self.members.stock.keys():  # noqa: SIM118
            if count > HAS:
                break
            match key:
                case (_, bytes() as job, bytes() as code):
                    has.setdefault(job, ({}, {}))[0][code] = None
                case (_, bytes() as job, int() as lo, int() as hi):
                    has.setdefault(job, ({}, {}))[1][lo, hi] = None
            count += 1
        rows = [[job, list(codes), [bound for run in runs for bound in run]] for job, (codes, runs) in has.items()]
        return [rates, rows]

    def _wait_for_answers(self) -> None:
        due = self.thief.next_s()
        if due is not None and due < self.parts.timers.get((STEAL,), float("inf")):
            self.parts.timer((STEAL,), due)

    def late(self, now: float) -> None:
        """On the timer: whoever has not answered has nothing. Feeding goes on asking."""
        self.thief.late(now)
        self._wait_for_answers()

    def _sleep(self, able: Sequence[str], now: float) -> None:
        wants = self._wants()
        for peer in self.thief.sleep(self.config.node_id, able, now):
            rid = list(self.thief.rid())
            self.parts.counts["asked"] += 1
            self.out.append(e.Send(peer, m.P_LIFELINE, [rid, self.config.stealing.lifeline_s, *wants]))
        if self._hinting or self.members.granting.backlogs():
            self.parts.timer((WAKE,), now + self.thief.pause_s())

    def wake(self, now: float) -> None:
        """On the timer: look again, if the keepers still say that work is held somewhere."""
        if self.thief.is_dormant:
            self._stale.update(self._hinting)
            self.thief.rouse()

    def _hinted(self, peer: str, hints: Sequence[tuple[str, float]], now: float) -> None:
        """A keeper that has nothing to give said who holds some."""
        self._stale.pop(peer, None)
        self._hinting.pop(peer, None)
        others = [(node, seconds) for node, seconds in hints if node != self.config.node_id]
        if others:
            self._hinting[peer] = None
            self.thief.hear(others, now)
            self.thief.rouse()
        elif not self._hinting:
            self.thief.told.clear()

    def _nothing(self, peer: str, body: Any, now: float) -> None:
        rid, hints = body
        if not self.thief.answered(peer, rid, now, nothing=True):
            self.thief.let_go(peer)  # it gave back what is kept here, for which our lifeline was there
        else:
            self.thief.hear(((node, seconds) for node, seconds in hints if node in self.peers), now)

    def _handed_over(self, peer: str, body: Any, now: float) -> None:
        rid, keeper, job, name, ranges, codes, batches = body
        thief = self.thief
        asked_for = thief.answered(peer, rid, now, nothing=False)
        before = thief.met(peer, rid)
        if before is None:
            opened = None
            if thief.is_mine(rid) and (asked_for or self.parts.appetite(self.fitness.eligible) is not None):
                opened = self._opened(peer, keeper, job, ranges, codes, batches)
            before = opened is not None
            if opened is not None:
                self.parts.counts["stolen"] += self.members.admit(keeper, job, name, opened, ranges)
                self._stale[keeper] = None
                thief.rest()
                self.parts.timer((WAKE,), None)
                self.out += self.members.claim(keeper)
                self.parts.timer(("beat",), now)  # and what of it runs, as soon as it does
            thief.settle(peer, rid, taken=before)
        self.out.append(e.Send(peer, m.P_HANDED, [list(rid), before]))

    def _opened(self, peer: str, keeper: str, job: bytes, ranges: Any, codes: Any, batches: Any) -> Any:
        """Return what is handed over, read, or None if it is not to be taken in."""
        work = self.pool.works.get(job)
        if self.parts.stopping or self.parts.refusing or keeper not in self.peers:
            return None
        if (kept := self.keeping.jobs.get(job)) is not None and kept.answers:
            return None
        if work is not None and work.keeper != keeper:
            return None
        for node in (peer, keeper):
            if not self.parts.may(node, SUBMIT):
                self.parts.log_once(node, "hands out work, which its certificate does not allow")
                return None
        if any(content_id(union) != code for code, union in codes):
            raise PeerError("a function that is not what its id says")
        return self.members.opened(keeper, job, ranges, codes, batches)

    # ---- the busy side ----------------------------------------------------------------------------------------------

    def _steal(self, peer: str, body: Any, now: float) -> None:
        rid, rates, has = body
        hand = self.victim.hands.get((peer, rid))
        if hand is not None and not hand.is_taken:
            self.out.append(e.Send(peer, m.P_HANDOVER, hand.body))
            return
        if self.victim.was_answered(peer, rid) or not self._may_be_given(peer):
            return
        self.running.look(now)
        if not self._give(peer, rid, (rates, has), now):
            freed = self.running.free_up(RECALL_S, lambda lane: self._may_go(lane, peer))
            if freed:  # it is given that as soon as it is here
                self.out += freed
                if peer not in self.victim.waiters:
                    self.victim.wait(peer, Waiter(rid, now + 1.0, (rates, has)))
            self._say_nothing(peer, rid, now)

    def _say_nothing(self, peer: str, rid: tuple[int, int], now: float) -> None:
        told = [one for one in self.thief.told if one != peer and one in self.peers]
        best = sorted(((self.thief.waits_at(one, now), one) for one in told), reverse=True)[:2]
        hints = [[one, seconds] for seconds, one in best if seconds > 0]
        self.out.append(e.Send(peer, m.P_NOTHING, [list(rid), hints]))

    def _lifeline(self, peer: str, body: Any, now: float) -> None:
        rid, seconds, rates, has = body
        if self._may_be_given(peer) and not self.victim.was_answered(peer, rid):
            until_s = now + min(seconds, self.config.stealing.lifeline_s)
            self.victim.wait(peer, Waiter(rid, until_s, (rates, has)))

    def _may_be_given(self, peer: str) -> bool:
        if not self.parts.may(peer, WORK):
            self.parts.log_once(peer, "asks for work, which its certificate does not allow")
            return False
        return self.config.stealing.is_on and peer not in self.parts.suspects and not self.parts.stopping

    def serve(self, _now: float) -> None:
        """On the timer: what waits here behind a task that turns out long may be worth handing over by now."""
        self.parts.hungry = True

    def _serve(self, now: float) -> None:
        """Hand over to members that wait what this node has not started."""
        if any(lane.work.keeper is not None for lane in self.pool.candidates()):
            self.running.look(now)
            for peer, waiter in list(self.victim.waiters.items()):
                over = waiter.until_s <= now or self.victim.was_answered(peer, waiter.rid)
                if over or peer not in self.peers:
                    del self.victim.waiters[peer]
                elif self._may_be_given(peer) and self._give(peer, waiter.rid, waiter.wants, now):
                    self.victim.waiters.pop(peer, None)
        elif not self.running.queues_for_others():
            return
        waits = next((one for one in self.victim.waiters if self._may_be_given(one)), None)
        if waits is not None:
            self.running.look(now)
            self.out += self.running.free_up(RECALL_S, lambda lane: self._may_go(lane, waits))
            self.parts.timer_unless_set((SERVE,), now + SERVE_S)

    def _may_go(self, lane: Lane, peer: str) -> bool:
        return lane.work.keeper is not None and self.fitness.fits(lane, peer)

    def _give(self, peer: str, rid: tuple[int, int], wants: Wants, now: float) -> bool:
        """Hand over the member's part of what waits here, by its speed and ours; False: it is too little."""
        rates, has = wants
        slots, theirs = max(self.config.slots, 1), max(slots_of(self.peers.get(peer, {})), 1)
        best: tuple[float, Lane, int] | None = None
        waits_s = 0.0
        for lane in [one for one in self.pool.candidates() if self._may_go(one, peer)]:
            each = self.running.seconds(lane.fn) or 1.0
            count = lane.ready.size - lane.alone.size
            lane_s = count * each * max(lane.cpus, 1) / slots
            waits_s += lane_s
            part = _part(count, theirs / max(rates.get(lane.fn, each), 1e-7), slots / max(each, 1e-7))
            if part == 0 and count and rates.get(lane.fn, each) <= lane_s + each:
                part = 1  # it would wait here longer than it takes there
            if part and (best is None or lane_s > best[0]):
                best = (lane_s, lane, part)
        if best is None or waits_s < max(2 * self._trip_s(peer), CRUMB_S):
            return False
        _, lane, part = best
        keeper = str(lane.work.keeper)
        takens = self.pool.take_last(lane, part)
        if keeper == peer:  # what it keeps itself it takes back
            spans = RangeSet(span for taken in takens for span in taken.spans)
            self.out += self.holding.give_back(peer, lane.work.job, spans, "")
            self.out.append(e.Send(peer, m.P_NOTHING, [list(rid), []]))
            self.members.tidy(keeper, lane.work.job)
            return True
        return self._hand_over(peer, rid, takens, has, waits_s, now)

    def _hand_over(
        self, peer: str, rid: tuple[int, int], takens: list[Taken], has: set[tuple[bytes, Any]], waits_s: float,
        now: float,
    ) -> bool:  # fmt: skip
        takens = self._carried(takens, has)
        lane, work = takens[0].lane, takens[0].work
        said, _, size = parcel(takens, lambda key: key in has)
        count = sum(taken.count for taken in takens)
        exec_s = count * (self.running.seconds(lane.fn) or 1.0)
        if size / FETCH_RATE > FETCH_TOO_LONG * exec_s and waits_s < MUCH_S:
            for taken in takens:
                self.pool.put_back(taken, taken.spans)
            return False
        body = [list(rid), str(work.keeper), *said]
        spans = RangeSet(span for taken in takens for span in taken.spans)
        self.victim.hand(peer, rid, Hand(work.job, spans, body, now), size, self._trip_s(peer), now)
        self.out += self.members.claim(str(work.keeper))  # it believes a thief that its victim has named
        self.out.append(e.Send(peer, m.P_HANDOVER, body))
        self._watch_hands()
        return True

    def _carried(self, takens: list[Taken], has: set[tuple[bytes, Any]]) -> list[Taken]:
        """Return as much as one frame may carry, at least one piece; the rest stays here."""
        room = GRANT_BYTES
        kept: list[Taken] = []
        seen: set[tuple[int, int]] = set()
        for taken in takens:
            spans: list[tuple[int, int]] = []
            for run, _, lo, hi in taken.pieces():
                key = (run.lo, run.hi)
                if not run.packed:
                    room -= sum(run.sizes(lo, hi))
                elif key not in seen and (taken.work.job, key) not in has:
                    room -= len(run.data)
                seen.add(key)
                if room < 0 and (kept or spans):
                    self.pool.put_back(taken, [(lo, hi)])
                else:
                    spans.append((lo, hi))
            if spans:
                kept.append(Taken(taken.work, taken.lane, tuple(RangeSet(spans)), taken.attempt, taken.alone))
        return kept

    def _handed(self, peer: str, body: Any, now: float) -> None:
        rid, taken = body
        hand = self.victim.settled(peer, rid, now, taken=taken)
        if hand is not None:
            self._take_back(hand)
        self._watch_hands()

    def _take_back(self, hand: Hand) -> None:
        """The thief has not got it, or may not: it runs here, if it is still held."""
        work = self.pool.works.get(hand.job)
        if work is None or work.keeper is None:
            return
        for lo, hi in self.outcomes.wanted(work, list(hand.spans)):
            self.pool.make_ready(work, lo, hi)
        self.parts.hungry = True

    def _watch_hands(self) -> None:
        due = self.victim.next_s()
        if due is not None and due < self.parts.timers.get((HANDS,), float("inf")):
            self.parts.timer((HANDS,), due)

    def hands_due(self, now: float) -> None:
        """On the timer: hand over again, take back, or claim no more what its thief claims."""
        due = self.victim.due(now, self._trip_s)
        for peer, body in due.again:
            self.out.append(e.Send(peer, m.P_HANDOVER, body))
        for hand in due.back:
            self._take_back(hand)
        for hand in due.over:
            work = self.pool.works.get(hand.job)
            if work is not None and work.keeper is not None:
                self.holding.drop(work.keeper, hand.job, hand.spans)
                self.outcomes.take_out(hand.job, hand.spans)
                self.members.tidy(work.keeper, hand.job)
        self._watch_hands()


def _part(count: int, theirs: float, ours: float) -> int:
    """Return how many of `count` tasks go to a thief, by its speed and ours."""
    return min(round(count * theirs / (theirs + ours)), count)
