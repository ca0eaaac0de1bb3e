"""What a node does because time passes: the machine's timers, the clock, what is kept every few seconds, the lag.

An idle node is woken once a second, and every five seconds to write what it has learned. The lag of the loop is sampled
only while there is something to do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import trio

from p2pgrid.node import events as e
from p2pgrid.node.disk import Journal
from p2pgrid.node.neighbours import TIMER as NEIGHBOURS
from p2pgrid.node.network import Network
from p2pgrid.node.notify import Notifier
from p2pgrid.node.timers import Lag, Timers
from p2pgrid.node.vitals import Standstill

LAG_PERIOD_S = 0.02
LOOK_S = 1.0
"""Somebody looks so often whether the loop stood still."""
MINUTE_S = 60.0
KEEP_S = 5.0
KEEP_YOUNG_S = 0.5
YOUNG_S = 60.0
"""What was learned of members may be lost for so long; to write it stops the loop for one fsync."""
GIVE_WAY_S = 0.001
HEARTBEAT = (NEIGHBOURS,)


class Ticking:
    """The clocks of a node.

    Attributes:
        lag: how late the loop was lately.
        delivered: how many events the machine has had.
    """

    def __init__(
        self,
        network: Network,
        journal: Journal,
        manager: Notifier,
        standstill: Standstill,
        deliver: Callable[[Sequence[e.Event]], None],
    ) -> None:
        self.lag = Lag()
        self.delivered = 0
        self._network = network
        self._journal = journal
        self._manager = manager
        self._standstill = standstill
        self._deliver = deliver
        self._timers = Timers()
        self._timer_changed = trio.Event()
        self._timer_at = float("-inf")
        self._work_came = trio.Event()

    def start(self, nursery: trio.Nursery) -> None:
        """Begin all of it."""
        for task in (self._fire_timers, self._watch_lag, self._watch_clock, self._show_life):
            nursery.start_soon(task)

    def set_timer(self, effect: e.SetTimer) -> None:
        """Have the machine woken at a time, or not any more."""
        self._timers.set(effect.key, effect.at_s)
        # The one timer that an idle node has is waited for anew also when it is later now, as after each answer to a
        # heartbeat: what is awake already does that for less than a waking for nothing costs.
        if effect.at_s is not None and (effect.at_s < self._timer_at or effect.key == HEARTBEAT):
            self._timer_changed.set()

    def worked(self) -> None:
        """Something other than housekeeping has come: measure the lag for a while."""
        if not self._work_came.is_set():
            self._work_came.set()

    async def _fire_timers(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            if stood_s := self._standstill.look():
                self._deliver([e.Stalled(stood_s)])  # timers that were due meanwhile may be moved by it
            due = self._timers.due(time.monotonic())
            if due:
                self._timer_at = float("-inf")  # whoever sets one meanwhile need not wake us
                self._deliver([e.TimerFired(key) for key in due])
                continue
            self._timer_changed = trio.Event()
            at_s = self._timers.next()
            self._timer_at = float("inf") if at_s is None else at_s
            with trio.move_on_after(min(max(self._timer_at - time.monotonic(), 0.0), LOOK_S)):
                await self._timer_changed.wait()

    async def _watch_clock(self) -> None:
        """Do what is due every few seconds, and every minute say what time it is."""
        due_s = time.monotonic() + MINUTE_S * (0.5 + random.random())  # nodes of one start do not do it all at once
        young_s = time.monotonic() + YOUNG_S
        while True:
            # Whoever is killed soon after it has met the others has to find them again.
            await trio.sleep(KEEP_S if time.monotonic() > young_s else KEEP_YOUNG_S)
            await self._network.keep()
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + MINUTE_S
                self._deliver([e.WallClock(time.time() - time.monotonic())])
                self._network.minute()

    async def _watch_lag(self) -> None:
        """Sample how late the loop is, as long as there is something to do."""
        while True:
            await self._work_came.wait()
            before = -1
            while before != self.delivered:
                before = self.delivered
                due = time.monotonic() + LAG_PERIOD_S
                await trio.sleep(LAG_PERIOD_S)
                self.lag.add(time.monotonic() - due)
                if self._journal.is_starved():
                    time.sleep(GIVE_WAY_S)  # noqa: ASYNC251 - on purpose: its thread needs the GIL
            self._work_came = trio.Event()

    async def _show_life(self) -> None:
        """Tell a service manager that watches us that the loop turns."""
        while self._manager.ping_s is not None:
            self._manager.lives()
            await trio.sleep(self._manager.ping_s)
