"""Prints: what tasks print while they run, on its way to whoever watches: worker, its node, the keeper, the client.

Nothing of it is owed to anybody: lines are wanted only while somebody watches the job, at most so many a second of a
job leave a node, and what a slow reader does not take is thrown away and counted. Results never wait for it. What is
*kept* of a task (its last 64 KiB) comes with its result; of tasks that are killed, and of long ones now and then, it
comes this way.

What a task has started prints as that task does: its lines go up to the one that a program has submitted.

A keeper tells holders what is watched (`P_SHOW`) when they get or claim tasks of a job, and when that changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from p2pgrid.core import messages as m
from p2pgrid.core.chains import WORK
from p2pgrid.core.prints import ENTRIES_MAX, KEEP, PRINTS, PROGRESS, Line, Lot, Said, Throttle, read_lot, read_show
from p2pgrid.core.ranges import RangeSet
from p2pgrid.node import events as e
from p2pgrid.node.kept import Kept
from p2pgrid.node.parts import Handler, Parts
from p2pgrid.node.pool import Work

TOLD_MAX = 4096
THROTTLES_MAX = 1024
_ALL = RangeSet([(0, 1 << 62)])


class Prints(Handler):
    """Lines, progress and logs of running tasks."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._told: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        """What holders know of what is watched."""
        self._throttles: OrderedDict[bytes, Throttle] = OrderedDict()
        self.below: Callable[[bytes, Sequence[tuple[int, bytes]]], list[tuple[int, bytes]]] = lambda _, logs: list(logs)
        """Adds to what tasks of a job have printed what was printed below them."""
        parts.tell_shown = self.tell

    # ---- who watches -------------------------------------------------------------------------------------------------

    def watches_changed(self, kept: Kept) -> None:
        """Somebody began or stopped to watch a job kept here."""
        work = self.pool.works.get(kept.id)
        what = 0
        for watch in kept.watches.values():
            what |= watch.show
        if kept.spec.parent is not None and (above := self.pool.works.get(kept.spec.parent.job)) is not None:
            what |= above.shown & PRINTS
        if work is None or work.shown == what:
            return
        self._show(work, what)
        for peer, _ in list(self.leases.covering(kept.id, _ALL)):
            self.tell(peer, kept.id)

    def _show(self, work: Work, what: int) -> None:
        work.shown = what
        if self.running.spans(work.job):
            self.out.append(e.Show(work.job, what))

    def tell(self, peer: str, job: bytes) -> None:
        """A member has tasks of a job kept here: it hears what is watched of them, if it does not know."""
        work = self.pool.works.get(job)
        if work is None or work.shown == self._told.get((peer, job), 0):
            return
        self._told[peer, job] = work.shown
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
        self.out.append(e.Send(peer, m.P_SHOW, [job, work.shown]))

    def down(self, peer: str) -> None:
        """A member is gone: when it comes back it may have forgotten what it was told."""
        for key in [key for key in self._told if key[0] == peer]:
            del self._told[key]

    # ---- what comes --------------------------------------------------------------------------------------------------

    def printed(self, event: e.WorkerPrinted, now: float) -> None:
        """Take in what a worker of this node printed."""
        self.parts.hungry = False
        info = self.running.find(event.worker, event.run)
        if info is not None:
            work = info.taken.work
            logs = self.below(work.job, event.logs)
            self._take(work, Lot(work.job, list(event.lines), event.more, list(event.progress), logs), now)

    def left(self, work: Work, logs: Sequence[tuple[int, bytes]], now: float) -> None:
        """Keep what tasks had printed that were killed."""
        if logs:
            self._take(work, Lot(work.job, [], 0, [], list(logs)), now)

    def _take(self, work: Work, lot: Lot, now: float) -> None:
        lot = self._throttled(lot, now)
        if work.keeper is None:
            kept = self.keeping.jobs.get(work.job)
            if kept is not None:
                self._hand_out(kept, self.config.name, lot)
            return
        for at in range(0, max(len(lot.lines), len(lot.said), len(lot.logs), 1), ENTRIES_MAX):
            part = slice(at, at + ENTRIES_MAX)
            logs = [[index, text[-KEEP:]] for index, text in lot.logs[part]]
            body = [lot.job, _plain(lot.lines[part]), 0 if at else lot.more, _plain(lot.said[part]), logs]
            self.out.append(e.Send(work.keeper, m.P_PRINTED, body))

    def _throttled(self, lot: Lot, now: float) -> Lot:
        if not lot.lines:
            return lot
        throttle = self._throttles.pop(lot.job, None) or Throttle()
        self._throttles[lot.job] = throttle
        if len(self._throttles) > THROTTLES_MAX:
            self._throttles.popitem(last=False)
        shown = throttle.admit(len(lot.lines), now)
        return lot._replace(lines=lot.lines[:shown], more=lot.more + len(lot.lines) - shown)

    def _hand_out(self, kept: Kept, node: str, lot: Lot) -> None:
        """Give watchers their lines, and keep what is to be kept."""
        logs = [(index, text) for index, text in lot.logs if index not in kept.done]
        effect = self.keeping.log(kept, logs)
        if effect is not None:
            self.out.append(effect)
        if kept.spec.parent is not None and (lot.lines or lot.more):
            self._pass_up(kept, lot)
        lines, said = _plain(lot.lines), _plain(lot.said)
        if not (lines or said or lot.more):
            return
        for watch in kept.watches.values():
            prints, progress = watch.show & PRINTS, watch.show & PROGRESS
            if (prints and (lines or lot.more)) or (progress and said):
                body = [kept.id, node, lines if prints else [], lot.more if prints else 0, said if progress else []]
                self.out.append(e.Reply(watch.client, m.PRINTED, 0, body))

    def _pass_up(self, kept: Kept, lot: Lot) -> None:
        """Show what a task has printed that another has started as lines of the one that a program has submitted."""
        job, task = kept.id, 0
        above: Kept | None = kept
        while above is not None and above.spec.parent is not None:
            job, task, _ = above.spec.parent
            above = self.keeping.jobs.get(job)
        work = self.pool.works.get(job)
        if work is not None and work.shown & PRINTS:
            lines = [line._replace(task=task) for line in lot.lines]
            self._take(work, Lot(job, lines, lot.more, [], []), self.parts.now)

    # ---- between nodes -----------------------------------------------------------------------------------------------

    def sent(self, peer: str, kind: int, body: Any, now: float) -> None:
        """Take in a frame of a member. Raises PeerError if it is malformed."""
        self.parts.hungry = False
        if kind == m.P_SHOW:
            job, what = read_show(body)
            self._announced(peer, job, what)
        elif kind == m.P_PRINTED:
            self._from_holder(peer, read_lot(body), now)

    def _announced(self, keeper: str, job: bytes, what: int) -> None:
        announced = self.parts.announced
        announced.pop((keeper, job), None)
        announced[keeper, job] = what
        if len(announced) > TOLD_MAX:
            announced.popitem(last=False)
        work = self.pool.works.get(job)
        if work is not None and work.keeper == keeper and work.shown != what:
            self._show(work, what)

    def _from_holder(self, peer: str, lot: Lot, now: float) -> None:
        kept = self.keeping.jobs.get(lot.job)
        if kept is None or not self.parts.may(peer, WORK):
            return
        given = None if kept.ended else self.leases.given(peer, lot.job)
        named = {one.task for one in lot.lines} | {one.task for one in lot.said} | {index for index, _ in lot.logs}
        mine = {index for index in named if index in kept.known and (given is None or index in given)}
        lot = lot._replace(
            lines=[line for line in lot.lines if line.task in mine],
            said=[one for one in lot.said if one.task in mine],
            logs=[one for one in lot.logs if one[0] in mine],
        )
        if lot.lines and kept.spec.parent is None and not any(watch.show for watch in kept.watches.values()):
            self._told.pop((peer, lot.job), None)
            self.out.append(e.Send(peer, m.P_SHOW, [lot.job, 0]))
        self._hand_out(kept, self.parts.name_of(peer), self._throttled(lot, now))


def _plain(entries: Sequence[Line] | Sequence[Said]) -> list[list[Any]]:
    return [list(entry) for entry in entries]
